"""KDEP in records: distillation of features as pre-training (He et al., CVPR 2022), what it is asked and what it
reports.

D_t, D_s: width of the teacher's and the student's pooled penultimate feature; std: standard deviation of a channel, N
− 1. Rates are fractions. Defaults are the paper's for ResNet-50 → ResNet-18 on 10 % of ImageNet.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from backend.domain.datasets import Subset
from backend.domain.downstream import DownstreamParams as DownstreamParams
from backend.domain.downstream import DownstreamResult as DownstreamResult
from backend.domain.downstream import DownstreamSet as DownstreamSet
from backend.domain.downstream import DownstreamSource as DownstreamSource
from backend.domain.downstream import Estimate as Estimate
from backend.domain.downstream import estimate as estimate
from backend.domain.methods import Augment, TrainingParams
from backend.domain.records import Fraction, Name, Record

Align = Literal[
    "svd", "channel_variance", "channel_random", "interpolate_linear", "interpolate_nearest",
    "conv_before_relu", "conv_after_relu", "overhaul",
]  # fmt: skip
Transform = Literal["pts", "sn", "sm", "none"]
PretrainMethod = Literal["features", "logits", "supervised", "none"]

LEARNABLE_ALIGNS = ("conv_before_relu", "conv_after_relu", "overhaul")
PTS_TEMPERATURE_GRID = (0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9)
PTS_EXPONENT_GRID = (2, 3, 4, 5, 6)
# Epochs, and every how many of them the learning rate falls by ten, by the share of ImageNet that is used.
SCHEDULES: dict[str, dict[int, int]] = {"10%": {90: 30, 180: 60, 900: 300}, "100%": {9: 3, 18: 6, 90: 30}}


class KdepParams(TrainingParams):
    """How a student is pre-trained from a teacher.

    `method` is `features` (KDEP), or one of its baselines on the same schedule: `logits` (KL to the teacher's logits),
    `supervised` (cross-entropy, no teacher), or `none` (the student as it is: random initialisation, measured alike).
    Only `supervised` needs labels.
    """

    needs_labels: ClassVar[bool] = False

    method: PretrainMethod = "features"
    align: Align = Field("svd", description="from the teacher's channels to the student's")
    transform: Transform = Field("pts", description="after the alignment; learnable aligners take none")
    pts_temperature: float = Field(0.1, gt=0, le=1e6, description="T of sign(f)|f/T|^(1/n)")
    pts_exponent: float = Field(3.0, gt=0, le=100, description="n of sign(f)|f/T|^(1/n)")
    loss_weight: float = Field(20.0, gt=0, le=1e6, description="20 for a standard ResNet-50 teacher, 3 for Microsoft's")
    narrow_teacher: Literal["expand", "refuse"] = Field(
        "expand", description="teacher narrower than the student: spread isometrically over all channels, or refuse"
    )
    layers: int = Field(1, ge=1, le=16, description="stages that are distilled, counted from the last")
    layer_weight: float = Field(0.5, gt=0, le=1e3, description="weight of each earlier stage, relative to the last")
    kd_temperature: float = Field(1.0, gt=0, le=1e3, description="method logits: T of both softmaxes")

    epochs: int = Field(90, ge=1, le=10_000, description="passes over the images")
    batch_size: int = Field(512, ge=1, le=65_536)
    lr: float = Field(0.3, gt=0, le=100, description=".3 for ResNet-18, .1 for MobileNetV2")
    weight_decay: float = Field(5e-4, ge=0, le=10)
    schedule: Literal["constant", "cosine", "step"] = "step"
    step_epochs: int = Field(30, ge=1, le=10_000)
    augment: Augment = "paper"

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_transform(cls, values: Any) -> Any:
        """Where the alignment is learnt, transform is none unless something else is asked for (and then refused)."""
        if isinstance(values, dict) and values.get("align") in LEARNABLE_ALIGNS:
            return {"transform": "none", **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> KdepParams:
        if self.learnable:
            if self.transform != "none":
                raise ValueError(f"transform: {self.align} learns its alignment and takes transform none")
            if self.layers > 1:
                raise ValueError(f"layers: {self.align} is a baseline of the last layer alone; use 1")
        return self

    @property
    def labels_needed(self) -> bool:
        return self.method == "supervised"

    @property
    def learnable(self) -> bool:
        """Whether the aligner is trained along with the student."""
        return self.method == "features" and self.align in LEARNABLE_ALIGNS


class KdepSpec(Record):
    """A pre-training job: `student` is a zoo entry, usually untrained; the result is catalogued as `save_as`.

    `teacher` is left out with the methods supervised and none. The data set's labels are used by `supervised` alone.
    `downstream` names data sets that the result is fine-tuned on, to measure what the pre-training was worth.
    """

    kind: Literal["kdep"] = "kdep"
    teacher: Name | None = None
    student: Name
    dataset: Name
    params: KdepParams = KdepParams()
    train_split: Name | None = None
    subset: Subset = Subset()
    downstream: tuple[DownstreamSource, ...] = Field(default=(), max_length=64)
    downstream_params: DownstreamParams = DownstreamParams()
    save_as: Name | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")] = "auto"

    @model_validator(mode="after")
    def _teacher_fits(self) -> KdepSpec:
        names = [source.dataset for source in self.downstream]
        if len(set(names)) != len(names):
            raise ValueError("downstream: a data set is named twice")
        if self.params.method in ("supervised", "none"):
            if self.teacher is not None:
                raise ValueError(f"teacher: method {self.params.method} takes none; leave it out")
        elif self.teacher is None:
            raise ValueError(f"teacher: method {self.params.method} needs one")
        elif self.teacher == self.student:
            raise ValueError("teacher: the student cannot be its own teacher")
        return self


class AlignmentReport(Record):
    """What became of the teacher's channels. `*_std_ratio` is largest / smallest channel std; null when a channel is
    constant."""

    teacher_width: int
    student_width: int
    aligned_width: int
    expanded: bool
    variance_share: Fraction | None = None
    teacher_std_ratio: float | None = None
    std_ratio_before: float | None = None
    std_ratio_after: float | None = None


class CompactnessResult(Record):
    """Scatter of features by class: `compactness` = between / within (the trace of either matrix)."""

    model: str
    dataset: str
    n_samples: int
    n_classes: int
    between_scatter: float
    within_scatter: float
    compactness: float | None


class LogmeResult(Record):
    """Log maximum evidence of the labels given the features, mean over classes, per sample."""

    model: str
    dataset: str
    n_samples: int
    n_classes: int
    logme: float


class EmbeddingResult(Record):
    """Pooled features in the plane by t-SNE (He et al., Fig. 4): `points` [N, 2], `labels` [N]."""

    model: str
    dataset: str
    n_samples: int
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]


class KdepResult(Record):
    """A student pre-trained, and how. `model` is the new entry, `student` the one it was built from.

    `*_passes_through`: the network ends without an activation, so that its stock feature was read.
    """

    model: Name
    weights_hash: str
    teacher: Name | None
    student: Name
    architecture: str
    dataset: Name
    train_split: Name
    n_samples: int
    params: KdepParams
    alignments: tuple[AlignmentReport, ...] = ()
    teacher_passes_through: bool | None = None
    student_passes_through: bool | None = None
    steps: int
    loss_first: float | None
    loss_last: float | None
    bad_samples: tuple[str, ...] = ()
    downstream: DownstreamResult | None = None
