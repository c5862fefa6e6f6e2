"""Distilling a prepared teacher: KD (Hinton et al., arXiv:1503.02531), DIST (Huang et al., arXiv:2205.10536) and
patient distillation (Beyer et al., arXiv:2106.05237).

B samples, C classes, τ or T temperature, w kd_weight; z_s, z_t logits of student and teacher; y = σ(z / τ).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backend.domain.remem import StudentDistillation
from workers.science.batch import Batch
from workers.science.training import Objective, Terms
from workers.science.transfer.kl import kl, mix, only_teacher
from workers.science.transfer.roles import FrozenModels, Roles, labels_of

_EPSILON = 1e-8


def pearson_rows(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of `a` with that of `b`, ε on the product of the norms, [B, C] → [B]."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    correlation: Tensor = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + _EPSILON)
    return correlation


def dist_relations(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """DIST's two losses: inter (1 − mean correlation over samples' rows) and intra (over classes' columns), each × τ².

    Both are 0 when the student's probabilities are an affine image of the teacher's, and in [0, 2 τ²].

    Shape:
        student_logits, teacher_logits: [B, C] → two scalars.
    """
    student = (student_logits.double() / temperature).softmax(dim=1)
    teacher = (teacher_logits.double() / temperature).softmax(dim=1)
    inter = 1 - pearson_rows(student, teacher).mean()
    intra = 1 - pearson_rows(student.t(), teacher.t()).mean()
    return inter * temperature**2, intra * temperature**2


def mixed(view: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Each image mixed with another of the batch, λ x + (1 − λ) x', one λ ~ Beta(α, α); draws from torch's generator.

    Images in [0, 1] stay there. Shape: [B, 3, H, W] → the same.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return view.lerp(view[torch.randperm(len(view)).to(view.device)], 1 - share)


class _Distillation(Objective):
    """A student and one teacher that only answers."""

    def __init__(self, params: StudentDistillation, roles: Roles) -> None:
        self.params = params
        self.frozen = FrozenModels.of(roles)
        self.teacher = only_teacher(roles)

    def to(self, device: torch.device) -> None:
        self.frozen.to(device)

    def _labels(self, batch: Batch) -> Tensor | None:
        return None if self.params.kd_weight == 1 else labels_of(batch, self.params.method)


class Kd(_Distillation):
    """(1 − w) CE + w T² KL."""

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        logits = student(batch.view)
        target = self.frozen.logits(self.teacher, batch, logits)
        distillation = kl(logits, target, temperature=self.params.temperature)
        return mix(distillation, logits, self._labels(batch), self.params.kd_weight)


class Dist(_Distillation):
    """(1 − w) CE + w (β inter + γ intra): learn the teacher's relations, not its numbers."""

    per_sample = False

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        logits = student(batch.view)
        target = self.frozen.logits(self.teacher, batch, logits)
        inter, intra = dist_relations(logits, target, temperature=self.params.temperature)
        distillation = self.params.inter_weight * inter + self.params.intra_weight * intra
        terms = mix(distillation, logits, self._labels(batch), self.params.kd_weight)
        return terms | {"inter": inter.detach(), "intra": intra.detach()}


class Patient(_Distillation):
    """T² KL on mixed images that teacher and student see alike; no labels, and no cached outputs (of other images)."""

    per_sample = False

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        view = mixed(batch.view, alpha=self.params.mixup_alpha)
        one_view = Batch(view, batch.labels, batch.indices)
        logits = student(view)
        target = self.frozen.logits(self.teacher, one_view, logits)
        return mix(kl(logits, target, temperature=self.params.temperature), logits, None, 1)


DISTILLATIONS: dict[str, type[_Distillation]] = {"kd": Kd, "dist": Dist, "patient": Patient}
