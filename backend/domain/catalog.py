"""Zoo entries: an architecture, its weights, and the preprocessing that belongs to them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, field_validator, model_validator

from backend.domain.records import Fraction, Name, Record, Seed, Text, content_hash

Channels = Annotated[int, Field(ge=1, le=16)]
Pixels = Annotated[int, Field(ge=4, le=4096)]


class Family(StrEnum):
    """What mixes information across positions."""

    CNN = "cnn"
    TRANSFORMER = "transformer"
    MLP = "mlp"
    HYBRID = "hybrid"
    UNKNOWN = "unknown"


class Preprocessing(Record):
    """How an image becomes this model's input. Two models with equal preprocessing share one decoding."""

    input_size: tuple[Channels, Pixels, Pixels] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bicubic"
    crop_pct: Annotated[float, Field(gt=0, le=4)] = 0.875
    crop_mode: Literal["center", "squash", "border"] = "center"

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Preprocessing:
        channels = self.input_size[0]
        if len(self.mean) not in (1, channels) or len(self.std) not in (1, channels):
            raise ValueError(f"mean and std need one value or {channels} (one a channel)")
        return self

    @property
    def key(self) -> str:
        return content_hash(self)


class Lineage(Record):
    """Where a transferred or fine-tuned student comes from."""

    job_id: UUID
    kind: str
    method: str | None = None
    student: str
    teachers: tuple[str, ...] = ()
    dataset: str


class ModelSpec(Record):
    """A zoo entry as a user describes it; `register` turns it into a `Model` after building it once.

    `architecture` is a timm name or `module:callable` returning a torch module. Without `checkpoint` and with
    `pretrained` false the weights are random, drawn with `init_seed`. Preprocessing fields override what timm says.
    """

    name: Name
    architecture: Text
    kwargs: dict[str, Any] = Field(default_factory=dict)
    pretrained: bool = False
    checkpoint: Text | None = None
    init_seed: Seed = 0
    input_size: tuple[Channels, Pixels, Pixels] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    label_space: Name | None = None
    family: Family | None = None

    @property
    def source(self) -> Literal["timm", "factory"]:
        return "factory" if ":" in self.architecture else "timm"

    @field_validator("kwargs")
    @classmethod
    def _plain_values(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        for key in kwargs:
            if not key.isidentifier():
                raise ValueError(f"{key!r} is not a keyword argument's name")
        content_hash(kwargs)
        return kwargs


class Model(Record):
    """A zoo entry. `external` models have predictions only: they can be paired and looked at, not run."""

    id: UUID
    name: Name
    source: Literal["timm", "factory", "external"]
    architecture: str | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)
    pretrained: bool = False
    checkpoint: str | None = None
    init_seed: int = 0
    weights_hash: str | None = None
    preprocessing: Preprocessing | None = None
    num_classes: int | None = None
    label_space: str | None = None
    family: Family = Family.UNKNOWN
    param_count: int | None = None
    reported_accuracy: dict[str, Fraction] = Field(default_factory=dict)
    lineage: Lineage | None = None
    created_at: datetime

    @property
    def runnable(self) -> bool:
        return self.source != "external"
