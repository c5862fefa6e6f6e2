"""Batches of a transfer set held in memory, with seeded order and views, and cached frozen outputs where there are any.

N samples of H × W pixels, B to a batch, V views per sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from backend.domain.errors import BadInput
from backend.domain.methods import TrainingParams
from workers.science.augment import as_images, make_view
from workers.science.batch import Batch
from workers.science.order import batch_bounds, epoch_order, share_bounds


class FrozenOutputs(Protocol):
    """What frozen models said about seeded views (`CachedOutputs`)."""

    def read(self, view: int, indices: Tensor) -> dict[str, Tensor]:
        """Name → outputs [B, C] of the samples at `indices` [B] in view `view`."""
        ...


class TensorBatches:
    """Epochs over in-memory images, a pure function of (params.seed, epoch).

    Every sample is met once in each epoch, in a new order, in batches of nearly equal size (`batch_bounds`).
    Epoch e shows view e, or e mod V where `params.views` is V; with V at least the number of epochs both are the same.

    Args:
        images: [N, 1 or 3, H, W], uint8 or float in [0, 1].
        labels: [N] class indices, or None.
        params: batch_size, augment, views and seed are used.
        cached: Outputs that belong to the views; needs `params.views`.
        size: Side of the views; without it that of the images.
        n_classes: Where given, labels are checked against it.
        rank, ranks: Give this rank's share of every batch alone; the shares of all ranks are the batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        params: TrainingParams,
        *,
        cached: FrozenOutputs | None = None,
        size: int | None = None,
        n_classes: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        as_images(images[:1])
        if len(images) == 0:
            raise BadInput("transfer set", "no samples", "at least one image")
        if labels is not None:
            _check_labels(labels, len(images), n_classes)
        if cached is not None and params.views is None:
            raise BadInput("views", None, "a number of seeded views, because outputs are cached")
        self.images, self.labels, self.params, self.cached, self.size = images, labels, params, cached, size
        self.rank, self.ranks = rank, ranks
        self._bounds = batch_bounds(len(images), params.batch_size)
        self.steps_per_epoch = len(self._bounds)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch (0-based), from batch `start` on."""
        order = torch.from_numpy(epoch_order(len(self.images), seed=self.params.seed, epoch=epoch))
        view = epoch if self.params.views is None else epoch % self.params.views
        for first, last in self._bounds[start:]:
            begin, end = share_bounds(first, last, self.rank, self.ranks)
            yield self._batch(order[begin:end], view, self.cached, whole=last - first)

    def smallest_share(self) -> int:
        """Samples of the smallest share of a batch that a rank gets."""
        shares = (share_bounds(*bounds, rank, self.ranks) for bounds in self._bounds for rank in range(self.ranks))
        return min(end - begin for begin, end in shares)

    def view(self, view: int) -> Iterator[Batch]:
        """All samples of one view in their stored order, without outputs; for filling a cache, and for statistics."""
        for first, last in self._bounds:
            yield self._batch(torch.arange(first, last), view, None, whole=last - first)

    def _batch(self, indices: Tensor, view: int, cached: FrozenOutputs | None, whole: int) -> Batch:
        pixels = make_view(
            self.images[indices],
            self.params.augment,
            indices=indices,
            seed=self.params.seed,
            view=view,
            size=self.size,
        )
        labels = None if self.labels is None else self.labels[indices].long()
        return Batch(pixels, labels, indices, {} if cached is None else cached.read(view, indices), whole)


def _check_labels(labels: Tensor, n_samples: int, n_classes: int | None) -> None:
    if labels.shape != (n_samples,) or labels.is_floating_point():
        raise BadInput("labels", f"{labels.dtype} {tuple(labels.shape)}", f"one whole number per image, [{n_samples}]")
    if int(labels.min()) < 0 or (n_classes is not None and int(labels.max()) >= n_classes):
        allowed = "0 or more" if n_classes is None else f"0 to {n_classes - 1}"
        raise BadInput("labels", f"{int(labels.min())} to {int(labels.max())}", f"class indices {allowed}")
