"""Transfer between two trained models: one objective per method, found by name in `OBJECTIVES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backend.domain.methods import Transfer, check_teachers
from workers.science.training import Objective
from workers.science.transfer.cd import CosineDistillation
from workers.science.transfer.crd import ContrastiveDistillation
from workers.science.transfer.cross_entropy import CrossEntropy, LabelSmoothing
from workers.science.transfer.dp import KLDP
from workers.science.transfer.kl import KL, XEKL, SelfKL
from workers.science.transfer.mcl import MCL
from workers.science.transfer.roles import FROZEN_STUDENT, Roles
from workers.science.transfer.soft_targets import SoftTargets
from workers.science.transfer.topk import TopKKL

OBJECTIVES: dict[str, Callable[[Any, Roles], Objective]] = {
    "ce": CrossEntropy,
    "self_kl": SelfKL,
    "label_smoothing": LabelSmoothing,
    "kl": KL,
    "xe_kl": XEKL,
    "mcl": MCL,
    "kl_dp": KLDP,
    "topk_kl": TopKKL,
    "soft_ce": SoftTargets,
    "cd": CosineDistillation,
    "crd": ContrastiveDistillation,
}


def build_objective(params: Transfer, roles: Roles) -> Objective:
    """The objective of `params` for these models.

    Raises:
        BadInput: more or fewer teachers than the method takes.
    """
    check_teachers(params, roles.teachers)
    method: str = params.method  # type: ignore[attr-defined]
    return OBJECTIVES[method](params, roles)


__all__ = ["FROZEN_STUDENT", "OBJECTIVES", "Roles", "build_objective"]
