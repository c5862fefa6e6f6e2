"""One model scored once on one (data set, split, subset): the accuracy row, and the predictions it points to."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from backend.domain.records import Fraction, Record, content_hash

# Columns of a predictions file. `top5` and `p_top5` are lists of five (fewer where the space has fewer classes).
PREDICTION_COLUMNS = ("sample_id", "label", "top1", "p_top1", "p_label", "top5", "p_top5")


class Evaluation(Record):
    """What a scan or an import knows about a model on a data set; a model that failed is a row with its reason."""

    id: UUID
    model: str
    dataset: str
    split: str
    subset: str = "all"
    dtype: str = "float32"
    state: Literal["ready", "failed"]
    reason: str | None = None
    accuracy: Fraction | None = None
    n_samples: int = 0
    n_classes: int = 0
    inexpressible_classes: int = 0
    bad_samples: tuple[str, ...] = ()
    images_per_s: float | None = None
    has_logits: bool = False
    provenance: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime


def evaluation_key(
    *, model_hash: str, preprocessing_key: str, fingerprint: str, split: str, subset_key: str, dtype: str
) -> str:
    """The key by content: same key, no second run (unless logits are asked for and missing)."""
    return content_hash(model_hash, preprocessing_key, fingerprint, split, subset_key, dtype)
