"""Cosine distillation (CD): learn which samples of the batch the teacher finds alike.

Roth et al., arXiv:2310.17653, appendix (similarity distillation as in arXiv:2009.08348). B samples, D features; student
and teacher may have different D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.domain.methods import CDParams
from workers.science.batch import Batch
from workers.science.training import Objective, Terms
from workers.science.transfer.kl import kl, mix, only_teacher
from workers.science.transfer.roles import FrozenModels, Roles, labels_of, with_features


def cosine_distillation(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """1 / B · Σ KL(σ(S_t[i]) ‖ σ(S_s[i])) over the rows of the cosine-similarity matrices S [B, B].

    0 where features agree up to rotation and scale; 0 for a batch of one.

    Shape:
        student_features: [B, D_s]; teacher_features: [B, D_t] → scalar.
    """
    return kl(_similarities(student_features), _similarities(teacher_features))


def _similarities(features: Tensor) -> Tensor:
    unit = F.normalize(features.double(), dim=1)
    return unit @ unit.T


class CosineDistillation(Objective):
    """Learn the labels and the batch's similarities; micro-batches change what a sample is compared with."""

    per_sample = False

    def __init__(self, params: CDParams, roles: Roles) -> None:
        self.params = params
        self.frozen = FrozenModels.of(roles)
        self.teacher = only_teacher(roles)

    def to(self, device: torch.device) -> None:
        self.frozen.to(device)

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        features, logits = with_features(student).features_and_logits(batch.view)
        with torch.autocast(features.device.type, enabled=False):
            distillation = cosine_distillation(features, self.frozen.features(self.teacher, batch))
        return mix(distillation, logits, labels_of(batch, "cd"), self.params.kd_weight)
