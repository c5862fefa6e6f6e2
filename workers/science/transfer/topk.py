"""KL restricted to the teacher's k most probable classes, renormalised: Roth et al., arXiv:2310.17653, appendix.

B samples, C classes, T temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backend.domain.methods import TopKKLParams
from workers.science.batch import Batch
from workers.science.training import Objective, Terms
from workers.science.transfer.kl import kl, mix, only_teacher
from workers.science.transfer.roles import FrozenModels, Roles


def top_k_kl(student_logits: Tensor, teacher_logits: Tensor, *, k: int, temperature: float = 1.0) -> Tensor:
    """`kl` on the k classes with the teacher's largest logits, per sample; both softmaxes run over those k alone.

    Reduces to `kl` at k ≥ C; 0 at k = 1, where nothing is left to learn.

    Shape:
        student_logits, teacher_logits: [B, C] → scalar.
    """
    kept = teacher_logits.topk(min(k, teacher_logits.shape[1]), dim=1).indices
    return kl(student_logits.gather(1, kept), teacher_logits.gather(1, kept), temperature=temperature)


class TopKKL(Objective):
    """Learn how the teacher ranks the classes that it finds likely."""

    def __init__(self, params: TopKKLParams, roles: Roles) -> None:
        self.params = params
        self.frozen = FrozenModels.of(roles)
        self.teacher = only_teacher(roles)

    def to(self, device: torch.device) -> None:
        self.frozen.to(device)

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        student_logits = student(batch.view)
        teacher_logits = self.frozen.logits(self.teacher, batch, student_logits)
        loss = top_k_kl(student_logits, teacher_logits, k=self.params.k, temperature=self.params.temperature)
        return mix(loss, student_logits, None, 1)
