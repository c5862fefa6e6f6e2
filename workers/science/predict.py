"""Scoring: one decoded batch, many models → the classes they choose and how sure they are, in one label space.

B samples, O outputs of a head, C classes of the data set's space, K = min(5, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TOP = 5


class NonFiniteLogits(ValueError):
    """A model answered with NaN or infinity; names the first row."""

    def __init__(self, bad: int, total: int, row: int) -> None:
        super().__init__(f"nonfinite_logits: {bad} of {total} logits are NaN or infinite, first in row {row}")
        self.bad, self.total, self.row = bad, total, row


@dataclass(frozen=True)
class Scores:
    """What one model says about B samples; classes of the space, best first, of equals the lower index.

    Shape:
        top1, p_top1, p_label: [B]; top5, p_top5: [B, K]; logits: [B, C] float32, −∞ where the head has no such class.
    """

    top1: Tensor
    p_top1: Tensor
    p_label: Tensor
    top5: Tensor
    p_top5: Tensor
    logits: Tensor


def score_logits(logits: Tensor, labels: Tensor, outputs: Sequence[int] | None = None) -> Scores:
    """Classes and probabilities from the logits of one head.

    The softmax and the argmax run over the whole space: classes that the head cannot express have probability 0, and
    outputs that the space does not have take no part. Without `outputs` the head speaks the space itself.

    Args:
        logits: [B, O], any float type.
        labels: [B] classes of the space.
        outputs: For each class of the space the output that expresses it, −1 for none, [C].

    Raises:
        NonFiniteLogits: before anything is ranked.
    """
    logits = logits.detach().float()
    finite = torch.isfinite(logits)
    if not bool(finite.all()):
        rows = (~finite).any(dim=1).nonzero()
        raise NonFiniteLogits(int((~finite).sum()), logits.numel(), int(rows[0]))
    in_space = logits if outputs is None else _into_space(logits, outputs)
    # A stable sort, because topk promises no order among equals.
    top5 = torch.sort(in_space, dim=1, descending=True, stable=True).indices[:, :TOP] if _ties(in_space) else None
    if top5 is None:
        top5 = torch.topk(in_space, min(TOP, in_space.shape[1]), dim=1).indices
    probs = torch.softmax(in_space, dim=1)
    p_top5 = probs.gather(1, top5)
    return Scores(
        top1=top5[:, 0],
        p_top1=p_top5[:, 0],
        p_label=probs.gather(1, labels.to(probs.device)[:, None])[:, 0],
        top5=top5,
        p_top5=p_top5,
        logits=in_space,
    )


def _into_space(logits: Tensor, outputs: Sequence[int]) -> Tensor:
    columns = torch.as_tensor(outputs, dtype=torch.long, device=logits.device)
    chosen = logits[:, columns.clamp_min(0)]
    return chosen.masked_fill(columns < 0, float("-inf"))


def _ties(logits: Tensor) -> bool:
    """Whether equals stand among the best K + 1 of any row."""
    best = torch.topk(logits, min(TOP + 1, logits.shape[1]), dim=1).values
    return bool((best[:, 1:] == best[:, :-1]).any())


def forward(model: nn.Module, batch: Tensor, *, amp: bool = False) -> Tensor:
    """Logits [B, O] of a normalised batch, without gradients; with `amp` under bfloat16 autocast.

    On a GPU that runs out of memory the batch is halved, down to single images; the logits are the same.
    """
    try:
        with torch.inference_mode(), torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=amp):
            logits: Tensor = model(batch)
        return logits.float()
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(batch) // 2
    return torch.cat([forward(model, batch[:half], amp=amp), forward(model, batch[half:], amp=amp)])
