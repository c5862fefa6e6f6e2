"""One augmented view of B samples, and the frozen outputs that belong to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B samples as every model of a transfer sees them: one view, un-normalised.

    Shape:
        view: [B, 3, H, W], float in [0, 1]; each model resizes and normalises it itself (`Preprocessed`).
        labels: [B] class indices, or None for an unlabelled transfer set.
        indices: [B] positions in the data set (memory banks, caches).
        outputs: name of a frozen model → its cached logits [B, C] on exactly this view.

    `whole` is how many samples the optimizer step has where these are one rank's share of it; None: these are all.
    """

    view: Tensor
    labels: Tensor | None
    indices: Tensor
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    whole: int | None = None

    @property
    def n_step(self) -> int:
        """Samples of the optimizer step over all ranks."""
        return len(self) if self.whole is None else self.whole

    def __len__(self) -> int:
        return int(self.view.shape[0])


class Batches(Protocol):
    """Epochs of batches, a pure function of (seed, epoch): training resumes at any step with the same bits."""

    steps_per_epoch: int

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch (0-based), from batch `start` on."""
        ...
