"""XE-KL with momentum-interpolated continual learning (XE-KL+MCL): Roth et al., arXiv:2310.17653, §4.1, Eq. 3.

θ_slow ← τ θ_slow + (1 - τ) θ_fast every N steps, after the optimizer's step. The slow weights are the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from backend.domain.methods import MCLParams
from workers.science.batch import Batch
from workers.science.preprocessed import frozen_copy
from workers.science.training import Objective, Terms
from workers.science.transfer.kl import kl, mix, only_teacher
from workers.science.transfer.roles import FrozenModels, Roles, labels_of


@torch.no_grad()
def update_slow_weights(slow: nn.Module, fast: nn.Module, tau: float) -> None:
    """θ_slow ← τ θ_slow + (1 - τ) θ_fast over parameters and buffers; counters are copied.

    τ = 1 changes nothing, τ = 0 copies.
    """
    fast_state = fast.state_dict()
    for name, tensor in slow.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(fast_state[name].to(tensor.dtype), 1 - tau)
        else:
            tensor.copy_(fast_state[name])


class MCL(Objective):
    """Learn like XE-KL at a high rate, and let only slowly averaged weights be seen.

    The slow weights begin as a copy of the student, share no memory with it, and evaluating them leaves it untouched.
    """

    def __init__(self, params: MCLParams, roles: Roles) -> None:
        self.params = params
        self.frozen = FrozenModels.of(roles)
        self.teacher = only_teacher(roles)
        self.fast = roles.student
        self.slow = frozen_copy(roles.student)

    def to(self, device: torch.device) -> None:
        self.frozen.to(device)
        self.slow.to(device)

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        student_logits = student(batch.view)
        teacher_logits = self.frozen.logits(self.teacher, batch, student_logits)
        distillation = kl(student_logits, teacher_logits, temperature=self.params.temperature)
        return mix(distillation, student_logits, labels_of(batch, "mcl"), self.params.kd_weight)

    def after_step(self, step: int) -> None:
        if step % self.params.interval == 0:
            update_slow_weights(self.slow, self.fast, self.params.tau)

    def evaluated(self, student: nn.Module) -> nn.Module:
        return self.slow

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.slow.load_state_dict(state["slow"])
