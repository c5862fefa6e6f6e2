"""KL transfer, with and without cross-entropy: Roth et al., arXiv:2310.17653, §4.1 (Hinton et al., arXiv:1503.02531).

B samples, C classes, T temperature; z_s, z_t logits of student and teacher.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.domain.errors import BadInput
from backend.domain.methods import KLParams, SelfKLParams, XEKLParams
from workers.science.batch import Batch
from workers.science.preprocessed import ABSENT
from workers.science.training import Objective, Terms
from workers.science.transfer.roles import FROZEN_STUDENT, FrozenModels, Roles, labels_of


def kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T² / B · Σ KL(σ(z_t / T) ‖ σ(z_s / T)), nats; the teacher is the target.

    0 where both agree; never negative. Computed in float64: at large T the terms nearly cancel, and T² enlarges what
    is left of their rounding. Classes that the teacher's head cannot express (`ABSENT`) are left out of both softmaxes,
    so the student's opinion of them, and of their share against the others, is not touched.

    Shape:
        student_logits, teacher_logits: [B, C] → scalar.
    """
    student_log_probs = shared_log_softmax(student_logits, teacher_logits, temperature)
    teacher_log_probs = shared_log_softmax(teacher_logits, teacher_logits, temperature)
    divergence = F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def shared_log_softmax(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """log σ(z / T) over the classes that the teacher expresses, [B, C], 0 at the others; in float64.

    `log_softmax` where the teacher expresses all of them.
    """
    absent = teacher_logits <= ABSENT / 2  # bfloat16 rounds it
    return F.log_softmax((logits.double() / temperature).masked_fill(absent, -torch.inf), dim=1).masked_fill(
        absent, 0.0
    )


def xe_kl(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, kd_weight: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """kd_weight · KL + (1 - kd_weight) · CE(z_s, y); plain KL at kd_weight 1, cross-entropy at 0.

    Shape:
        student_logits, teacher_logits: [B, C]; labels: [B] → scalar.
    """
    distillation = kl(student_logits, teacher_logits, temperature=temperature)
    return mix(distillation, student_logits, labels, kd_weight)["loss"]


def mix(distillation: Tensor, student_logits: Tensor, labels: Tensor | None, kd_weight: float) -> Terms:
    """kd_weight · distillation + (1 - kd_weight) · cross-entropy, as named terms; without `labels` the first alone."""
    if labels is None or kd_weight == 1:
        return {"loss": distillation, "distillation": distillation.detach()}
    cross_entropy = F.cross_entropy(student_logits.double(), labels)
    loss = kd_weight * distillation + (1 - kd_weight) * cross_entropy
    return {"loss": loss, "distillation": distillation.detach(), "cross_entropy": cross_entropy.detach()}


class KL(Objective):
    """Learn the teacher's probabilities, right or wrong."""

    def __init__(self, params: KLParams, roles: Roles) -> None:
        self.params = params
        self.frozen = FrozenModels.of(roles)
        self.teacher = only_teacher(roles)

    def to(self, device: torch.device) -> None:
        self.frozen.to(device)

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        student_logits = student(batch.view)
        teacher_logits = self.frozen.logits(self.teacher, batch, student_logits)
        return mix(kl(student_logits, teacher_logits, temperature=self.params.temperature), student_logits, None, 1)


class XEKL(KL):
    """Learn the teacher's probabilities and the labels."""

    params: XEKLParams  # type: ignore[assignment]

    def __init__(self, params: XEKLParams, roles: Roles) -> None:
        super().__init__(params, roles)  # type: ignore[arg-type]

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        student_logits = student(batch.view)
        teacher_logits = self.frozen.logits(self.teacher, batch, student_logits)
        distillation = kl(student_logits, teacher_logits, temperature=self.params.temperature)
        return mix(distillation, student_logits, labels_of(batch, "xe_kl"), self.params.kd_weight)


class SelfKL(Objective):
    """Control: the initial student is its own teacher, so that only the training itself can change it."""

    def __init__(self, params: SelfKLParams, roles: Roles) -> None:
        self.params = params
        self.frozen = FrozenModels.of(roles, teachers=False, frozen_student=True)

    def to(self, device: torch.device) -> None:
        self.frozen.to(device)

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        student_logits = student(batch.view)
        frozen_logits = self.frozen.logits(FROZEN_STUDENT, batch, student_logits)
        return mix(kl(student_logits, frozen_logits, temperature=self.params.temperature), student_logits, None, 1)


def only_teacher(roles: Roles) -> str:
    """The one teacher's name.

    Raises:
        BadInput: there are several; the caller runs them one after another, or makes a soup of their students.
    """
    if len(roles.teachers) != 1:
        raise BadInput("teachers", list(roles.teachers), "one at a time")
    return next(iter(roles.teachers))
