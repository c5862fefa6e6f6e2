"""Learning from labels alone: continued cross-entropy (the no-teacher control) and label smoothing.

Szegedy et al., arXiv:1512.00567, §7 for the smoothing. B samples, C classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from backend.domain.methods import CeParams, LabelSmoothingParams
from workers.science.batch import Batch
from workers.science.training import Objective, Terms
from workers.science.transfer.roles import Roles, labels_of


def label_smoothed_cross_entropy(student_logits: Tensor, labels: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Mean cross-entropy to (1 - smoothing) · one-hot + smoothing / C; the target is smoothed, never the prediction.

    Reduces to cross-entropy at smoothing 0.

    Shape:
        student_logits: [B, C], before any softmax; labels: [B] → scalar.
    """
    return F.cross_entropy(student_logits.double(), labels, label_smoothing=smoothing)


class CrossEntropy(Objective):
    """The control: the same student, data, steps and optimizer, and no teacher."""

    def __init__(self, params: CeParams, roles: Roles) -> None:
        self.params = params

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        return {"loss": F.cross_entropy(student(batch.view).double(), labels_of(batch, "ce"))}


class LabelSmoothing(Objective):
    """Continued training with smoothed labels."""

    def __init__(self, params: LabelSmoothingParams, roles: Roles) -> None:
        self.params = params

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        labels = labels_of(batch, "label_smoothing")
        return {"loss": label_smoothed_cross_entropy(student(batch.view), labels, smoothing=self.params.smoothing)}
