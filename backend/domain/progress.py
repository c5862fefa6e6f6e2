"""One moment of a long computation: what `fit`, the scan and every analysis yield, and what jobs record."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Progress(BaseModel):
    """A finished step.

    `step` counts from 1 to `total` (optimizer steps, images or blocks; `unit` says which). `metrics` are scalars to
    plot against the step, finite or left out. `message` is one line for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=0)
    total: int = Field(ge=0)
    unit: str = "steps"
    epoch: int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    message: str | None = None
