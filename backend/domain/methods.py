"""Transfer methods and their settings: one frozen params class per method, a union discriminated by `method`.

Defaults are the paper's (Roth et al., arXiv:2310.17653, §4 and appendix): SGD momentum .9, weight decay 1e-3, 20
epochs, constant learning rate 1e-4 (1e-2 for MCL), T 1. Where the paper is silent they are ours: batch size 64, XE-KL
kd_weight .5, label smoothing .1, top-k 10, CD weight .5. CRD's are Tian et al.'s (arXiv:1910.10699); their
CE + .8 · CRD is kd_weight .8 / 1.8 up to the scale of the loss.

One name, `kd_weight`, multiplies the distillation term everywhere; 1 - kd_weight multiplies the cross-entropy.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backend.domain.errors import BadInput

Augment = Literal["none", "flip", "crop", "crop_flip", "paper", "rrc"]
TeacherOrder = Literal["given", "ascending", "descending", "random"]


class TrainingParams(BaseModel):
    """How a student is trained, whatever it learns from. Numbers are strict: true is not 1, "3" is not 3."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    needs_labels: ClassVar[bool] = True
    """Whether the method is undefined without labels (some settings ask for them too: `labels_needed`)."""

    epochs: int = Field(20, ge=1, le=10_000, description="passes over the transfer set")
    steps: int | None = Field(None, ge=1, le=100_000_000, description="optimizer steps; overrides epochs where given")
    batch_size: int = Field(64, ge=1, le=65_536, description="samples per optimizer step")
    lr: float = Field(1e-4, gt=0, le=100, description="learning rate")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    weight_decay: float = Field(1e-3, ge=0, le=10)
    schedule: Literal["constant", "cosine", "step"] = "constant"
    warmup_steps: int = Field(0, ge=0, le=10_000_000, description="linear warm-up, in optimizer steps")
    step_epochs: int = Field(30, ge=1, le=10_000, description="schedule step: epochs between decays")
    step_factor: float = Field(0.1, gt=0, le=1, description="schedule step: factor of each decay")
    grad_clip: float | None = Field(None, gt=0, le=1e6, description="largest global gradient norm")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    augment: Augment = "none"
    views: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="seeded views per sample with cached frozen outputs; null: a fresh view online",
    )
    probe_epochs: int = Field(0, ge=0, le=10_000, description="first epochs that train the classifier alone")
    micro_batch: int | None = Field(None, ge=1, le=65_536, description="samples per forward pass, same effective batch")
    amp: bool = Field(False, description="bfloat16 autocast, no loss scaler")
    channels_last: bool = False
    compile: bool = Field(False, description="torch.compile the student")

    @model_validator(mode="after")
    def _probe_within_epochs(self) -> TrainingParams:
        if self.probe_epochs > self.epochs:
            raise ValueError("probe_epochs exceeds epochs")
        return self


class Transfer(TrainingParams):
    """Training from a teacher (or a control of it) on the transfer set."""

    min_teachers: ClassVar[int] = 1
    max_teachers: ClassVar[int | None] = 1
    teacher_output: ClassVar[Literal["logits", "features"]] = "logits"
    """What of a teacher the method reads, and a cache has to hold."""
    reads_frozen_student: ClassVar[bool] = False
    """Whether the initial student is asked too."""
    compares_samples: ClassVar[bool] = False
    """Whether the loss compares samples of a batch with each other, so that a batch cannot be split over devices."""

    augment: Augment = "paper"

    @property
    def labels_needed(self) -> bool:
        """Whether these settings need labels of the transfer set."""
        return self.needs_labels


P = TypeVar("P", bound=TrainingParams)


class CeParams(Transfer):
    """Continued training with the labels and no teacher: the control."""

    min_teachers: ClassVar[int] = 0
    max_teachers: ClassVar[int | None] = 0
    method: Literal["ce"] = "ce"


class LabelSmoothingParams(Transfer):
    """Cross-entropy against smoothed labels, no teacher."""

    min_teachers: ClassVar[int] = 0
    max_teachers: ClassVar[int | None] = 0
    method: Literal["label_smoothing"] = "label_smoothing"
    smoothing: float = Field(0.1, ge=0, lt=1, description="probability spread over all classes")


class Distillation(Transfer):
    """Methods that compare with a teacher's softmax at one temperature."""

    temperature: float = Field(1.0, gt=0, le=1000, description="T of both softmaxes in the loss")


