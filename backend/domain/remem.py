"""ReMem as a request: how a teacher is prepared, measured and distilled (Dong et al., arXiv:2506.23041).

rho ρ: radius of SAM; mlp_weight α: weight of the MLP branches (Eq. 2). What comes out is in `remem_results`.
"""

from __future__ import annotations

import itertools
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from backend.domain.datasets import Subset
from backend.domain.device_choice import Device
from backend.domain.methods import Augment, TrainingParams
from backend.domain.records import Fraction, Name, Record, Seed

Metric = Literal["top1", "mean_per_class"]
Setting = Literal["baseline", "sam", "reweight", "both"]
Branch = Literal["mlp", "attention"]
SETTINGS: tuple[Setting, ...] = ("baseline", "sam", "reweight", "both")

TEACHER_LR_GRID = (0.005, 0.01, 0.05, 0.1, 0.5)
STOP_POINTS = (500, 700, 1_000, 3_000, 5_000, 7_000, 10_000)
RHO_GRID = (0.5, 0.05, 0.005)
MLP_WEIGHT_GRID = (0.8, 0.9)
KD_LR_GRID = (0.05, 0.1, 0.5)
DIST_LR_GRID = (0.5, 0.7, 1.0)
TEMPERATURE_GRID = (1.0, 2.0, 4.0)
KD_WEIGHT_GRID = (0.1, 0.5, 0.9)

LearningRate = Annotated[float, Field(gt=0, le=100)]
Steps = Annotated[int, Field(ge=1, le=10**8)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Temperature = Annotated[float, Field(gt=0, le=1_000)]
BranchWeight = Annotated[float, Field(gt=0, lt=2)]


class LoraParams(Record):
    """Low-rank updates of the q and v projections; the update is (scale / rank) · B A."""

    rank: int = Field(default=32, ge=1, le=4_096)
    scale: float = Field(default=32.0, gt=0, le=10_000)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TeacherTuning(Record):
    """How a pretrained teacher is fine-tuned: SGD, cosine with warm-up over `steps`, snapshots at `stop_points`.

    `rho` 0 is plain SGD, `mlp_weight` and `attention_weight` 1 the stock model; both at once is the baseline.
    `pruned_blocks` leaves `pruned_branch` out of that many blocks from the top (Fig. 4).
    """

    tune: Literal["full", "lora", "adapters"] = "full"
    lr: LearningRate = 0.01
    rho: float = Field(default=0.0, ge=0, le=10)
    adaptive: bool = False
    mlp_weight: BranchWeight = 1.0
    attention_weight: BranchWeight = 1.0
    pruned_branch: Branch = "mlp"
    pruned_blocks: int = Field(default=0, ge=0, le=10_000)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    batch_size: BatchSize = 512
    steps: Steps = 10_000
    warmup_steps: int = Field(default=500, ge=0, le=10**8)
    clip_norm: float | None = Field(default=1.0, gt=0, le=1e6)
    zero_init_head: bool = True
    stop_points: tuple[Steps, ...] = Field(default=STOP_POINTS, min_length=1, max_length=1_000)
    lora: LoraParams = LoraParams()
    adapter_reduction: int = Field(default=16, ge=1, le=4_096)
    augment: Augment = "paper"
    amp: bool = False
    seed: Seed = 0

    @model_validator(mode="after")
    def _stops_fit(self) -> TeacherTuning:
        if tuple(sorted(set(self.stop_points))) != self.stop_points:
            raise ValueError("stop_points: must rise, each named once")
        if self.stop_points[-1] > self.steps:
            raise ValueError(f"stop_points: {self.stop_points[-1]} lies beyond the last of {self.steps} steps")
        if self.warmup_steps >= self.steps:
            raise ValueError("warmup_steps: must be fewer than steps")
        return self

    @property
    def training(self) -> TrainingParams:
        """What `fit` needs to know; one cosine over all steps, the stop points are its snapshots."""
        return TrainingParams(
            steps=self.steps,
            batch_size=self.batch_size,
            lr=float(self.lr),
            momentum=float(self.momentum),
            weight_decay=float(self.weight_decay),
            schedule="cosine",
            warmup_steps=self.warmup_steps,
            grad_clip=self.clip_norm,
            seed=self.seed,
            augment=self.augment,
            amp=self.amp,
        )

    @property
    def setting(self) -> Setting:
        """Which of the four settings of Table 1 this is."""
        reweighted = (self.mlp_weight, self.attention_weight) != (1.0, 1.0)
        return ("both" if reweighted else "sam") if self.rho > 0 else "reweight" if reweighted else "baseline"


class StudentDistillation(Record):
    """How a student learns from a prepared teacher: (1 − kd_weight) · CE + kd_weight · distillation.

    `patient` is KL alone on mixed images, teacher and student on one view (Beyer et al.), with a long schedule.
    """

    method: Literal["kd", "dist", "patient"] = "kd"
    lr: LearningRate = 0.1
    temperature: Temperature = 1.0
    kd_weight: Fraction = 0.9
    inter_weight: float = Field(default=1.0, ge=0, le=1_000)
    intra_weight: float = Field(default=1.0, ge=0, le=1_000)
    mixup_alpha: float = Field(default=1.0, gt=0, le=1_000)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0, le=10)
    batch_size: BatchSize = 512
    steps: Steps = 20_000
    warmup_steps: int = Field(default=500, ge=0, le=10**8)
    augment: Augment = "paper"
    amp: bool = False
    seed: Seed = 0

    @model_validator(mode="after")
    def _warmup_fits(self) -> StudentDistillation:
        if self.warmup_steps >= self.steps:
            raise ValueError("warmup_steps: must be fewer than steps")
        return self

    @property
    def training(self) -> TrainingParams:
        """What `fit` needs to know: SGD, warm-up, then cosine."""
        return TrainingParams(
            steps=self.steps,
            batch_size=self.batch_size,
            lr=float(self.lr),
            momentum=float(self.momentum),
            weight_decay=float(self.weight_decay),
            schedule="cosine",
            warmup_steps=self.warmup_steps,
            seed=self.seed,
            augment=self.augment,
            amp=self.amp,
        )


