"""A KDEP study: pre-trainings by several methods, teachers, amounts of data and seeds, measured on the same
downstream sets.

`KdepStudySpec` is the file, `plan_kdep_study` its jobs, `summarise_kdep` what they say: the figures and tables of He et
al., CVPR 2022 (figure 1 is accuracy over data and epochs; tables 1-9 are methods, teachers, transforms and their
settings). Differences between methods are paired over teacher, share and seed; intervals are Student's t.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from backend.domain.catalog import ModelSpec
from backend.domain.datasets import DatasetSpec, Subset
from backend.domain.device_choice import Device
from backend.domain.errors import BadInput
from backend.domain.kdep import (
    LEARNABLE_ALIGNS,
    DownstreamParams,
    DownstreamSource,
    Estimate,
    KdepParams,
    KdepSpec,
    estimate,
)
from backend.domain.records import Fraction, Name, Record, Seed, bad_input
from backend.domain.specs import RegisterSpec
from backend.domain.studies import StudyChild

Share = Annotated[float, Field(gt=0, le=1)]


class KdepStudySpec(Record):
    """The study file.

    `methods` are settings of `KdepParams`, each with a `label`; `settings` hold for all of them, `grid` multiplies
    those to which it matters. The student is described, not named: every seed draws its own initial weights. `shares`
    of the images are an axis too.
    """

    study: Literal["kdep"] = "kdep"
    name: Name
    description: str = Field(default="", max_length=10_000)
    datasets: tuple[DatasetSpec, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    student: ModelSpec
    teachers: tuple[Name, ...] = Field(default=(), max_length=64)
    dataset: Name
    train_split: Name | None = None
    shares: tuple[Share, ...] = Field(default=(1.0,), min_length=1, max_length=64)
    methods: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=200)
    settings: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1, max_length=100)
    downstream: tuple[DownstreamSource, ...] = Field(min_length=1, max_length=64)
    downstream_params: DownstreamParams = DownstreamParams()
    device: Device = "auto"

    @model_validator(mode="after")
    def _fits(self) -> KdepStudySpec:
        labels = [method.get("label") for method in self.methods]
        if not all(isinstance(label, str) and label for label in labels) or len(set(labels)) != len(labels):
            raise ValueError("methods: give each its own label")
        for field, values in (("seeds", self.seeds), ("shares", self.shares), ("teachers", self.teachers)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: a value is given twice")
        return self


def is_kdep_study(content: Any) -> bool:
    """Whether this is a KDEP study's file or stored spec (`study: kdep`)."""
    return isinstance(content, (Mapping, KdepStudySpec)) and dict(content).get("study") == "kdep"


def method_labels(spec: KdepStudySpec) -> dict[str, str]:
    """Label → the method's own, without what the grid adds."""
    return {_label(method, chosen): str(method["label"]) for method in spec.methods for chosen in _cells(spec, method)}


_OF_PTS = {"pts_temperature", "pts_exponent"}
_OF_FEATURES = {"align", "transform", "loss_weight", "narrow_teacher", "layers", "layer_weight", *_OF_PTS}
_UNUSED: dict[str, set[str]] = {
    "features": {"kd_temperature"},
    "logits": _OF_FEATURES,
    "supervised": {"kd_temperature", "views", *_OF_FEATURES},
    "none": set(KdepParams.model_fields),
}


