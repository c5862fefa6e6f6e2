"""What a student learns in KDEP and in its baselines, as objectives of `training.fit`: He et al., CVPR 2022, §3 and
table 2.

Teachers' targets arrive cached in `Batch.outputs["kdep_target"]`; without a cache a frozen teacher computes them.
B samples, D_t teacher channels, D_s student channels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.domain.errors import BadInput
from backend.domain.kdep import KdepParams
from workers.science.batch import Batch
from workers.science.kdep.align import LinearConnector, OverhaulConnector, margin_relu, partial_l2
from workers.science.kdep.features import FeaturePoint, pooled_features, pre_activation_features
from workers.science.kdep.targets import TARGET
from workers.science.preprocessed import Preprocessed
from workers.science.training import Objective, Terms

TargetOf = Callable[[Tensor], Tensor]
"""A view [B, 3, H, W] in [0, 1] → the target of the student on it."""


def feature_loss(student: Tensor, target: Tensor, *, weight: float = 1.0) -> Tensor:
    """weight · mean squared difference over all elements; 0 when the student has learnt the target.

    Shape:
        student, target: [B, D].
    """
    return weight * F.mse_loss(student, target.to(student.dtype))


class _Distilled(Objective):
    """Finds the target of a batch: cached, or from the teacher on the same view."""

    def __init__(self, target_of: TargetOf | None) -> None:
        self.target_of = target_of

    def target(self, batch: Batch) -> Tensor:
        """[B, ·], without gradient.

        Raises:
            BadInput: neither cached nor computable.
        """
        cached = batch.outputs.get(TARGET)
        if cached is not None:
            return cached.float()
        if self.target_of is None:
            raise BadInput("outputs", sorted(batch.outputs), f"expected cached {TARGET!r}, or a teacher to compute it")
        with torch.no_grad():
            return self.target_of(batch.view).float()


class FeatureObjective(_Distilled):
    """KDEP: the student's pooled pre-activation feature is pulled to the teacher's aligned and transformed one.

    Args:
        point: Where the student's feature is read (`find_feature_point`).
        target_of: View → target [B, D_s]; None where targets are cached.
        weight: Of the loss.
    """

    def __init__(self, point: FeaturePoint, target_of: TargetOf | None = None, *, weight: float = 1.0) -> None:
        super().__init__(target_of)
        self.point, self.weight = point, weight

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        model = _preprocessed(student)
        feature = pre_activation_features(model.model, model.prepare(batch.view), self.point)
        target = self.target(batch)
        if feature.shape != target.shape:
            raise BadInput("target", tuple(target.shape), f"expected {tuple(feature.shape)}, as the student's feature")
        return {"loss": feature_loss(feature, target, weight=self.weight)}


class ConnectorObjective(_Distilled):
    """The learnable baselines: the student's feature goes through a trained connector to the teacher's channels.

    `conv_before_relu` compares features before either activation, `conv_after_relu` after both, `overhaul` compares the
    connected pre-activation feature with the teacher's behind a margin ReLU, by a partial L2. The connector is thrown
    away afterwards.

    Args:
        align: One of the three.
        margin: overhaul: the teacher's margins [D_t] (`NegativeMeans`).
    """

    def __init__(
        self,
        align: str,
        point: FeaturePoint,
        teacher_width: int,
        target_of: TargetOf | None = None,
        *,
        weight: float = 1.0,
        margin: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(target_of)
        if align not in ("conv_before_relu", "conv_after_relu", "overhaul"):
            raise BadInput("align", align, "one of: conv_before_relu, conv_after_relu, overhaul")
        if (align == "overhaul") != (margin is not None):
            raise BadInput("margin", margin, "expected the teacher's margins with overhaul, and only there")
        self.align, self.point, self.weight, self.margin = align, point, weight, margin
        connector = OverhaulConnector if align == "overhaul" else LinearConnector
        self.connector: nn.Module = connector(point.width, teacher_width, seed)

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        model = _preprocessed(student)
        x = model.prepare(batch.view)
        if self.align == "conv_after_relu":
            feature = pooled_features(model.model, x)
        else:
            feature = pre_activation_features(model.model, x, self.point)
        connected, target = self.connector(feature), self.target(batch)
        if self.margin is not None:
            return {"loss": self.weight * partial_l2(connected, margin_relu(target, self.margin))}
        return {"loss": feature_loss(connected, target, weight=self.weight)}

    def parameters(self) -> Iterable[nn.Parameter]:
        return self.connector.parameters()

    def to(self, device: torch.device) -> None:
        self.connector.to(device)
        if self.margin is not None:
            self.margin = self.margin.to(device)

    def state_dict(self) -> dict[str, Any]:
        return {"connector": self.connector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.connector.load_state_dict(state["connector"])


class LogitsObjective(_Distilled):
    """The logits-KD baseline: T² · KL(teacher ‖ student) of the softmaxes at temperature T, no labels.

    The student needs as many outputs as the teacher has classes.
    """

    def __init__(self, target_of: TargetOf | None = None, *, temperature: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(target_of)
        self.temperature, self.weight = temperature, weight

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        logits, target = student(batch.view), self.target(batch)
        if logits.shape != target.shape:
            raise BadInput("num_classes", int(logits.shape[1]), f"expected the teacher's {target.shape[1]} classes")
        log_student = F.log_softmax(logits.float() / self.temperature, dim=1)
        log_teacher = F.log_softmax(target / self.temperature, dim=1)
        divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")
        return {"loss": self.weight * self.temperature**2 * divergence}


class SupervisedObjective(Objective):
    """The supervised baseline: cross-entropy with the labels, no teacher."""

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        if batch.labels is None:
            raise BadInput("dataset", "no labels", "expected a labelled data set for method supervised")
        return {"loss": F.cross_entropy(student(batch.view).float(), batch.labels)}


def build_objective(
    params: KdepParams,
    point: FeaturePoint,
    teacher_width: int,
    target_of: TargetOf | None = None,
    margin: Tensor | None = None,
) -> Objective:
    """The objective that the params name, for a student whose feature is read at `point`."""
    if params.method in ("supervised", "none"):
        return SupervisedObjective()
    if params.method == "logits":
        return LogitsObjective(target_of, temperature=params.kd_temperature)
    if params.learnable:
        return ConnectorObjective(
            params.align, point, teacher_width, target_of, weight=params.loss_weight, margin=margin, seed=params.seed
        )
    return FeatureObjective(point, target_of, weight=params.loss_weight)


def _preprocessed(student: nn.Module) -> Preprocessed:
    if not isinstance(student, Preprocessed):
        raise BadInput("student", type(student).__name__, "expected a timm model behind its preprocessing")
    return student
