"""What a study says: a row a transfer, a summary a method, the control beside it, paired differences.

Success is Δ > 0, and above the control Δ > the Δ of the same student, data, steps and seed without a teacher.
Intervals are 95 %: Wilson's for shares of independent transfers, else percentiles of 10,000 bootstrap draws, seed 0.
The transfers of one student and seed share one control, so figures above the control draw (student, seed) groups, not
single transfers. Roth et al., arXiv:2310.17653, §5.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from backend.domain.intervals import BOOTSTRAP_DRAWS, bootstrap_mean, wilson_interval
from backend.domain.methods import TrainingParams, turns
from backend.domain.pairs import Pair
from backend.domain.records import Record
from backend.domain.study_pairs import PairSummary

CONTROL = "control"
MOST_PAIRS = 5_000
Against = Literal["best single teacher", "most accurate teacher"]


class StudyRow(Record):
    """One finished transfer of a study."""

    job_id: str
    label: str
    method: str
    params: dict[str, Any]
    teachers: tuple[str, ...]
    student: str
    seed: int
    n_samples: int
    student_accuracy_before: float
    student_accuracy_after: float
    teacher_accuracy: float | None = None
    accuracy_difference: float | None = None
    transfer_delta: float
    control_delta: float | None = None
    delta_above_control: float | None = None
    knowledge_gain: float
    knowledge_loss: float
    positive_flip_rate_before: float | None = None
    positive_flip_rate_delta: float | None = None
    negative_flip_rate_delta: float | None = None
    positive_flip_rate_on_transfer_set: float | None = None
    positive_flips_to_teacher: float | None = None
    negative_flips_to_teacher: float | None = None
    transfer_rate: dict[str, float | None] = Field(default_factory=dict)


class MethodSummary(Record):
    """What a study says about one method. Success: Δ > 0; Δ = 0 is failure. `_low`, `_high`: 95 %.

    Fields above the control are None where no transfer has a control; they rest on the `n_with_control` that have.
    """

    label: str
    n_transfers: int
    success_rate: float
    success_rate_low: float
    success_rate_high: float
    median_student_success_rate: float
    mean_delta: float
    mean_delta_low: float
    mean_delta_high: float
    top_quarter_delta: float
    n_with_control: int = 0
    success_rate_above_control: float | None = None
    success_rate_above_control_low: float | None = None
    success_rate_above_control_high: float | None = None
    mean_delta_above_control: float | None = None
    mean_delta_above_control_low: float | None = None
    mean_delta_above_control_high: float | None = None
    n_weaker: int = 0
    success_rate_weaker: float | None = None
    mean_delta_weaker: float | None = None
    mean_gain: float
    mean_loss: float


class MethodDifference(Record):
    """The same transfers by two methods: `label` − `baseline`, paired over (teachers, student, seed)."""

    label: str
    baseline: str
    n_pairs: int
    success_rate_difference: float
    success_rate_difference_low: float
    success_rate_difference_high: float
    mean_delta_difference: float
    mean_delta_difference_low: float
    mean_delta_difference_high: float


class TeacherSetRow(Record):
    """One transfer from several teachers beside the transfers from each of them alone.

    The same student, method, settings and seed. The best single teacher is the one with the largest Δ, known only
    afterwards; the most accurate teacher can be chosen beforehand.
    """

    job_id: str
    label: str
    teachers: tuple[str, ...]
    student: str
    seed: int
    transfer_delta: float
    best_single_teacher: str
    best_single_delta: float
    most_accurate_teacher: str
    most_accurate_delta: float
    mean_single_delta: float


class TeacherSetSummary(Record):
    """Several teachers − one, over (set of teachers, student, seed); `_low`, `_high`: 95 %.

    `n_incomplete` transfers from several teachers are left out: a transfer from one of their teachers is missing.
    """

    label: str
    against: Against
    n_transfers: int
    n_incomplete: int = 0
    mean_delta: float
    mean_single_delta: float
    mean_delta_difference: float
    mean_delta_difference_low: float
    mean_delta_difference_high: float
    win_rate: float
    win_rate_low: float
    win_rate_high: float


class StudyTable(Record):
    """The whole result: a row a transfer, a summary a method, all paired differences, several teachers beside one; and
    the study's pairs as they were before (of more than `MOST_PAIRS` the summary alone)."""

    rows: tuple[StudyRow, ...]
    methods: tuple[MethodSummary, ...]
    differences: tuple[MethodDifference, ...]
    teacher_sets: tuple[TeacherSetRow, ...] = ()
    teacher_set_summaries: tuple[TeacherSetSummary, ...] = ()
    pairs: tuple[Pair, ...] = ()
    pair_summary: PairSummary | None = None
    n_failed: int = 0
    n_open: int = 0