def _cells(spec: KdepStudySpec, method: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the grid's axes that the method leaves open and makes use of: random initialisation is run
    once, whatever is varied."""
    fixed = {**spec.settings, **method}
    unused: set[str] = set()
    if "method" in method or "method" not in spec.grid:
        unused = _UNUSED.get(str(fixed.get("method", "features")), set())
        if "align" not in spec.grid and fixed.get("align") in LEARNABLE_ALIGNS:
            unused = unused | {"transform", "narrow_teacher", *_OF_PTS}
        elif "transform" not in spec.grid and fixed.get("transform", "pts") != "pts":
            unused = unused | _OF_PTS
    axes = {name: values for name, values in spec.grid.items() if name not in method and name not in unused}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _label(method: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    return str(method["label"]) + "".join(f" {name}={value}" for name, value in chosen.items())


def kdep_variants(spec: KdepStudySpec) -> dict[str, KdepParams]:
    """Label → params: every method with every combination of the grid that it leaves open.

    Raises:
        BadInput: an unknown setting, or a value out of bounds.
    """
    found: dict[str, KdepParams] = {}
    for method in spec.methods:
        own = {name: value for name, value in method.items() if name != "label"}
        for chosen in _cells(spec, method):
            label = _label(method, chosen)
            try:
                found[label] = KdepParams.model_validate({**spec.settings, **own, **chosen})
            except ValidationError as error:
                raise bad_input(error, f"methods.{label}") from None
    return found


def plan_kdep_study(spec: KdepStudySpec) -> list[StudyChild]:
    """The jobs: data sets, models, one untrained student a seed, and the pre-trainings behind them.

    A method without teacher runs once for each share and seed, whatever the teachers.

    Raises:
        BadInput: settings that cannot be, or a method that needs a teacher where there is none.
    """
    jobs = [StudyChild(f"dataset/{one.name}", "register", RegisterSpec(dataset=one)) for one in spec.datasets]
    jobs += [StudyChild(f"model/{one.name}", "register", RegisterSpec(model=one)) for one in spec.models]
    for seed in spec.seeds:
        untrained = spec.student.model_copy(update={"name": _student(spec, seed), "init_seed": seed})
        jobs.append(StudyChild(f"student/{seed}", "register", RegisterSpec(model=untrained)))
    first = tuple(job.key for job in jobs)
    for (label, params), share, seed in itertools.product(kdep_variants(spec).items(), spec.shares, spec.seeds):
        taught = params.method in ("features", "logits")
        if taught and not spec.teachers:
            raise BadInput("teachers", [], f"at least one, because {label!r} needs a teacher")
        for teacher in spec.teachers if taught else (None,):
            child = KdepSpec(
                teacher=teacher,
                student=_student(spec, seed),
                dataset=spec.dataset,
                params=params.model_copy(update={"seed": seed}),
                train_split=spec.train_split,
                subset=Subset(share=None if share == 1.0 else share, seed=seed),
                downstream=spec.downstream,
                downstream_params=spec.downstream_params,
                device=spec.device,
            )
            key = f"{label} | {teacher or 'alone'} | {share:g} | seed {seed}"
            jobs.append(StudyChild(key, "kdep", child, first))
    return jobs


def _student(spec: KdepStudySpec, seed: int) -> str:
    return f"{spec.student.name}-s{seed}"


class KdepRow(Record):
    """One finished pre-training. Scores are fractions: each set's mean over fine-tuning seeds, and their average over
    the sets of classification (over all, where there are none).

    `method` is the label in the file, `label` the same with what the grid adds. Time: `images_seen` is epochs ×
    samples, what the paper counts; `job_s` is what the job took here from its first start to its end, teacher and
    fine-tunings included.
    """

    job_id: str
    method: str
    label: str
    teacher: Name | None
    share: Share
    seed: Seed
    epochs: int
    n_samples: int
    images_seen: int
    job_s: float | None = None
    average: Fraction
    sets: dict[str, Fraction]
    metrics: dict[str, str] = Field(default_factory=dict)
    lrs: dict[str, float]
    loss_last: float | None = None
    variance_share: Fraction | None = None
    std_ratio_before: float | None = None
    std_ratio_after: float | None = None


class KdepSummary(Record):
    """One method with one teacher on one share of the data, over seeds: a point of figure 1, a line of the tables.

    `images_seen` and `job_s` are means over seeds.
    """

    method: str
    label: str
    teacher: Name | None
    share: Share
    epochs: int
    images_seen: int
    job_s: float | None = None
    average: Estimate
    sets: dict[str, Estimate]
    metrics: dict[str, str] = Field(default_factory=dict)


class KdepDifference(Record):
    """`label` − `baseline` on the downstream average at one share, paired by seed (and by teacher, where both have
    one)."""

    label: str
    baseline: str
    teacher: Name | None
    share: Share = 1.0
    difference: Estimate


class KdepTable(Record):
    """The whole result of a KDEP study."""

    rows: tuple[KdepRow, ...]
    summaries: tuple[KdepSummary, ...]
    differences: tuple[KdepDifference, ...]
    n_failed: int = 0
    n_open: int = 0


def kdep_row(
    job_id: str,
    label: str,
    spec: Mapping[str, Any],
    result: Mapping[str, Any],
    *,
    method: str | None = None,
    job_s: float | None = None,
) -> KdepRow:
    """One row from a KDEP job's spec and result; `method` is the label without what a grid added to it."""
    downstream = result["downstream"]
    alignment = (result.get("alignments") or [{}])[0]
    trained = spec["params"].get("method") != "none"
    return KdepRow(
        job_id=job_id,
        method=method or label,
        label=label,
        teacher=result.get("teacher"),
        share=(spec.get("subset") or {}).get("share") or 1.0,
        seed=spec["params"]["seed"],
        epochs=spec["params"]["epochs"],
        n_samples=result["n_samples"],
        images_seen=spec["params"]["epochs"] * result["n_samples"] if trained else 0,
        job_s=job_s,
        average=downstream["average"]["mean"],
        sets={one["dataset"]: one["test"]["mean"] for one in downstream["sets"]},
        metrics={one["dataset"]: one.get("metric", "top1") for one in downstream["sets"]},
        lrs={one["dataset"]: one["lr"] for one in downstream["sets"]},
        loss_last=result.get("loss_last"),
        **{name: alignment.get(name) for name in ("variance_share", "std_ratio_before", "std_ratio_after")},
    )


def summarise_kdep(rows: Iterable[KdepRow], n_failed: int = 0, n_open: int = 0) -> KdepTable:
    """Estimates over seeds for every method, teacher and share, and all paired differences of the first method."""
    listed = list(rows)
    groups: dict[tuple[str, str | None, float], list[KdepRow]] = {}
    for row in listed:
        groups.setdefault((row.label, row.teacher, row.share), []).append(row)
    summaries = []
    for (label, teacher, share), found in groups.items():
        names = [name for name in found[0].sets if all(name in row.sets for row in found)]
        summaries.append(
            KdepSummary(
                method=found[0].method,
                label=label,
                teacher=teacher,
                share=share,
                epochs=found[0].epochs,
                images_seen=round(sum(row.images_seen for row in found) / len(found)),
                job_s=_mean([row.job_s for row in found]),
                average=estimate([row.average for row in found]),
                sets={name: estimate([row.sets[name] for row in found]) for name in names},
                metrics={name: found[0].metrics[name] for name in names if name in found[0].metrics},
            )
        )
    return KdepTable(
        rows=tuple(listed),
        summaries=tuple(summaries),
        differences=tuple(_differences(listed)),
        n_failed=n_failed,
        n_open=n_open,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _differences(rows: Sequence[KdepRow]) -> Iterable[KdepDifference]:
    """The first label minus each other one, on every share alone: over shares the same seed would count twice."""
    labels = list(dict.fromkeys(row.label for row in rows))
    if not labels:
        return
    first = [row for row in rows if row.label == labels[0]]
    for baseline in labels[1:]:
        for teacher, share in dict.fromkeys((row.teacher, row.share) for row in first):
            theirs = {
                row.seed: row.average
                for row in rows
                if row.label == baseline and row.share == share and row.teacher in (teacher, None)
            }
            mine = {row.seed: row.average for row in first if (row.teacher, row.share) == (teacher, share)}
            paired = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
            if paired:
                yield KdepDifference(
                    label=labels[0], baseline=baseline, teacher=teacher, share=share, difference=estimate(paired)
                )
