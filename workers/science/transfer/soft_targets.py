"""Cross-entropy against the teacher's probabilities: Hinton et al., arXiv:1503.02531, §2.

B samples, C classes, T temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backend.domain.methods import SoftCEParams
from workers.science.batch import Batch
from workers.science.training import Objective, Terms
from workers.science.transfer.kl import mix, only_teacher, shared_log_softmax
from workers.science.transfer.roles import FrozenModels, Roles, labels_of


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-T² / B · Σ σ(z_t / T) · log σ(z_s / T), nats.

    It is `kl` plus T² times the teacher's mean entropy, hence the same gradient; over the teacher's classes alone, too.

    Shape:
        student_logits, teacher_logits: [B, C] → scalar.
    """
    targets = (teacher_logits.double() / temperature).softmax(dim=1)
    log_probs = shared_log_softmax(student_logits, teacher_logits, temperature)
    return -(targets * log_probs).sum(dim=1).mean() * temperature**2


class SoftTargets(Objective):
    """Learn the teacher's probabilities as if they were labels."""

    def __init__(self, params: SoftCEParams, roles: Roles) -> None:
        self.params = params
        self.frozen = FrozenModels.of(roles)
        self.teacher = only_teacher(roles)

    def to(self, device: torch.device) -> None:
        self.frozen.to(device)

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        student_logits = student(batch.view)
        teacher_logits = self.frozen.logits(self.teacher, batch, student_logits)
        loss = soft_cross_entropy(student_logits, teacher_logits, temperature=self.params.temperature)
        labels = labels_of(batch, "soft_ce") if self.params.kd_weight < 1 else None
        return mix(loss, student_logits, labels, self.params.kd_weight)
