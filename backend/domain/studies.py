"""A study: one file that describes a zoo, pairs, methods, hyperparameters and seeds, and becomes a tree of jobs.

`StudySpec` is the file. `children` turns it into jobs (named by local keys), `StudyRow` is one finished transfer and
`summarise` what a study says: success rates (share of transfers with Δ > 0), mean Δ, the no-teacher control beside
every method, and paired differences between methods, with 95 % intervals (10,000 bootstrap draws of the transfers,
seed 0). Roth et al., arXiv:2310.17653, §5.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from backend.domain.catalog import ModelSpec
from backend.domain.datasets import DatasetSpec, Subset
from backend.domain.draws import draw_pairs
from backend.domain.errors import BadInput
from backend.domain.intervals import bootstrap_mean, wilson_interval
from backend.domain.methods import METHODS, CeParams, TrainingParams, parse_method
from backend.domain.records import Name, Record, Seed
from backend.domain.specs import Device, FinetuneSpec, RegisterSpec, ScanSpec, TransferSpec

CONTROL = "control"


class ZooEntry(Record):
    """A model the study makes first: described, and trained on the study's data where `train` is given."""

    model: ModelSpec
    train: dict[str, Any] | None = None


class RandomPairs(Record):
    """`random` ordered pairs of the study's models, drawn with `seed` without replacement."""

    random: Annotated[int, Field(ge=1, le=100_000)]
    seed: Seed = 0


class TeachersAndStudents(Record):
    """Every teacher with every student."""

    teachers: tuple[Name, ...] = Field(min_length=1)
    students: tuple[Name, ...] = Field(min_length=1)


class TeacherSet(Record):
    """Several teachers for one student."""

    teachers: tuple[Name, ...] = Field(min_length=1, max_length=64)
    student: Name


Pairs = Literal["all"] | RandomPairs | TeachersAndStudents | tuple[tuple[Name, Name], ...]


class StudySpec(Record):
    """The study file.

    `methods` are names or objects (`{method: kl_dp, partition: unsupervised, label: "KL+DP unsup."}`); `settings` hold
    for every method that knows them, `grid` multiplies the methods. With `zoo_seeds` every seed trains its own zoo,
    else seeds only change the transfers. `controls` adds, per student, the same training without a teacher.
    """

    kind: Literal["study"] = "study"
    name: Name
    description: str = Field(default="", max_length=10_000)
    datasets: tuple[DatasetSpec, ...] = ()
    dataset: Name
    zoo: tuple[ZooEntry, ...] = ()
    zoo_seeds: bool = False
    zoo_train_split: Name | None = None
    zoo_subset: Subset = Subset()
    models: tuple[Name, ...] = ()
    pairs: Pairs = "all"
    teacher_sets: tuple[TeacherSet, ...] = ()
    methods: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=200)
    settings: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, max_length=100)
    controls: bool = True
    train_split: Name | None = None
    split: Name | None = None
    subset: Subset | None = None
    labelled: bool = True
    scan: bool = True
    save_students: bool = False
    device: Device = "auto"

    @field_validator("methods", mode="before")
    @classmethod
    def _named(cls, methods: Any) -> Any:
        if isinstance(methods, (list, tuple)):
            return [{"method": one} if isinstance(one, str) else one for one in methods]
        return methods

    @field_validator("zoo", mode="before")
    @classmethod
    def _flat_entries(cls, zoo: Any) -> Any:
        """`{name: …, architecture: …, train: {…}}` is read as a model and its training."""
        if not isinstance(zoo, (list, tuple)):
            return zoo
        return [
            {"model": {k: v for k, v in one.items() if k != "train"}, "train": one.get("train")}
            if isinstance(one, dict) and "model" not in one
            else one
            for one in zoo
        ]

    @model_validator(mode="after")
    def _something_to_pair(self) -> StudySpec:
        names = [*self.models, *(entry.model.name for entry in self.zoo)]
        if len(set(names)) != len(names):
            raise ValueError("models: a name is given twice")
        if not names and isinstance(self.pairs, (str, RandomPairs)):
            raise ValueError("models: name at least two models, or describe them under zoo")
        return self


@dataclass(frozen=True)
class Variant:
    """One method with one combination of the grid."""

    label: str
    params: Any


@dataclass(frozen=True)
class StudyChild:
    """One job of the study, before it has an id."""

    key: str
    kind: str
    spec: Record
    after: tuple[str, ...] = ()


