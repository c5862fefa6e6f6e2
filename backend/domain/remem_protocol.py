"""Choosing and comparing in ReMem's protocol: validation chooses, test is only reported (arXiv:2506.23041, §6).

N samples, C classes. Errors are 1 − accuracy, accuracy top-1 or the mean over classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from backend.domain.datasets import Subset
from backend.domain.errors import BadInput
from backend.domain.pareto import pareto_front
from backend.domain.remem import SETTINGS, Branch, Metric, StudentDistillation, TeacherTuning
from backend.domain.remem_results import (
    PlanePoint,
    SettingRow,
    SweepRow,
    TeacherSnapshot,
    TunedTeacher,
    require_comparable,
)

Integers = npt.NDArray[np.int64]


def error_rate(top1: npt.ArrayLike, labels: npt.ArrayLike, metric: Metric = "top1") -> float:
    """1 − accuracy of predictions [N] for labels [N]; mean_per_class averages over the classes that occur.

    Raises:
        BadInput: no samples, or another number of predictions than labels.
    """
    predicted, true = np.asarray(top1, dtype=np.int64), np.asarray(labels, dtype=np.int64)
    if predicted.shape != true.shape or true.size == 0:
        raise BadInput("top1", predicted.shape, f"one prediction for each of {true.size} labels, at least one")
    right = predicted == true
    if metric == "top1":
        return float(1 - right.mean())
    classes, inverse, counts = np.unique(true, return_inverse=True, return_counts=True)
    return float(1 - np.mean(np.bincount(inverse, weights=right, minlength=len(classes)) / counts))


def carve_validation(labels: Integers, share: float, seed: int = 0) -> tuple[Integers, Integers]:
    """Sorted positions of train and validation, a seeded class-stratified `share` of the training split.

    Raises:
        BadInput: one of the two would be empty.
    """
    validation = Subset(share=share, seed=seed).indices(labels)
    train = np.setdiff1d(np.arange(len(labels), dtype=np.int64), validation, assume_unique=True)
    if not len(train) or not len(validation):
        raise BadInput("validation_share", share, f"a share that leaves both sides some of {len(labels)} samples")
    return train, validation


def tuned_teacher(tuning: TeacherTuning, snapshots: Sequence[TeacherSnapshot]) -> TunedTeacher:
    """Choose, on validation, the best student of all snapshots; ties go to the earlier stop, then the first listed.

    Without any student the snapshot of least validation error is chosen.

    Raises:
        BadInput: there are no snapshots.
    """
    if not snapshots:
        raise BadInput("snapshots", 0, "at least one")
    scored: list[tuple[float, int, int, StudentDistillation | None]] = [
        (student.validation_error, snapshot.stop_point, order, student.distillation)
        for snapshot in snapshots
        for order, student in enumerate(snapshot.students)
    ] or [(snapshot.validation_error, snapshot.stop_point, 0, None) for snapshot in snapshots]
    _, stop_point, _, distillation = min(scored, key=lambda one: one[:3])
    return TunedTeacher(
        tuning=tuning,
        setting=tuning.setting,
        snapshots=tuple(snapshots),
        best_stop_point=stop_point,
        best_distillation=distillation,
    )


def best_teacher(teachers: Sequence[TunedTeacher]) -> int:
    """Position of the one whose chosen student is best on validation; the first of equals."""
    return min(range(len(teachers)), key=lambda i: (teachers[i].choosing_error, i))


def setting_table(teachers: Iterable[TunedTeacher]) -> tuple[SettingRow, ...]:
    """A row per setting present, in the paper's order; gains are paired with the baseline seed by seed. Whole models
    only: pruned ones have their curve."""
    whole = [one for one in teachers if one.tuning.pruned_blocks == 0]
    chosen = {setting: _by_seed(one for one in whole if one.setting == setting) for setting in SETTINGS}
    baseline = chosen["baseline"]
    rows = []
    for setting, seeds in chosen.items():
        if seeds:
            gain = _interval([_gain(one, baseline[seed]) for seed, one in seeds.items() if seed in baseline])
            gains = {"gain": gain[0], "gain_low": gain[1], "gain_high": gain[2]}
            rows.append(SettingRow.model_validate({"setting": setting, **_figures(seeds), **gains}))
    return tuple(rows)


def sweep_table(teachers: Iterable[TunedTeacher], parameter: str) -> tuple[SweepRow, ...]:
    """A row for each value of one field of the tunings, ascending; at each value and seed validation chooses the rest.

    Values of `pruned_blocks` are told apart by the branch that was left out; the unpruned model belongs to both curves.
    """
    teachers = list(teachers)
    branches: Sequence[Branch | None] = [None]
    if parameter == "pruned_blocks":
        branches = sorted({one.tuning.pruned_branch for one in teachers if one.tuning.pruned_blocks})
    rows = []
    for branch in branches:
        fitting = [one for one in teachers if branch is None or _on_curve(one.tuning, branch)]
        for value in sorted({getattr(one.tuning, parameter) for one in fitting}):
            seeds = _by_seed(one for one in fitting if getattr(one.tuning, parameter) == value)
            row = {"parameter": parameter, "value": value, "branch": branch, **_figures(seeds)}
            rows.append(SweepRow.model_validate(row))
    return tuple(rows)


def _on_curve(tuning: TeacherTuning, branch: Branch) -> bool:
    return tuning.pruned_blocks == 0 or tuning.pruned_branch == branch


def _by_seed(teachers: Iterable[TunedTeacher]) -> dict[int, TunedTeacher]:
    """Seed → the tuning whose student is best on validation; the first of equals."""
    seeds: dict[int, TunedTeacher] = {}
    for teacher in teachers:
        held = seeds.get(teacher.tuning.seed)
        if held is None or teacher.choosing_error < held.choosing_error:
            seeds[teacher.tuning.seed] = teacher
    return seeds


def _figures(seeds: dict[int, TunedTeacher]) -> dict[str, float | int | None]:
    """What a row says of its students and teachers."""
    student = _interval([_student_accuracy(one) for one in seeds.values()])
    teacher = mean_interval([_teacher_accuracy(one) for one in seeds.values()])
    measured = [one.best_snapshot.information for one in seeds.values()]
    excess = [information.excess_nats for information in measured if information is not None]
    return {
        "n_seeds": len(seeds),
        "student_accuracy": student[0],
        "student_accuracy_low": student[1],
        "student_accuracy_high": student[2],
        "teacher_accuracy": teacher[0],
        "teacher_accuracy_low": teacher[1],
        "teacher_accuracy_high": teacher[2],
        "excess_nats": math.fsum(excess) / len(excess) if excess else None,
    }


def information_plane(teachers: Iterable[TunedTeacher]) -> tuple[PlanePoint, ...]:
    """Every snapshot with information and a test error; `on_front` marks the Pareto front of its setting.

    Raises:
        BadInput: their information is not comparable (other feature size, other images); names the models.
    """
    placed = [
        (teacher, snapshot)
        for teacher in teachers
        for snapshot in teacher.snapshots
        if snapshot.information is not None and snapshot.test_error is not None
    ]
    require_comparable([snapshot.information for _, snapshot in placed if snapshot.information is not None])
    front: set[int] = set()
    for setting in SETTINGS:
        members = [i for i, (teacher, _) in enumerate(placed) if teacher.setting == setting]
        front |= {members[i] for i in pareto_front([_position(placed[i][1]) for i in members])}
    return tuple(
        PlanePoint(
            setting=teacher.setting,
            seed=teacher.tuning.seed,
            lr=teacher.tuning.lr,
            rho=teacher.tuning.rho,
            mlp_weight=teacher.tuning.mlp_weight,
            stop_point=snapshot.stop_point,
            teacher_error=_position(snapshot)[0],
            excess_nats=_position(snapshot)[1],
            student_error=_best_of(snapshot),
            on_front=i in front,
        )
        for i, (teacher, snapshot) in enumerate(placed)
    )


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean over seeds with Student's t interval; no bounds for fewer than two values."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None, None
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def best_distillation(snapshot: TeacherSnapshot) -> StudentDistillation | None:
    """How the snapshot's best student on validation was distilled; the first of equals."""
    if not snapshot.students:
        return None
    return min(snapshot.students, key=lambda one: one.validation_error).distillation


def _best_of(snapshot: TeacherSnapshot) -> float | None:
    wanted = best_distillation(snapshot)
    return next((one.test_error for one in snapshot.students if one.distillation == wanted), None)


def _position(snapshot: TeacherSnapshot) -> tuple[float, float]:
    assert snapshot.test_error is not None
    assert snapshot.information is not None
    return snapshot.test_error, snapshot.information.excess_nats


def _interval(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    known = [value for value in values if value is not None]
    return mean_interval(known) if known else (None, None, None)


def _gain(teacher: TunedTeacher, baseline: TunedTeacher) -> float | None:
    accuracy, reference = _student_accuracy(teacher), _student_accuracy(baseline)
    return None if accuracy is None or reference is None else accuracy - reference


def _student_accuracy(teacher: TunedTeacher) -> float | None:
    student = teacher.best_student
    return None if student is None or student.test_error is None else 1 - student.test_error


def _teacher_accuracy(teacher: TunedTeacher) -> float:
    error = teacher.best_snapshot.test_error
    if error is None:
        raise BadInput("test_error", None, "its teacher's error on test")
    return 1 - error