class SelfKLParams(Distillation):
    """The initial student as its own teacher: the control of distillation."""

    needs_labels: ClassVar[bool] = False
    min_teachers: ClassVar[int] = 0
    max_teachers: ClassVar[int | None] = 0
    reads_frozen_student: ClassVar[bool] = True
    method: Literal["self_kl"] = "self_kl"


class KLParams(Distillation):
    """Plain KL to the teacher."""

    needs_labels: ClassVar[bool] = False
    max_teachers: ClassVar[int | None] = None
    method: Literal["kl"] = "kl"
    multi: Literal["sequential", "soup"] = Field("sequential", description="how several teachers are used")
    teacher_order: TeacherOrder = Field("given", description="sequential: order by teacher accuracy, or as given")


class XEKLParams(Distillation):
    """kd_weight · KL + (1 - kd_weight) · cross-entropy."""

    max_teachers: ClassVar[int | None] = None
    method: Literal["xe_kl"] = "xe_kl"
    kd_weight: float = Field(0.5, ge=0, le=1)
    multi: Literal["sequential", "soup"] = "sequential"
    teacher_order: TeacherOrder = "given"


class MCLParams(Distillation):
    """XE-KL whose weights are averaged slowly into the pretrained ones; the slow weights are the result."""

    method: Literal["mcl"] = "mcl"
    lr: float = Field(1e-2, gt=0, le=100, description="learning rate")
    kd_weight: float = Field(0.7, ge=0, le=1)
    tau: float = Field(0.9999, ge=0, le=1, description="share of the slow weights kept at each update")
    interval: int = Field(2, ge=1, le=1_000_000, description="optimizer steps between updates of the slow weights")


class KLDPParams(Distillation):
    """KL with data partitioning: the teacher where it beats the frozen student, elsewhere the frozen student."""

    needs_labels: ClassVar[bool] = False
    max_teachers: ClassVar[int | None] = None
    reads_frozen_student: ClassVar[bool] = True
    method: Literal["kl_dp"] = "kl_dp"
    partition: Literal["supervised", "unsupervised"] = Field("supervised", description="score that picks the target")
    multi: Literal["sequential", "parallel", "soup"] = "sequential"
    teacher_order: TeacherOrder = "given"
    kd_weight: float = Field(1.0, ge=0, le=1, description="below 1 adds cross-entropy; the paper finds 1 best")

    @property
    def labels_needed(self) -> bool:
        return self.partition == "supervised" or self.kd_weight < 1


class TopKKLParams(Distillation):
    """KL on the teacher's k most probable classes, both sides renormalised on them."""

    needs_labels: ClassVar[bool] = False
    method: Literal["topk_kl"] = "topk_kl"
    k: int = Field(10, ge=1, le=1_000_000, description="classes kept; more than there are means all")


class SoftCEParams(Distillation):
    """Cross-entropy against the teacher's probabilities (and, below kd_weight 1, against the labels)."""

    needs_labels: ClassVar[bool] = False
    method: Literal["soft_ce"] = "soft_ce"
    kd_weight: float = Field(1.0, ge=0, le=1)

    @property
    def labels_needed(self) -> bool:
        return self.kd_weight < 1


class CDParams(Transfer):
    """KL between softmaxed cosine-similarity matrices of the batch's features, plus cross-entropy."""

    teacher_output: ClassVar[Literal["logits", "features"]] = "features"
    compares_samples: ClassVar[bool] = True
    method: Literal["cd"] = "cd"
    kd_weight: float = Field(0.5, ge=0, le=1)


class CRDParams(Transfer):
    """Contrastive representation distillation with a memory bank, plus cross-entropy."""

    teacher_output: ClassVar[Literal["logits", "features"]] = "features"
    compares_samples: ClassVar[bool] = True
    method: Literal["crd"] = "crd"
    kd_weight: float = Field(0.444, ge=0, le=1)
    feature_dim: int = Field(128, ge=1, le=65_536, description="width of the projection heads")
    negatives: int = Field(16_384, ge=1, le=1_000_000, description="other samples contrasted with each one")
    bank_momentum: float = Field(0.5, ge=0, lt=1, description="share of the stored feature kept at each visit")
    nce_temperature: float = Field(0.07, gt=0, le=1000)