def study_row(job_id: str, label: str, params: Mapping[str, Any], result: Mapping[str, Any]) -> StudyRow:
    """One row from a transfer job's result."""
    teachers = result.get("teachers") or {}
    best = max((one["teacher_accuracy"] for one in teachers.values()), default=None)
    before = [one["positive_flip_rate_before"] for one in teachers.values()]
    copied = {name: result.get(name) for name in StudyRow.model_fields if name in result and name != "teachers"}
    return StudyRow.model_validate(
        {
            **copied,
            "job_id": job_id,
            "label": label,
            "params": dict(params),
            "teachers": tuple(result["teacher_names"]),
            "seed": params.get("seed", 0),
            "teacher_accuracy": best,
            "accuracy_difference": None if best is None else best - result["student_accuracy_before"],
            "positive_flip_rate_before": max(before, default=None),
            "transfer_rate": {str(p): rate for p, rate in (result.get("transfer_rate") or {}).items()},
        }
    )


def with_controls(rows: Iterable[StudyRow]) -> list[StudyRow]:
    """Every row with the Δ of its control: the same student, seed, training and number of steps without a teacher."""
    listed = list(rows)
    controls = {(row.student, _training_key(row)): row.transfer_delta for row in listed if is_control(row)}
    found = []
    for row in listed:
        control = controls.get((row.student, _training_key(row)))
        if control is None or is_control(row):
            found.append(row)
            continue
        update = {"control_delta": control, "delta_above_control": row.transfer_delta - control}
        found.append(row.model_copy(update=update))
    return found


def is_control(row: StudyRow) -> bool:
    return row.label.split(" ")[0] == CONTROL


def _training_key(row: StudyRow) -> tuple[Any, ...]:
    """The training without what is learned from; one teacher after another is as many trainings in a row."""
    values: dict[str, Any] = {name: row.params.get(name) for name in TrainingParams.model_fields}
    times = turns(row.params.get("multi"), len(row.teachers))
    for name in ("epochs", "steps"):
        if values[name] is not None:
            values[name] *= times
    return tuple(str(values[name]) for name in sorted(values))


def summarise(rows: Sequence[StudyRow], n_failed: int = 0, n_open: int = 0) -> StudyTable:
    """Success rates, means and paired differences of a study's rows."""
    listed = with_controls(rows)
    labels = list(dict.fromkeys(row.label for row in listed))
    methods = tuple(_summary(label, [row for row in listed if row.label == label]) for label in labels)
    taught = [label for label in labels if not label.startswith(CONTROL)]
    differences = tuple(
        difference
        for baseline, label in itertools.combinations(taught, 2)
        if (difference := _difference(listed, label, baseline)) is not None
    )
    sets, incomplete = _teacher_sets(listed)
    return StudyTable(
        rows=tuple(listed),
        methods=methods,
        differences=differences,
        teacher_sets=tuple(sets),
        teacher_set_summaries=tuple(_set_summaries(sets, incomplete)),
        n_failed=n_failed,
        n_open=n_open,
    )


def _summary(label: str, rows: Sequence[StudyRow]) -> MethodSummary:
    deltas = np.array([row.transfer_delta for row in rows])
    wins = deltas > 0
    low, high = wilson_interval(int(wins.sum()), len(wins))
    mean, mean_low, mean_high = _mean_interval(deltas)
    by_student: dict[str, list[bool]] = {}
    for row, win in zip(rows, wins, strict=True):
        by_student.setdefault(row.student, []).append(bool(win))
    weaker = np.array([row.transfer_delta for row in rows if (row.accuracy_difference or 0.0) < 0])
    extra = _above_control([row for row in rows if row.delta_above_control is not None])
    if len(weaker):
        extra |= {"success_rate_weaker": float((weaker > 0).mean()), "mean_delta_weaker": float(weaker.mean())}
    return MethodSummary(
        label=label,
        n_transfers=len(rows),
        success_rate=float(wins.mean()),
        success_rate_low=float(low),
        success_rate_high=float(high),
        median_student_success_rate=float(np.median([np.mean(one) for one in by_student.values()])),
        mean_delta=mean,
        mean_delta_low=mean_low,
        mean_delta_high=mean_high,
        top_quarter_delta=float(np.sort(deltas)[-max(1, round(len(deltas) / 4)) :].mean()),
        n_weaker=len(weaker),
        mean_gain=float(np.mean([row.knowledge_gain for row in rows])),
        mean_loss=float(np.mean([row.knowledge_loss for row in rows])),
        **extra,
    )


def _above_control(rows: Sequence[StudyRow]) -> dict[str, Any]:
    if not rows:
        return {}
    above = np.array([row.delta_above_control for row in rows], dtype=np.float64)
    groups = [(row.student, row.seed) for row in rows]
    found: dict[str, Any] = {"n_with_control": len(rows)}
    for name, values in (
        ("success_rate_above_control", (above > 0).astype(np.float64)),
        ("mean_delta_above_control", above),
    ):
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), grouped_mean(values, groups), strict=True))
    return found