class InformationParams(Record):
    """The reconstruction decoder of A.5: AdamW, `updates` steps, scored on held-out images."""

    updates: Steps = 2_000
    batch_size: BatchSize = 64
    lr: LearningRate = 1e-3
    weight_decay: float = Field(default=1e-4, ge=0, le=10)
    images: int = Field(default=2_000, ge=2, le=10**7)
    heldout_images: int = Field(default=500, ge=1, le=10**7)
    cache_bytes: int = Field(default=4 * 2**30, ge=0)
    seed: Seed = 0


class ExpertnessParams(Record):
    """Co-cluster expertness of every MLP block; `clusters` None is the number of classes."""

    images: int = Field(default=2_000, ge=2, le=10**7)
    clusters: int | None = Field(default=None, ge=1, le=100_000)
    batch_size: BatchSize = 64
    activation_bits: int = Field(default=32, ge=1, le=64)
    seed: Seed = 0


class CriticalityParams(Record):
    """Neuron criticality (C.2): which MLP neurons change the pre-logits most when off, and for which images."""

    images: int = Field(default=32, ge=1, le=10**6)
    blocks: tuple[Annotated[int, Field(ge=0, le=10_000)], ...] | None = None
    candidates: int | None = Field(default=256, ge=1, le=10**6)
    top_neurons: int = Field(default=10, ge=1, le=10_000)
    top_images: int = Field(default=9, ge=1, le=1_000)
    pictures: int = Field(default=3, ge=0, le=1_000, description="neurons a block to draw by gradient ascent")
    picture_steps: int = Field(default=128, ge=1, le=100_000)
    batch_size: BatchSize = 256
    seed: Seed = 0