MethodParams = Annotated[
    Union[  # noqa: UP007 - a discriminated union reads better spelled out
        CeParams,
        SelfKLParams,
        LabelSmoothingParams,
        KLParams,
        XEKLParams,
        MCLParams,
        KLDPParams,
        TopKKLParams,
        SoftCEParams,
        CDParams,
        CRDParams,
    ],
    Field(discriminator="method"),
]

METHODS: dict[str, type[Transfer]] = {
    "ce": CeParams,
    "self_kl": SelfKLParams,
    "label_smoothing": LabelSmoothingParams,
    "kl": KLParams,
    "xe_kl": XEKLParams,
    "mcl": MCLParams,
    "kl_dp": KLDPParams,
    "topk_kl": TopKKLParams,
    "soft_ce": SoftCEParams,
    "cd": CDParams,
    "crd": CRDParams,
}


def parse_method(name: str, settings: Mapping[str, Any]) -> Transfer:
    """The checked params of method `name` with `settings` over its defaults.

    Raises:
        BadInput: unknown method (lists the known), unknown parameter (lists the method's), or a value out of range.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise BadInput("method", name, f"one of: {', '.join(METHODS)}{_did_you_mean(name, METHODS)}")
    if settings.get("method", name) != name:
        raise BadInput("method", settings["method"], f"{name!r}, as asked for, or leave it out")
    return parse_params(METHODS[name], settings)


def parse_params(params: type[P], settings: Mapping[str, Any]) -> P:
    """`params` built from `settings`; the first error becomes a BadInput that names field, value and what is right."""
    known = [name for name in params.model_fields if name != "method"]
    for name in settings:
        if name not in params.model_fields:
            raise BadInput(str(name), settings[name], f"parameters are: {', '.join(known)}{_did_you_mean(name, known)}")
    try:
        return params.model_validate(dict(settings))
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["loc"]:
            field = str(problem["loc"][0])
            raise BadInput(field, settings.get(field), expected(params, field)) from None
        raise BadInput("probe_epochs", settings.get("probe_epochs"), "at most epochs") from None


def check_teachers(params: Transfer, teachers: Iterable[str]) -> None:
    """Raises BadInput where the number of teachers is not what the method takes."""
    names = list(teachers)
    least, most = params.min_teachers, params.max_teachers
    if len(names) >= least and (most is None or len(names) <= most):
        return
    wanted = "no teacher" if most == 0 else f"exactly {least} teacher" if most == least else f"{least} teacher or more"
    raise BadInput("teachers", names, f"{getattr(params, 'method', 'this method')} takes {wanted}")


def takes(params: Transfer, n_teachers: int) -> bool:
    """Whether a method takes part where there are so many teachers; one that needs none always does."""
    return params.min_teachers == 0 or params.max_teachers is None or n_teachers <= params.max_teachers


def turns(multi: str | None, n_teachers: int) -> int:
    """Trainings in a row that a transfer is: one for each of several teachers in sequence, else one."""
    return n_teachers if multi == "sequential" and n_teachers > 1 else 1


def control_of(params: Transfer, n_teachers: int) -> CeParams:
    """The control of a transfer: the same training with labels and no teacher, for as many steps in all.

    Raises:
        BadInput: that many epochs are more than a training may have.
    """
    shared = {name: getattr(params, name) for name in TrainingParams.model_fields}
    times = turns(getattr(params, "multi", None), n_teachers)
    shared["epochs"] *= times
    if shared["steps"] is not None:
        shared["steps"] *= times
    found = parse_method("ce", shared)
    assert isinstance(found, CeParams)
    return found


def expected(params: type[BaseModel], field: str) -> str:
    """What a field takes, in words: its type, its bounds, its default."""
    info = params.model_fields[field]
    bounds = []
    for rule in info.metadata:
        for sign, name in ((">", "gt"), ("≥", "ge"), ("<", "lt"), ("≤", "le")):
            value = getattr(rule, name, None)
            if isinstance(rule, annotated_types.BaseMetadata) and value is not None:
                bounds.append(f"{sign} {value}")
    text = " ".join(filter(None, [_type_words(info.annotation), " and ".join(bounds)]))
    return f"{text} (default {'null' if info.default is None else info.default})"


def _type_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of: " + ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type_words(part) for part in get_args(annotation))
    words = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null", str: "a text"}
    return words.get(annotation, str(annotation))


def _did_you_mean(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