def variants(spec: StudySpec) -> list[Variant]:
    """Every method of the study with every combination of the grid that it knows, labelled apart.

    Raises:
        BadInput: a method or setting that does not exist; a shared setting or grid that no method knows.
    """
    known = {name for one in spec.methods for name in _fields(one)}
    for name in (*spec.settings, *spec.grid):
        if name not in known:
            raise BadInput("settings", name, "a parameter that one of the study's methods has")
    found: list[Variant] = []
    for one in spec.methods:
        fields = _fields(one)
        own = {key: value for key, value in one.items() if key not in ("method", "label")}
        shared = {key: value for key, value in spec.settings.items() if key in fields}
        axes = {key: values for key, values in spec.grid.items() if key in fields and key not in own}
        base = str(one.get("label") or _label(str(one["method"]), own))
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            params = parse_method(str(one["method"]), {**shared, **own, **chosen})
            suffix = "".join(f" {key}={value}" for key, value in chosen.items())
            found.append(Variant(base + suffix, params))
    labels = [variant.label for variant in found]
    if len(set(labels)) != len(labels):
        raise BadInput("methods", labels, "methods that differ, or a `label` for each")
    return found


def _fields(method: Mapping[str, Any]) -> set[str]:
    name = method.get("method")
    if name not in METHODS:
        raise BadInput("methods", name, f"one of {', '.join(METHODS)}")
    return set(METHODS[str(name)].model_fields) - {"method"}


def _label(method: str, own: Mapping[str, Any]) -> str:
    return method + "".join(f" {value}" for key, value in own.items() if key in ("partition", "multi"))


def pairs_of(spec: StudySpec, names: Sequence[str]) -> list[tuple[tuple[str, ...], str]]:
    """(teachers, student) of every transfer, in a fixed order."""
    if isinstance(spec.pairs, RandomPairs):
        drawn = [((t,), s) for t, s in draw_pairs(names, spec.pairs.random, spec.pairs.seed)]
    elif isinstance(spec.pairs, TeachersAndStudents):
        drawn = [((t,), s) for s in spec.pairs.students for t in spec.pairs.teachers if t != s]
    elif spec.pairs == "all":
        drawn = [((t,), s) for s in names for t in names if t != s]
    else:
        drawn = [((t,), s) for t, s in spec.pairs if isinstance(spec.pairs, tuple)]
    return [*drawn, *((one.teachers, one.student) for one in spec.teacher_sets)]


def plan_study(spec: StudySpec) -> list[StudyChild]:
    """The study's jobs: data sets, zoo, scan, controls, transfers; `after` keeps each behind what it needs.

    Raises:
        BadInput: a method, setting or pair that cannot be.
    """
    chosen = variants(spec)
    names = [*spec.models, *(entry.model.name for entry in spec.zoo)]
    jobs = [StudyChild(f"dataset/{one.name}", "register", RegisterSpec(dataset=one)) for one in spec.datasets]
    data = tuple(job.key for job in jobs)
    pairs = pairs_of(spec, names)
    unknown = {name for teachers, student in pairs for name in (*teachers, student)} - set(names)
    if unknown and not isinstance(spec.pairs, TeachersAndStudents):
        raise BadInput("pairs", sorted(unknown)[0], f"one of the study's models: {', '.join(names)}")
    trained = {entry.model.name for entry in spec.zoo if entry.train is not None}
    made: dict[str, tuple[str, ...]] = {}
    zoo_seeds = spec.seeds if spec.zoo_seeds else spec.seeds[:1]
    for entry in spec.zoo:
        jobs += _make(spec, entry, zoo_seeds, data, made)

    def of(name: str, seed: int) -> str:
        return f"{name}-s{seed}" if name in trained and spec.zoo_seeds else name

    if spec.scan and names:
        scanned = [of(name, seed) for seed in zoo_seeds for name in names]
        scanned = list(dict.fromkeys(scanned))
        needs = tuple(dict.fromkeys(key for name in scanned for key in made.get(name, data)))
        scan = ScanSpec(models=tuple(scanned), dataset=spec.dataset, split=spec.split, device=spec.device)
        jobs.append(StudyChild("scan", "scan", scan, needs))

    def transfer(key: str, teachers: tuple[str, ...], student: str, params: Any) -> StudyChild:
        needs = tuple(dict.fromkeys(k for name in (*teachers, student) for k in made.get(name, data)))
        return StudyChild(
            key,
            "transfer",
            TransferSpec(
                teachers=teachers,
                student=student,
                dataset=spec.dataset,
                method=params,
                train_split=spec.train_split,
                split=spec.split,
                subset=spec.subset,
                labelled=spec.labelled,
                control=False,
                save=spec.save_students,
                device=spec.device,
            ),
            needs,
        )

    for seed in spec.seeds:
        if spec.controls and spec.labelled:
            jobs += _controls(spec, chosen, pairs, seed, of, transfer)
        for variant in chosen:
            params = variant.params.model_copy(update={"seed": seed})
            alone: set[str] = set()
            for teachers, student in pairs:
                taught_by = teachers if params.min_teachers else ()
                if not taught_by and student in alone:
                    continue
                alone.add(student)
                shown = "+".join(of(name, seed) for name in taught_by) or "alone"
                key = f"{variant.label} | {shown} > {of(student, seed)} | seed {seed}"
                jobs.append(transfer(key, tuple(of(t, seed) for t in taught_by), of(student, seed), params))
    return jobs


