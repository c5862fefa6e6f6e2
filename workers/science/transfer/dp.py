"""KL transfer with data partitioning (KL+DP): Roth et al., arXiv:2310.17653, §4.2, Eq. 4-5; several teachers §4.3.

B samples, C classes, K teachers, T temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput
from backend.domain.methods import KLDPParams
from workers.science.batch import Batch
from workers.science.training import Objective, Terms
from workers.science.transfer.kl import kl, mix
from workers.science.transfer.roles import FROZEN_STUDENT, FrozenModels, Roles, labels_of


def partition_scores(logits: Tensor, labels: Tensor | None) -> Tensor:
    """How well a model knows each sample: p[y], or max p where there are no labels; softmax at T = 1, always.

    Shape:
        logits: [B, C]; labels: [B] or None → [B].
    """
    probs = logits.double().softmax(dim=1)
    return probs.amax(dim=1) if labels is None else probs.gather(1, labels[:, None]).squeeze(1)


def teacher_mask(teacher_logits: Tensor, frozen_logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """True where the teacher scores strictly higher than the frozen student, [B]; a tie keeps the student."""
    return partition_scores(teacher_logits, labels) > partition_scores(frozen_logits, labels)


def pick_model(models_logits: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
    """Index of the best-scoring model per sample, [B]; the first wins ties, so the frozen student comes first.

    With two models it is `teacher_mask`.
    """
    return torch.stack([partition_scores(logits, labels) for logits in models_logits]).argmax(dim=0)


def kl_dp(
    student_logits: Tensor,
    teacher_logits: Tensor,
    frozen_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Learn from the teacher where it beats the frozen student, elsewhere from the frozen student.

    Reduces to plain KL when teacher and frozen student agree; unsupervised when `labels` is None. No cross-entropy.

    Args:
        student_logits: The model in training, [B, C]; the only input that needs a gradient.
        teacher_logits, frozen_logits: Targets, [B, C], each from its own model's normalisation.
        labels: True classes, [B].
        temperature: Of the loss; the partition is always made at T = 1.
    """
    return kl_dp_parallel(student_logits, [teacher_logits], frozen_logits, labels, temperature=temperature)


def kl_dp_parallel(
    student_logits: Tensor,
    teachers_logits: Sequence[Tensor],
    frozen_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """KL+DP from K teachers at once: each sample learns from the best of frozen student, teacher 1, …, teacher K.

    Reduces to `kl_dp` with one teacher.

    Shape:
        student_logits, frozen_logits, each of teachers_logits: [B, C]; labels: [B] or None → scalar.
    """
    models_logits = [frozen_logits, *teachers_logits]
    target = _take(models_logits, pick_model(models_logits, labels))
    return kl(student_logits, target, temperature=temperature)


def _take(models_logits: Sequence[Tensor], picks: Tensor) -> Tensor:
    return torch.stack(list(models_logits))[picks, torch.arange(len(picks), device=picks.device)]


class KLDP(Objective):
    """KL+DP from one teacher, or from several in parallel.

    Diagnostics (over the epoch): `teacher_share` of the samples; where there are labels `positive_flips_to_teacher`
    and `negative_flips_to_teacher`, the shares of the samples that only the teacher (some teacher), or only the
    frozen student, has right and whose target is a teacher.
    """

    def __init__(self, params: KLDPParams, roles: Roles) -> None:
        if len(roles.teachers) > 1 and params.multi != "parallel":
            raise BadInput("multi", params.multi, f"one teacher at a time ({params.multi} runs them one by one)")
        self.params = params
        self.teachers = list(roles.teachers)
        self.frozen = FrozenModels.of(roles, frozen_student=True)
        self._counts = torch.zeros(6, dtype=torch.int64)
        self._pending = torch.zeros(6, dtype=torch.int64)

    def to(self, device: torch.device) -> None:
        self.frozen.to(device)
        self._counts, self._pending = self._counts.to(device), self._pending.to(device)

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        supervised = self.params.partition == "supervised"
        labels = labels_of(batch, "kl_dp") if supervised or self.params.kd_weight < 1 else batch.labels
        student_logits = student(batch.view)
        names = [FROZEN_STUDENT, *self.teachers]
        models_logits = [self.frozen.logits(name, batch, student_logits) for name in names]
        picks = pick_model(models_logits, labels if supervised else None)
        self._pending = self._pending + _partition_counts(models_logits, picks, batch.labels)
        distillation = kl(student_logits, _take(models_logits, picks), temperature=self.params.temperature)
        terms = mix(distillation, student_logits, labels, self.params.kd_weight)
        return terms | {"teacher_share": (picks > 0).float().mean()}

    def begin_epoch(self, epoch: int) -> None:
        self._counts = torch.zeros_like(self._counts)

    def begin_pass(self) -> None:
        self._pending = torch.zeros_like(self._pending)

    def after_step(self, step: int) -> None:
        self._counts = self._counts + self.ranks.sum(self._pending)

    def diagnostics(self) -> dict[str, float]:
        n, to_teacher, positive, positive_to_teacher, negative, negative_to_teacher = self._counts.tolist()
        shares = {"teacher_share": (to_teacher, n)}
        shares["positive_flips_to_teacher"] = (positive_to_teacher, positive)
        shares["negative_flips_to_teacher"] = (negative_to_teacher, negative)
        return {name: part / whole for name, (part, whole) in shares.items() if whole}

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts = state["counts"].to(self._counts.device)


def _partition_counts(models_logits: Sequence[Tensor], picks: Tensor, labels: Tensor | None) -> Tensor:
    """[samples, to a teacher, positive flips, of them to a teacher, negative flips, of them to a teacher]."""
    to_teacher = picks > 0
    if labels is None:
        positive = negative = torch.zeros_like(to_teacher)
    else:
        right = torch.stack([logits.argmax(dim=1) == labels for logits in models_logits])
        positive = right[1:].any(dim=0) & ~right[0]
        negative = right[0] & ~right[1:].any(dim=0)
    parts = [torch.ones_like(to_teacher), to_teacher, positive, positive & to_teacher, negative, negative & to_teacher]
    return torch.stack(parts).sum(dim=1)