def _difference(rows: Sequence[StudyRow], label: str, baseline: str) -> MethodDifference | None:
    def by_transfer(wanted: str) -> dict[tuple[Any, ...], float]:
        return {(row.teachers, row.student, row.seed): row.transfer_delta for row in rows if row.label == wanted}

    ours, theirs = by_transfer(label), by_transfer(baseline)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    a, b = np.array([ours[key] for key in shared]), np.array([theirs[key] for key in shared])
    wins = _mean_interval((a > 0).astype(np.float64) - (b > 0))
    delta = _mean_interval(a - b)
    return MethodDifference(
        label=label,
        baseline=baseline,
        n_pairs=len(shared),
        success_rate_difference=wins[0],
        success_rate_difference_low=wins[1],
        success_rate_difference_high=wins[2],
        mean_delta_difference=delta[0],
        mean_delta_difference_low=delta[1],
        mean_delta_difference_high=delta[2],
    )


def _teacher_sets(rows: Sequence[StudyRow]) -> tuple[list[TeacherSetRow], dict[str, int]]:
    """Every transfer from several teachers beside those from each alone, and how many lack one, by label."""
    single: dict[tuple[Any, ...], StudyRow] = {}
    for row in rows:
        if len(row.teachers) == 1:
            single.setdefault((row.teachers[0], *same_settings(row)), row)
    found: list[TeacherSetRow] = []
    incomplete: dict[str, int] = {}
    for row in rows:
        if len(row.teachers) < 2:
            continue
        alone = [single.get((teacher, *same_settings(row))) for teacher in row.teachers]
        there = [one for one in alone if one is not None]
        if len(there) < len(alone):
            incomplete[row.label] = incomplete.get(row.label, 0) + 1
            continue
        best = max(there, key=lambda one: one.transfer_delta)
        able = max(there, key=lambda one: one.teacher_accuracy or 0.0)
        found.append(
            TeacherSetRow(
                job_id=row.job_id,
                label=row.label,
                teachers=row.teachers,
                student=row.student,
                seed=row.seed,
                transfer_delta=row.transfer_delta,
                best_single_teacher=best.teachers[0],
                best_single_delta=best.transfer_delta,
                most_accurate_teacher=able.teachers[0],
                most_accurate_delta=able.transfer_delta,
                mean_single_delta=float(np.mean([one.transfer_delta for one in there])),
            )
        )
    return found, incomplete


def same_settings(row: StudyRow) -> tuple[Any, ...]:
    """Student, method and settings, without those that only say how several teachers are used."""
    settings = {key: value for key, value in row.params.items() if key not in ("multi", "teacher_order")}
    return (row.student, row.method, row.seed, *(f"{key}={settings[key]}" for key in sorted(settings)))


def _set_summaries(sets: Sequence[TeacherSetRow], incomplete: Mapping[str, int]) -> Iterator[TeacherSetSummary]:
    sides: tuple[tuple[Against, str], ...] = (
        ("best single teacher", "best_single_delta"),
        ("most accurate teacher", "most_accurate_delta"),
    )
    for label in dict.fromkeys(row.label for row in sets):
        chosen = [row for row in sets if row.label == label]
        several = np.array([row.transfer_delta for row in chosen])
        for against, name in sides:
            one = np.array([getattr(row, name) for row in chosen])
            mean, low, high = _mean_interval(several - one)
            wins = int((several > one).sum())
            win_low, win_high = wilson_interval(wins, len(chosen))
            yield TeacherSetSummary(
                label=label,
                against=against,
                n_transfers=len(chosen),
                n_incomplete=incomplete.get(label, 0),
                mean_delta=float(several.mean()),
                mean_single_delta=float(one.mean()),
                mean_delta_difference=mean,
                mean_delta_difference_low=low,
                mean_delta_difference_high=high,
                win_rate=wins / len(chosen),
                win_rate_low=float(win_low),
                win_rate_high=float(win_high),
            )


def grouped_mean(values: NDArray[np.float64], groups: Sequence[Any]) -> tuple[float, float, float]:
    """Mean of `values` [N] and its 95 % percentiles, drawing whole groups of values with replacement.

    Reduces to the plain bootstrap of the mean where every value is a group of its own, and where there is one group
    alone: nothing between groups can be learned from it.
    """
    names = list(dict.fromkeys(groups))
    if len(names) in (1, len(values)):
        return _mean_interval(values)
    at = {name: number for number, name in enumerate(names)}
    member = np.array([at[group] for group in groups])
    sums, counts = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAP_DRAWS)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def _mean_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean, and the 95 % percentiles of the mean over bootstrap draws of the values."""
    interval, _ = bootstrap_mean(values)
    return float(np.mean(values)), interval.low, interval.high