def _make(
    spec: StudySpec, entry: ZooEntry, seeds: Sequence[int], data: tuple[str, ...], made: dict[str, tuple[str, ...]]
) -> list[StudyChild]:
    """Register (and train) one zoo entry, once or once a seed."""
    if entry.train is None:
        key = f"model/{entry.model.name}"
        made[entry.model.name] = (key, *data)
        return [StudyChild(key, "register", RegisterSpec(model=entry.model))]
    jobs = []
    for seed in seeds:
        name = f"{entry.model.name}-s{seed}" if spec.zoo_seeds else entry.model.name
        base = entry.model.model_copy(update={"name": f"{name}-init", "init_seed": seed if spec.zoo_seeds else 0})
        settings = {**entry.train, **({"seed": seed} if spec.zoo_seeds else {})}
        params = CeParams.model_validate({**parse_method("ce", {"augment": "none", **settings}).model_dump()})
        training = FinetuneSpec(
            model=base.name,
            dataset=spec.dataset,
            train_split=spec.zoo_train_split or spec.train_split,
            split=spec.split,
            subset=spec.zoo_subset,
            params=params,
            save_as=name,
            device=spec.device,
        )
        jobs.append(StudyChild(f"model/{base.name}", "register", RegisterSpec(model=base)))
        jobs.append(StudyChild(f"zoo/{name}", "finetune", training, (f"model/{base.name}", *data)))
        made[name] = (f"zoo/{name}",)
    return jobs


def _controls(
    spec: StudySpec, chosen: Sequence[Variant], pairs: Sequence[Any], seed: int, of: Any, transfer: Any
) -> list[StudyChild]:
    """The same students, data, steps and optimizer without a teacher: one per student and distinct training."""
    trainings: dict[str, CeParams] = {}
    for variant in chosen:
        shared = {name: getattr(variant.params, name) for name in TrainingParams.model_fields}
        control = CeParams(**{**shared, "seed": seed})
        trainings.setdefault(control.model_dump_json(), control)
    students = list(dict.fromkeys(student for _, student in pairs))
    jobs = []
    for number, params in enumerate(trainings.values()):
        suffix = "" if len(trainings) == 1 else f" {number + 1}"
        for student in students:
            key = f"{CONTROL}{suffix} | alone > {of(student, seed)} | seed {seed}"
            jobs.append(transfer(key, (), of(student, seed), params))
    return jobs


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
    """What a study says about one method. Success: Δ > 0; Δ = 0 is failure. `_low`, `_high`: 95 %."""

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


class StudyTable(Record):
    """The whole result: one row a transfer, one summary a method, all paired differences."""

    rows: tuple[StudyRow, ...]
    methods: tuple[MethodSummary, ...]
    differences: tuple[MethodDifference, ...]
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
    """Every row with the Δ of its control: the same student, seed and training without a teacher."""
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
    return tuple(str(row.params.get(name)) for name in sorted(TrainingParams.model_fields))


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
    return StudyTable(rows=tuple(listed), methods=methods, differences=differences, n_failed=n_failed, n_open=n_open)


def _summary(label: str, rows: Sequence[StudyRow]) -> MethodSummary:
    deltas = np.array([row.transfer_delta for row in rows])
    wins = deltas > 0
    low, high = wilson_interval(int(wins.sum()), len(wins))
    mean, mean_low, mean_high = _mean_interval(deltas)
    by_student: dict[str, list[bool]] = {}
    for row, win in zip(rows, wins, strict=True):
        by_student.setdefault(row.student, []).append(bool(win))
    above = np.array([row.delta_above_control for row in rows if row.delta_above_control is not None])
    weaker = np.array([row.transfer_delta for row in rows if (row.accuracy_difference or 0.0) < 0])
    extra: dict[str, Any] = {}
    if len(above):
        names = ("mean_delta_above_control", "mean_delta_above_control_low", "mean_delta_above_control_high")
        extra |= dict(zip(names, _mean_interval(above), strict=True))
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


def _mean_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean, and the 95 % percentiles of the mean over bootstrap draws of the values."""
    interval, _ = bootstrap_mean(values)
    return float(np.mean(values)), interval.low, interval.high