class RememParams(Record):
    """The protocol: teachers tuned each way listed, a student distilled from each snapshot in each way listed.

    Selection happens on a validation split of `validation_share` of train; test is scored after every choice is made.

    Short forms, for the command line: the fields of a tuning (`rho=0.05`), of a distillation with the prefix `student_`
    (`student_lr=0.5`), of the measurements with `information_` and `expertness_`; `settings` ("all", or names joined by
    commas) for the paper's settings; `seeds` (how many, or a list) to repeat each tuning. Numbers joined by commas
    (`lr="0.01,0.05"`, `student_temperature="1,2,4"`, `stop_points="500,1000"`) make a grid, and so do words
    (`tune="full,lora"`, `pruned_branch="mlp,attention"`, `student_method="kd,dist"`).
    """

    tunings: tuple[TeacherTuning, ...] = Field(default=(TeacherTuning(),), min_length=1, max_length=1_000)
    distillations: tuple[StudentDistillation, ...] = Field(default=(StudentDistillation(),), max_length=1_000)
    information: InformationParams | None = InformationParams()
    expertness: ExpertnessParams | None = None
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    metric: Metric | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        return expand(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _all_different(self) -> RememParams:
        for field in ("tunings", "distillations"):
            if len(set(getattr(self, field))) != len(getattr(self, field)):
                raise ValueError(f"{field}: one is listed twice")
        return self


LISTED = ("lr", "rho", "mlp_weight", "attention_weight", "pruned_blocks", "temperature", "kd_weight")
LISTED_WORDS = ("tune", "pruned_branch", "method")
DEFAULT_RHO = 0.05
DEFAULT_MLP_WEIGHT = 0.8


def expand(given: dict[str, Any]) -> dict[str, Any]:
    """`RememParams` from its short forms; what is spelled out already is left as it is."""
    params = dict(given)
    tuning = _take(params, TeacherTuning)
    if isinstance(tuning.get("stop_points"), (str, int)):
        tuning["stop_points"] = [int(stop) for stop in str(tuning["stop_points"]).split(",")]
    if "steps" in tuning and "stop_points" not in tuning:
        tuning["stop_points"] = [stop for stop in STOP_POINTS if stop < tuning["steps"]] + [tuning["steps"]]
    settings, seeds = params.pop("settings", None), params.pop("seeds", None)
    if tuning or settings is not None or seeds is not None:
        if "tunings" in params:
            raise ValueError("tunings: give either tunings or their short forms")
        numbers = range(seeds) if isinstance(seeds, int) else _values(seeds or tuning.get("seed", 0), int)
        cells = [_plain({**cell, **change}) for cell in _grid(tuning) for change in _settings(settings, cell)]
        unique = {json.dumps(cell, sort_keys=True): cell for cell in cells}
        params["tunings"] = [{**cell, "seed": seed} for seed in numbers for cell in unique.values()]
    student = _take(params, StudentDistillation, "student_")
    if student:
        if "distillations" in params:
            raise ValueError("distillations: give either distillations or their short forms")
        params["distillations"] = _grid(student)
    for field, record in (("information", InformationParams), ("expertness", ExpertnessParams)):
        short = _take(params, record, f"{field}_")
        if params.get(field) in (True, False):
            params[field] = {} if params[field] else None
        if short:
            params[field] = {**(params.get(field) or {}), **short}
    return params


def _grid(short: dict[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the numbers and words that were listed with commas."""
    listed: dict[str, list[Any]] = {}
    for name, value in short.items():
        if name in LISTED and isinstance(value, str):
            listed[name] = _values(value, int if name == "pruned_blocks" else float)
        elif name in LISTED_WORDS and isinstance(value, str):
            listed[name] = value.split(",")
    return [{**short, **dict(zip(listed, chosen, strict=True))} for chosen in itertools.product(*listed.values())]


def _plain(cell: dict[str, Any]) -> dict[str, Any]:
    """Without the branch where nothing is pruned, so that both curves share one whole model."""
    return cell if cell.get("pruned_blocks") else {k: v for k, v in cell.items() if k != "pruned_branch"}


def _values(value: Any, kind: type[float]) -> list[Any]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    try:
        return [kind(one) for one in parts]
    except ValueError:
        raise ValueError(f"{value!r}: numbers joined by commas are expected") from None


def _take(params: dict[str, Any], record: type[Record], prefix: str = "") -> dict[str, Any]:
    names = [name for name in record.model_fields if prefix + name in params]
    return {name: params.pop(prefix + name) for name in names}


def _settings(settings: Any, tuning: dict[str, Any]) -> list[dict[str, Any]]:
    if settings is None:
        return [{}]
    names = SETTINGS if settings == "all" else settings.split(",") if isinstance(settings, str) else settings
    rho, weight = tuning.get("rho", DEFAULT_RHO), tuning.get("mlp_weight", DEFAULT_MLP_WEIGHT)
    changes = {
        "baseline": {"rho": 0.0, "mlp_weight": 1.0},
        "sam": {"rho": rho, "mlp_weight": 1.0},
        "reweight": {"rho": 0.0, "mlp_weight": weight},
        "both": {"rho": rho, "mlp_weight": weight},
    }
    unknown = [name for name in names if name not in changes]
    if unknown:
        raise ValueError(f"settings: {unknown[0]!r} is none of all, {', '.join(SETTINGS)}")
    return [changes[name] for name in names]


class RememSpec(Record):
    """A run of the protocol: `model` is prepared as a teacher and distilled into `student`.

    Both get heads of the data set's classes. Without a student the teachers are tuned and measured only. What is chosen
    is catalogued: the student (or the only teacher) as `save_as`, its teacher as `<save_as>-teacher`.
    """

    kind: Literal["remem"] = "remem"
    model: Name
    student: Name | None = None
    dataset: Name
    params: RememParams = RememParams()
    train_split: Name | None = None
    split: Name | None = None
    subset: Subset = Subset()
    save_as: Name | None = None
    device: Device = "auto"

    @model_validator(mode="before")
    @classmethod
    def _no_student_no_distillation(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("student") is None and isinstance(value.get("params", {}), dict):
            given = dict(value.get("params") or {})
            if not given.get("distillations") and not any(name.startswith("student_") for name in given):
                return {**value, "params": {**given, "distillations": []}}
        return value

    @model_validator(mode="after")
    def _student_fits(self) -> RememSpec:
        if self.student == self.model:
            raise ValueError("student: must be another model than the teacher")
        if (self.student is None) != (not self.params.distillations):
            raise ValueError("student: distillations need one, and it needs distillations")
        return self
