"""What each kind of job is asked to do: one record per kind, the request and the stored payload at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from backend.domain.analyses import AnalysisSpec
from backend.domain.catalog import ModelSpec
from backend.domain.datasets import DatasetSpec, Subset
from backend.domain.device_choice import Device, Devices, read_device
from backend.domain.errors import BadInput
from backend.domain.kdep import KdepSpec
from backend.domain.methods import CeParams, MethodParams, parse_method
from backend.domain.records import Name, Record, Seed, Text, bad_input
from backend.domain.remem import RememSpec

ModelNames = Annotated[tuple[Text, ...], Field(min_length=1, max_length=10_000)]


class SyncSpec(Record):
    """Catalog all of timm's pretrained tags; `results` are timm result CSVs with reported accuracies."""

    kind: Literal["sync"] = "sync"
    results: tuple[Text, ...] = ()
    filter: Text | None = None


class RegisterSpec(Record):
    """Check one model or one data set that was added, by building or reading it once."""

    kind: Literal["register"] = "register"
    model: ModelSpec | None = None
    dataset: DatasetSpec | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RegisterSpec:
        if (self.model is None) == (self.dataset is None):
            raise ValueError("give either model or dataset")
        return self


class ScanSpec(Record):
    """Score models on a split: decode once per preprocessing, store predictions, count flips."""

    kind: Literal["scan"] = "scan"
    models: ModelNames
    dataset: Name
    split: Name | None = None
    limit: Annotated[int, Field(ge=1, le=10**9)] | None = None
    seed: Seed = 0
    device: Device = "auto"
    amp: bool = False
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    loaders: Annotated[int, Field(ge=0, le=256)] = 0
    keep_logits: bool = False

    @property
    def subset(self) -> Subset:
        return Subset(limit=self.limit, seed=self.seed)


class FlipsSpec(Record):
    """Count flips for every ordered pair of the models scored on a split."""

    kind: Literal["flips"] = "flips"
    dataset: Name
    split: Name | None = None


class FinetuneSpec(Record):
    """Supervised training: the demo's zoo, heads for new data sets, ReMem's teachers.

    `tune` says which weights move: all, or only the classifier (`head`). A head with the wrong number of classes is
    replaced. The student is catalogued as `save_as`.
    """

    kind: Literal["finetune"] = "finetune"
    model: Name
    dataset: Name
    train_split: Name | None = None
    split: Name | None = None
    subset: Subset = Subset()
    tune: Literal["all", "head"] = "all"
    params: CeParams = CeParams()
    save_as: Name | None = None
    device: Devices = "auto"


class TransferSpec(Record):
    """Graft what teachers know onto a student. `method` is a name or a full parameter record.

    `subset` is the transfer set taken from `train_split`; without one it is 10 % class-stratified where the split has
    100,000 samples or more, else all of it. `control` also trains the same student without a teacher. `save` false
    keeps the report and its predictions, but not the student (studies of many transfers).
    """

    kind: Literal["transfer"] = "transfer"
    teachers: tuple[Name, ...] = Field(default=(), max_length=64)
    student: Name
    dataset: Name
    method: MethodParams
    train_split: Name | None = None
    split: Name | None = None
    subset: Subset | None = None
    labelled: bool = True
    control: bool = True
    save: bool = True
    save_as: Name | None = None
    device: Devices = "auto"

    @field_validator("method", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """`"kl_dp"` means that method's defaults; an object may leave out what it does not change."""
        if isinstance(value, str):
            return parse_method(value, {})
        if isinstance(value, dict) and "method" in value:
            return parse_method(value["method"], {key: item for key, item in value.items() if key != "method"})
        return value

    @model_validator(mode="after")
    def _teachers_fit(self) -> TransferSpec:
        needs_teacher = self.method.method not in ("ce", "label_smoothing", "self_kl")
        if needs_teacher and not self.teachers:
            raise ValueError(f"teachers: {self.method.method} needs at least one teacher")
        if len(set(self.teachers)) != len(self.teachers):
            raise ValueError("teachers: a teacher is named twice")
        if self.student in self.teachers:
            raise ValueError("teachers: the student cannot be its own teacher; use the method self_kl")
        if self.method.compares_samples and read_device(self.device).several:
            method = self.method.method
            raise ValueError(f"device: {method} compares the samples of a batch with each other; use one device")
        return self


class SleepSpec(Record):
    """A torch-free job for tests and for trying a deployment: counts `steps`, `step_s` seconds each."""

    kind: Literal["sleep"] = "sleep"
    steps: Annotated[int, Field(ge=0, le=10**6)] = 1
    step_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    fault: Literal["none", "exit", "kill", "raise", "block", "cuda_oom", "host_oom", "nan"] = "none"
    fault_step: Annotated[int, Field(ge=0, le=10**6)] = 0


SPECS: dict[str, type[Record]] = {
    "sync": SyncSpec,
    "register": RegisterSpec,
    "scan": ScanSpec,
    "flips": FlipsSpec,
    "finetune": FinetuneSpec,
    "transfer": TransferSpec,
    "kdep": KdepSpec,
    "remem": RememSpec,
    "analysis": AnalysisSpec,
    "sleep": SleepSpec,
}


def parse_spec(kind: str, spec: dict[str, Any]) -> Record:
    """The record of a job kind, or a BadInput naming the field."""
    if kind not in SPECS:
        raise BadInput("kind", kind, f"one of {', '.join(SPECS)}")
    if not isinstance(spec, dict):
        raise BadInput("spec", spec, "an object")
    if "teacher" in spec and "teachers" not in spec and kind == "transfer":
        spec = {**{key: value for key, value in spec.items() if key != "teacher"}, "teachers": [spec["teacher"]]}
    try:
        return SPECS[kind].model_validate({**spec, "kind": kind})
    except ValidationError as error:
        raise bad_input(error, "spec") from None


def dump_spec(spec: BaseModel) -> dict[str, Any]:
    """The stored payload: JSON types, without the kind (it has its own column)."""
    return spec.model_dump(mode="json", exclude={"kind"})
