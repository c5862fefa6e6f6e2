"""Contrastive representation distillation (CRD): Tian et al., arXiv:1910.10699, with memory banks and NCE.

Student and teacher features go through linear heads to E dimensions and onto the unit sphere. Each sample's student
embedding is to recognise the teacher embedding of the same sample among those of K samples of other classes, drawn from
a memory of all N, and the other way round. B samples, N in the transfer set, K negatives, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.domain.errors import BadInput
from backend.domain.methods import CRDParams
from workers.science.batch import Batch
from workers.science.training import Objective, Terms
from workers.science.transfer.kl import mix, only_teacher
from workers.science.transfer.roles import FrozenModels, Roles, labels_of, with_features


def nce_loss(scores: Tensor, n_samples: int) -> Tensor:
    """Noise-contrastive estimation (Eq. 17-19): mean over B of -log h(positive) - Σ log(1 - h(negative)).

    h = s / (s + K / N) with K = negatives per sample, the chance of a sample among uniform noise.

    Shape:
        scores: [B, 1 + K], normalised exp(similarity / T), the positive first → scalar.
    """
    noise = (scores.shape[1] - 1) / n_samples
    positive = torch.log(scores[:, 0] / (scores[:, 0] + noise + 1e-7))
    negative = torch.log(noise / (scores[:, 1:] + noise + 1e-7))
    return -(positive.sum() + negative.sum()) / scores.shape[0]


def draw_negatives(labels: Tensor, by_class: Tensor, class_ends: Tensor, k: int) -> Tensor:
    """k positions of samples of other classes for each label, uniform with replacement, from torch's generator.

    Shape:
        labels: [B]; by_class: [N] positions sorted by class; class_ends: [C] cumulated class sizes → [B, k].
    """
    ends = class_ends[labels]
    begins = torch.where(labels > 0, class_ends[(labels - 1).clamp(min=0)], 0)
    sizes = ends - begins
    others = len(by_class) - sizes
    drawn = (torch.rand(len(labels), k, device=labels.device, dtype=torch.float64) * others[:, None]).long()
    drawn = torch.minimum(drawn, others[:, None] - 1)
    return by_class[torch.where(drawn < begins[:, None], drawn, drawn + sizes[:, None])]


class ContrastiveDistillation(Objective):
    """Learn the labels, and features that tell samples apart as the teacher's do.

    The memory is written after the optimizer's step, with the embeddings of the pass that made it. K is at most N - 1:
    more would only repeat samples.
    """

    def __init__(self, params: CRDParams, roles: Roles) -> None:
        if roles.transfer_labels is None:
            raise BadInput("labels", None, "a labelled transfer set: crd draws its negatives from other classes")
        self.params = params
        self.frozen = FrozenModels.of(roles)
        self.teacher = only_teacher(roles)
        labels = roles.transfer_labels.long().cpu()
        self.n_samples = len(labels)
        if bool((labels == labels[0]).all()):
            raise BadInput("labels", "one class", "at least two classes: crd draws its negatives from other classes")
        self.k = min(params.negatives, self.n_samples - 1)
        self.by_class = labels.argsort(stable=True)
        self.class_ends = labels.bincount().cumsum(0)
        teacher = roles.teachers[self.teacher]
        if teacher is None:
            raise BadInput(
                self.teacher, "cached outputs only", "the teacher itself: crd needs the width of its features"
            )
        with torch.random.fork_rng([]):
            torch.manual_seed(params.seed)
            self.student_head = nn.Linear(with_features(roles.student).feature_dim(), params.feature_dim)
            self.teacher_head = nn.Linear(with_features(teacher).feature_dim(), params.feature_dim)
            bound = 1 / math.sqrt(params.feature_dim / 3)
            self.student_memory = torch.empty(self.n_samples, params.feature_dim).uniform_(-bound, bound)
            self.teacher_memory = torch.empty(self.n_samples, params.feature_dim).uniform_(-bound, bound)
        self.scales = torch.zeros(2)  # Z of Eq. 19, set by the first batch; 0 is not yet set
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pending_scales: Tensor | None = None

    def parameters(self) -> Iterable[nn.Parameter]:
        return [*self.student_head.parameters(), *self.teacher_head.parameters()]

    def to(self, device: torch.device) -> None:
        self.frozen.to(device)
        for name in (
            "student_head",
            "teacher_head",
            "student_memory",
            "teacher_memory",
            "by_class",
            "class_ends",
            "scales",
        ):
            setattr(self, name, getattr(self, name).to(device))

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        labels = labels_of(batch, "crd")
        features, logits = with_features(student).features_and_logits(batch.view)
        with torch.autocast(features.device.type, enabled=False):
            student_embedding = F.normalize(self.student_head(features.float()), dim=1)
            teacher_features = self.frozen.features(self.teacher, batch)
            teacher_embedding = F.normalize(self.teacher_head(teacher_features.float()), dim=1)
            negatives = draw_negatives(labels, self.by_class, self.class_ends, self.k)
            positions = torch.cat([batch.indices[:, None], negatives], dim=1)
            of_student = self._scores(self.teacher_memory[positions], student_embedding)
            of_teacher = self._scores(self.student_memory[positions], teacher_embedding)
            z = self._normalisers(of_student, of_teacher)
            contrast = nce_loss(of_student / z[0], self.n_samples) + nce_loss(of_teacher / z[1], self.n_samples)
        self._pending.append((batch.indices, student_embedding.detach(), teacher_embedding.detach()))
        return mix(contrast, logits, labels, self.params.kd_weight)

    def begin_pass(self) -> None:
        self._pending, self._pending_scales = [], None

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if self._pending_scales is not None:
            self.scales = self._pending_scales
        keep = self.params.bank_momentum
        for indices, student_embedding, teacher_embedding in self._pending:
            for memory, fresh in ((self.student_memory, student_embedding), (self.teacher_memory, teacher_embedding)):
                memory[indices] = F.normalize(keep * memory[indices] + (1 - keep) * fresh, dim=1)
        self._pending, self._pending_scales = [], None

    def state_dict(self) -> dict[str, Any]:
        return {
            "student_head": self.student_head.state_dict(),
            "teacher_head": self.teacher_head.state_dict(),
            "student_memory": self.student_memory,
            "teacher_memory": self.teacher_memory,
            "scales": self.scales,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.student_head.load_state_dict(state["student_head"])
        self.teacher_head.load_state_dict(state["teacher_head"])
        self.student_memory.copy_(state["student_memory"])
        self.teacher_memory.copy_(state["teacher_memory"])
        self.scales = state["scales"].to(self.scales.device)

    def _scores(self, memory: Tensor, embedding: Tensor) -> Tensor:
        """exp(m · v / T), [B, 1 + K], of memory [B, 1 + K, E] and embedding [B, E]."""
        return torch.exp(torch.einsum("bke,be->bk", memory, embedding) / self.params.nce_temperature)

    def _normalisers(self, of_student: Tensor, of_teacher: Tensor) -> Tensor:
        """Z = N · mean score of the first batch, a constant from then on."""
        if self._pending_scales is None:
            first = torch.stack([of_student.detach().mean(), of_teacher.detach().mean()]) * self.n_samples
            self._pending_scales = torch.where(self.scales > 0, self.scales, first)
        return self._pending_scales
