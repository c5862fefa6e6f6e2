"""What a model is like as a teacher: the request for one of six measurements of several models on one split."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from backend.domain.datasets import Subset
from backend.domain.device_choice import Device
from backend.domain.records import Name, Record, Seed, Text, bad_input
from backend.domain.remem import CriticalityParams, ExpertnessParams, InformationParams

AnalysisName = Literal["expertness", "information", "criticality", "compactness", "logme", "embedding"]


class FeatureParams(Record):
    """Compactness and LogME: pooled features of every image of the subset."""

    batch_size: int = Field(default=64, ge=1, le=65_536)


class EmbeddingParams(Record):
    """A picture of pooled features by t-SNE; `images` bounds how many, class-stratified."""

    images: int = Field(default=1_000, ge=4, le=20_000)
    perplexity: float = Field(default=30.0, gt=0, le=1_000)
    batch_size: int = Field(default=64, ge=1, le=65_536)
    seed: Seed = 0


PARAMS: dict[str, type[Record]] = {
    "expertness": ExpertnessParams,
    "information": InformationParams,
    "criticality": CriticalityParams,
    "compactness": FeatureParams,
    "logme": FeatureParams,
    "embedding": EmbeddingParams,
}


class AnalysisSpec(Record):
    """Measure each of the models (names or patterns) on a subset of a split.

    `information` learns its decoder from most of the subset and scores it on the rest. `images` in the params bounds
    how many of the subset are used.
    """

    kind: Literal["analysis"] = "analysis"
    analysis: AnalysisName
    models: Annotated[tuple[Text, ...], Field(min_length=1, max_length=10_000)]
    dataset: Name
    split: Name | None = None
    subset: Subset = Subset()
    params: dict[str, Any] = Field(default_factory=dict)
    device: Device = "auto"

    @field_validator("params")
    @classmethod
    def _params_fit(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "analysis" in info.data:
            try:
                PARAMS[info.data["analysis"]].model_validate(params)
            except ValidationError as error:
                raise ValueError(str(bad_input(error))) from None
        return params

    @property
    def settings(self) -> Record:
        """The params as the analysis's own record."""
        return PARAMS[self.analysis].model_validate(self.params)
