"""A study: one file that describes a zoo, pairs, methods, hyperparameters and seeds, and becomes a tree of jobs.

`StudySpec` is the file, `plan_study` its jobs, named by local keys; what they found is in
`backend.domain.study_summary`. Roth et al., arXiv:2310.17653, §5.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from backend.domain.catalog import ModelSpec
from backend.domain.datasets import DatasetSpec, Subset
from backend.domain.device_choice import Devices, one_of
from backend.domain.draws import draw_pairs
from backend.domain.errors import BadInput
from backend.domain.methods import METHODS, CeParams, control_of, parse_method, takes
from backend.domain.records import Name, Record, Seed
from backend.domain.specs import FinetuneSpec, RegisterSpec, ScanSpec, TransferSpec
from backend.domain.study_summary import CONTROL


class ZooEntry(Record):
    """A model the study makes first: described, and trained on the study's data where `train` is given.

    `train_split` and `subset` are this model's own training data, in place of the study's `zoo_train_split` and
    `zoo_subset`: models that saw different images know different things. So is `dataset`, of the same classes (another
    domain). `tune` trains the classifier alone (`head`), for pretrained models on other data.
    """

    model: ModelSpec
    train: dict[str, Any] | None = None
    dataset: Name | None = None
    train_split: Name | None = None
    subset: Subset | None = None
    tune: Literal["all", "head"] = "all"

    @model_validator(mode="after")
    def _trained(self) -> ZooEntry:
        for name in ("dataset", "train_split", "subset", "tune"):
            if self.train is None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: {self.model.name} is not trained by the study; give it `train` too")
        return self


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


SEVERAL = ("multi", "teacher_order")
"""Parameters that say how several teachers are used; with one teacher they change nothing."""

Pairs = Literal["all"] | RandomPairs | TeachersAndStudents | tuple[tuple[Name, Name], ...]


class StudySpec(Record):
    """The study file. Without `methods` it is about the pairs alone: their flips, and nothing is transferred.

    `methods` are names or objects (`{method: kl_dp, partition: unsupervised, label: "KL+DP unsup."}`); `settings` hold
    for every method that knows them, `grid` multiplies the methods. With `zoo_seeds` every seed trains its own zoo,
    else seeds only change the transfers. `teacher_sets` are for the methods that take several teachers; name their
    single teachers under `pairs` too and the summary sets several beside the best one. `controls` adds, per student,
    the same training without a teacher, for as many steps.
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
    methods: tuple[dict[str, Any], ...] = Field(default=(), max_length=200)
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
    device: Devices = "auto"

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
        own = set(ZooEntry.model_fields)
        return [
            {
                "model": {k: v for k, v in one.items() if k not in own},
                **{k: v for k, v in one.items() if k in own},
            }
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
        if not self.methods and not self.scan:
            raise ValueError("methods: name one at least; a study of pairs alone (no methods) has to scan its models")
        if not self.methods and self.teacher_sets:
            raise ValueError("teacher_sets: name a method that uses them")
        return self


@dataclass(frozen=True)
class Variant:
    """One method with one combination of the grid. `single_label` says nothing of how several teachers are used."""

    label: str
    params: Any
    single_label: str


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
        single = str(one.get("label") or _label(str(one["method"]), own, ("partition",)))
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            params = parse_method(str(one["method"]), {**shared, **own, **chosen})
            suffix = "".join(f" {key}={value}" for key, value in chosen.items())
            kept = "".join(f" {key}={value}" for key, value in chosen.items() if key not in SEVERAL)
            found.append(Variant(base + suffix, params, single + kept))
    labels = [variant.label for variant in found]
    if len(set(labels)) != len(labels):
        raise BadInput("methods", labels, "methods that differ, or a `label` for each")
    return found


def _fields(method: Mapping[str, Any]) -> set[str]:
    name = method.get("method")
    if name not in METHODS:
        raise BadInput("methods", name, f"one of {', '.join(METHODS)}")
    return set(METHODS[str(name)].model_fields) - {"method"}


def _label(method: str, own: Mapping[str, Any], named: tuple[str, ...] = ("partition", *SEVERAL)) -> str:
    return method + "".join(f" {value}" for key, value in own.items() if key in named)


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


def named_pairs(spec: StudySpec) -> list[tuple[str, str]]:
    """The ordered (teacher, student) pairs of the study's models by their names in the catalog, for every zoo.

    Raises:
        BadInput: more pairs are to be drawn than there are.
    """
    names = [*spec.models, *(entry.model.name for entry in spec.zoo)]
    trained = {entry.model.name for entry in spec.zoo if entry.train is not None and spec.zoo_seeds}
    found = [
        tuple(f"{name}-s{seed}" if name in trained else name for name in (teacher, student))
        for seed in (spec.seeds if spec.zoo_seeds else spec.seeds[:1])
        for teachers, student in pairs_of(spec, names)
        for teacher in teachers
    ]
    return [(teacher, student) for teacher, student in dict.fromkeys(found)]


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
    most = max((len(one.teachers) for one in spec.teacher_sets), default=0)
    if most and not any(takes(variant.params, most) and variant.params.min_teachers for variant in chosen):
        raise BadInput("teacher_sets", most, "a method that takes several teachers: kl, xe_kl or kl_dp")
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
        scan = ScanSpec(models=tuple(scanned), dataset=spec.dataset, split=spec.split, device=one_of(spec.device))
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
        if spec.controls and spec.labelled and chosen:
            jobs += _controls(chosen, pairs, seed, of, transfer)
        done: dict[str, str] = {}
        for variant in chosen:
            for teachers, student in pairs:
                if not takes(variant.params, len(teachers)):
                    continue
                label, params = _of_transfer(variant, teachers, seed)
                taught_by = tuple(of(t, seed) for t in teachers) if params.min_teachers else ()
                shown = f"{'+'.join(taught_by) or 'alone'} > {of(student, seed)} | seed {seed}"
                what = f"{shown} | {params.model_dump_json()}"
                if what in done:  # a method without a teacher, or several ways of using several teachers, with one
                    continue
                if f"{label} | {shown}" in done.values():
                    label = variant.label
                done[what] = f"{label} | {shown}"
                jobs.append(transfer(done[what], taught_by, of(student, seed), params))
    return jobs


def _of_transfer(variant: Variant, teachers: tuple[str, ...], seed: int) -> tuple[str, Any]:
    """Label and params of one transfer: with one teacher nothing is said of several, with several how many."""
    params = variant.params.model_copy(update={"seed": seed})
    if len(teachers) > 1 and params.min_teachers:
        return f"{variant.label} ×{len(teachers)}", params
    defaults = {name: type(params).model_fields[name].default for name in SEVERAL if hasattr(params, name)}
    return variant.single_label, params.model_copy(update=defaults)


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
            dataset=entry.dataset or spec.dataset,
            train_split=entry.train_split or (None if entry.dataset else spec.zoo_train_split or spec.train_split),
            split=None if entry.dataset else spec.split,
            subset=entry.subset or spec.zoo_subset,
            tune=entry.tune,
            params=params,
            save_as=name,
            device=spec.device,
        )
        jobs.append(StudyChild(f"model/{base.name}", "register", RegisterSpec(model=base)))
        jobs.append(StudyChild(f"zoo/{name}", "finetune", training, (f"model/{base.name}", *data)))
        made[name] = (f"zoo/{name}",)
    return jobs


def _controls(chosen: Sequence[Variant], pairs: Sequence[Any], seed: int, of: Any, transfer: Any) -> list[StudyChild]:
    """The same students, data, steps and optimizer without a teacher: one per student and distinct training."""
    trainings: dict[str, tuple[CeParams, list[str]]] = {}
    for variant in chosen:
        for teachers, student in pairs:
            if not takes(variant.params, len(teachers)):
                continue
            params = control_of(variant.params.model_copy(update={"seed": seed}), len(teachers))
            _, students = trainings.setdefault(params.model_dump_json(), (params, []))
            if student not in students:
                students.append(student)
    several = [params for params, _ in trainings.values()]
    apart = [name for name in CeParams.model_fields if len({getattr(params, name) for params in several}) > 1]
    jobs = []
    for params, students in trainings.values():
        suffix = "".join(f" {name}={getattr(params, name)}" for name in apart)
        for student in students:
            key = f"{CONTROL}{suffix} | alone > {of(student, seed)} | seed {seed}"
            jobs.append(transfer(key, (), of(student, seed), params))
    return jobs
