"""The multi-layer variant of KDEP: the last stages of teacher and student, each aligned and transformed by itself.

Stages are counted from the end, so that stage 1 is the penultimate feature of plain KDEP and stage k the k-th from
last of either network. An earlier stage's feature is its map's mean over positions, before the stage's last
activation where the map is the output of one activation, else as it is. He et al., CVPR 2022, supplementary.

B images; D_k channels of stage k; maps are [B, D_k, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput
from workers.science.batch import Batch
from workers.science.kdep.features import (
    FeaturePoint,
    architecture_of,
    find_feature_point,
    input_size_of,
    is_activation,
    pre_activation_features,
    without_last_activation,
)
from workers.science.kdep.objective import feature_loss
from workers.science.kdep.targets import TARGET
from workers.science.preprocessed import Preprocessed
from workers.science.training import Objective, Terms


@dataclass(frozen=True)
class StagePoint:
    """One earlier stage: its index among timm's intermediates, its width, and the activation its map comes from, if
    any."""

    index: int
    width: int
    activation: str | None
    call: int = 0
    calls: int = 1


@dataclass(frozen=True)
class LayerPoints:
    """Where the features of several stages are read: the penultimate one, then earlier stages from the end on."""

    last: FeaturePoint
    earlier: tuple[StagePoint, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.last.width, *(stage.width for stage in self.earlier))


def find_layer_points(model: nn.Module, layers: int, input_size: tuple[int, int, int] | None = None) -> LayerPoints:
    """Find the last `layers` stages; one forward pass, the model is as before afterwards.

    Raises:
        BadInput: naming the architecture, when it gives no intermediates or has fewer stages.
    """
    last = find_feature_point(model, input_size)
    if layers == 1:
        return LayerPoints(last, ())
    if not hasattr(model, "forward_intermediates"):
        raise BadInput("layers", layers, f"expected 1: {architecture_of(model)} gives no intermediate features in timm")
    size = input_size or input_size_of(model)
    parameter = next(model.parameters())
    probe = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(parameter.device, parameter.dtype)
    calls: dict[str, list[Tensor]] = {}
    handles = []
    was_training = {name: module.training for name, module in model.named_modules()}
    was_inplace = [module for module in model.modules() if getattr(module, "inplace", False) is True]

    def watch(path: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            calls.setdefault(path, []).append(output)

        return hook

    try:
        model.eval()
        for module in was_inplace:
            module.inplace = False  # type: ignore[assignment]
        for path, module in model.named_modules():
            if is_activation(module):
                handles.append(module.register_forward_hook(watch(path)))
        with torch.no_grad():
            maps = _intermediates(model, probe)
    finally:
        for handle in handles:
            handle.remove()
        for name, module in model.named_modules():
            module.training = was_training[name]
        for module in was_inplace:
            module.inplace = True  # type: ignore[assignment]
    if len(maps) < layers:
        raise BadInput("layers", layers, f"expected at most {len(maps)}, the stages of {architecture_of(model)}")
    earlier = []
    for index in range(len(maps) - 2, len(maps) - 1 - layers, -1):
        stage = StagePoint(index, int(maps[index].shape[1]), None)
        for path, outputs in calls.items():
            for call, output in enumerate(outputs):
                if output is maps[index]:
                    stage = StagePoint(index, stage.width, path, call, len(outputs))
        earlier.append(stage)
    return LayerPoints(last, tuple(earlier))


def _intermediates(model: nn.Module, x: Tensor) -> list[Tensor]:
    maps: list[Tensor] = model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")  # type: ignore[operator]
    return maps


class _Tap(nn.Module):
    """Stands in for an activation: does the same, and keeps what goes into it at one call (a copy, if it works in
    place)."""

    def __init__(self, activation: nn.Module, call: int, calls: int) -> None:
        super().__init__()
        self.activation, self.call, self.calls, self.next_call = activation, call, calls, 0
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        call, self.next_call = self.next_call, (self.next_call + 1) % self.calls
        if call == self.call:
            self.kept = x
            x = x.clone()
        output: Tensor = self.activation(x)
        return output


@contextmanager
def _tapped(model: nn.Module, stages: Sequence[StagePoint]) -> Iterator[dict[int, _Tap]]:
    """While the context lasts, the stages' activations also keep their inputs: {stage index: tap}."""
    taps: dict[int, _Tap] = {}
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for stage in stages:
            if stage.activation is None:
                continue
            parent_path, _, name = stage.activation.rpartition(".")
            parent = model.get_submodule(parent_path)
            activation = parent.get_submodule(name)
            taps[stage.index] = _Tap(activation, stage.call, stage.calls)
            replaced.append((parent, name, activation))
            setattr(parent, name, taps[stage.index])
        yield taps
    finally:
        for parent, name, activation in reversed(replaced):
            setattr(parent, name, activation)


def layer_features(model: nn.Module, x: Tensor, points: LayerPoints) -> tuple[Tensor, ...]:
    """Pooled pre-activation features, the penultimate one first, then earlier stages from the end on: each [B, D_k].

    One layer reduces to `pre_activation_features`.
    """
    if not points.earlier:
        return (pre_activation_features(model, x, points.last),)
    with without_last_activation(model, points.last), _tapped(model, points.earlier) as taps:
        final, maps = model.forward_intermediates(x, output_fmt="NCHW")  # type: ignore[operator]
        features = [model.forward_head(final, pre_logits=True).flatten(1)]  # type: ignore[operator]
    for stage in points.earlier:
        tap = taps.get(stage.index)
        stage_map = maps[stage.index] if tap is None or tap.kept is None else tap.kept
        features.append(stage_map.mean(dim=(2, 3)))
    return tuple(features)


class LayersObjective(Objective):
    """Σ_k weight_k · mean squared difference of stage k; one layer reduces to `FeatureObjective`.

    Targets are one tensor [B, Σ D_k]: the stages' targets side by side, the penultimate one first.

    Args:
        target_of: View → targets; None where they are cached.
        weights: Of each stage, the penultimate one first.
    """

    def __init__(
        self, points: LayerPoints, weights: Sequence[float], target_of: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        if len(weights) != len(points.widths):
            raise BadInput("weights", len(weights), f"expected {len(points.widths)}, one for each layer")
        self.points, self.weights, self.target_of = points, tuple(weights), target_of

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        if not isinstance(student, Preprocessed):
            raise BadInput("student", type(student).__name__, "expected a timm model behind its preprocessing")
        features = layer_features(student.model, student.prepare(batch.view), self.points)
        cached = batch.outputs.get(TARGET)
        if cached is None and self.target_of is None:
            raise BadInput("outputs", sorted(batch.outputs), f"expected cached {TARGET!r}, or a teacher to compute it")
        if cached is None:
            assert self.target_of is not None
            with torch.no_grad():
                cached = self.target_of(batch.view)
        if cached.shape[1] != sum(self.points.widths):
            raise BadInput("target", int(cached.shape[1]), f"expected {sum(self.points.widths)} channels in all")
        targets = torch.split(cached.float(), list(self.points.widths), dim=1)
        parts = [
            feature_loss(feature, target, weight=weight)
            for feature, target, weight in zip(features, targets, self.weights, strict=True)
        ]
        names = {f"layer_{k}": part for k, part in enumerate(parts, start=1)}
        return {"loss": torch.stack(parts).sum(), **names}


def layer_weights(layers: int, loss_weight: float, layer_weight: float) -> tuple[float, ...]:
    """The penultimate feature has the whole weight, every earlier stage `layer_weight` of it."""
    return (loss_weight, *[loss_weight * layer_weight] * (layers - 1))
