"""Pooled penultimate features before the last activation, for any timm model: KDEP, He et al., CVPR 2022, §3.1.

The last activation is found by walking the autograd graph back from the pooled feature through pooling, reshaping,
concatenation and dropout: the first activation modules met are the last ones of the network. To read the feature before
them they are replaced by the identity *while the context lasts*. Hooking the norm layer in front of them would be
wrong: an in-place activation overwrites the very tensor that such a hook has kept.

B images, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput

# What may lie between the last activation and the pooled feature without changing which activation is the last one.
_PASSED_THROUGH = frozenset({
    "AdaptiveAvgPool2DBackward", "AdaptiveMaxPool2DBackward", "AliasBackward", "AsStridedBackward",
    "AvgPool2DBackward", "CatBackward", "CloneBackward", "ExpandBackward", "MaxPool2DWithIndicesBackward",
    "MeanBackward", "MkldnnAdaptiveAvgPool2DBackward", "NativeDropoutBackward", "PermuteBackward",
    "ReshapeAliasBackward", "SelectBackward", "SliceBackward",
    "SplitBackward", "SqueezeBackward", "StackBackward", "ToCopyBackward", "TransposeBackward", "UnsafeViewBackward",
    "UnsqueezeBackward", "ViewBackward",
})  # fmt: skip
# Activations that were called as a function, not as a module: there is nothing to replace, so such a model is refused.
_FUNCTIONAL_ACTIVATIONS = frozenset({
    "CeluBackward", "ClampBackward", "ClampMinBackward", "EluBackward", "GeluBackward", "HardsigmoidBackward",
    "HardswishBackward", "HardtanhBackward", "LeakyReluBackward", "MishBackward", "PreluKernelBackward",
    "ReluBackward", "SiluBackward", "SoftplusBackward", "ThresholdBackward",
})  # fmt: skip
_ACTIVATION_HOMES = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
# Normalisations that contain their non-linearity (x · sigmoid(vx), max(x, τ)): it cannot be taken away on its own.
_FUSED_HOMES = ("timm.layers.evo_norm", "timm.layers.filter_response_norm", "timm.layers.inplace_abn")


@dataclass(frozen=True)
class LastActivation:
    """One activation module whose output is pooled into the feature; `call` of its `calls` in a forward pass
    (0-based)."""

    path: str
    call: int
    calls: int


@dataclass(frozen=True)
class FeaturePoint:
    """Where a model's pre-activation feature is read; no activations: the model ends without one and passes through."""

    width: int
    activations: tuple[LastActivation, ...]

    @property
    def passes_through(self) -> bool:
        return not self.activations


def architecture_of(model: nn.Module) -> str:
    """The timm architecture name where the model knows it, else its class."""
    for holder in (getattr(model, "pretrained_cfg", None), getattr(model, "default_cfg", None)):
        name = holder.get("architecture") if isinstance(holder, dict) else getattr(holder, "architecture", None)
        if name:
            return str(name)
    return type(model).__name__


def input_size_of(model: nn.Module) -> tuple[int, int, int]:
    """The input [channels, height, width] the model was built for."""
    patch_embed = getattr(model, "patch_embed", None)
    configured = getattr(model, "pretrained_cfg", None)
    size = tuple((configured.get("input_size") if isinstance(configured, dict) else None) or (3, 224, 224))
    image_size = getattr(patch_embed, "img_size", None)
    if isinstance(image_size, Sequence) and len(image_size) == 2:
        size = (size[0], *image_size)
    return int(size[0]), int(size[1]), int(size[2])


def pooled_features(model: nn.Module, x: Tensor) -> Tensor:
    """The model's stock pooled penultimate feature: what its classifier sees.

    Shape:
        x: [B, 3, H, W], normalised for this model.
        returns: [B, D].

    Raises:
        BadInput: when the model has no timm `forward_features` / `forward_head(pre_logits=True)` with one vector a
        sample.
    """
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        raise BadInput(
            "architecture", architecture_of(model), "expected a timm model with forward_features and forward_head"
        )
    try:
        feature = model.forward_head(model.forward_features(x), pre_logits=True)  # type: ignore[operator]
    except TypeError as error:
        raise BadInput(
            "architecture", architecture_of(model), f"its head gives no pre-logits feature ({error})"
        ) from error
    if isinstance(feature, Tensor) and feature.ndim == 4 and feature.shape[2:] == (1, 1):
        feature = feature.flatten(1)
    if not isinstance(feature, Tensor) or feature.ndim != 2:
        raise BadInput(
            "architecture", architecture_of(model), "expected one pooled feature vector a sample before the head"
        )
    return feature


def find_feature_point(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> FeaturePoint:
    """Find the model's last activation(s) with one forward pass; weights, mode and hooks are as before afterwards.

    Args:
        input_size: [channels, height, width] of a probe; None: the size the model was built for.

    Raises:
        BadInput: naming the architecture, when the last activation cannot be taken away: it is called as a function, or
            something behind it (an affine, a sum) leaves a feature that is still nowhere negative.
    """
    size = input_size or input_size_of(model)
    was_training = {name: module.training for name, module in model.named_modules()}
    was_inplace = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    calls: dict[str, int] = {}
    owners: dict[object, tuple[str, int]] = {}  # the graph node of an activation's output → its module and which call
    fused: set[object] = set()
    handles = []

    def watch(path: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            call = calls.get(path, 0)
            calls[path] = call + 1
            if isinstance(output, Tensor) and output.grad_fn is not None:
                owners[output.grad_fn] = (path, call)

        return hook

    def watch_fused(module: nn.Module, args: object, output: Tensor) -> None:
        fused.add(output.grad_fn)

    for path, module in model.named_modules():
        if is_activation(module):
            handles.append(module.register_forward_hook(watch(path)))
        elif type(module).__module__ in _FUSED_HOMES:
            handles.append(module.register_forward_hook(watch_fused))
    parameter = next(model.parameters())
    probe = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    probe = probe.to(parameter.device, parameter.dtype).requires_grad_()
    try:
        model.eval()
        for module in was_inplace:  # in place on a view, the graph would hide whose output it is
            module.inplace = False  # type: ignore[assignment]
        with torch.inference_mode(False), torch.enable_grad():
            feature = pooled_features(model, probe)
            reached = _walk_back(feature, owners, fused, architecture_of(model))
            lowest = float(feature.detach().min())
    finally:
        for handle in handles:
            handle.remove()
        for name, module in model.named_modules():
            module.training = was_training[name]
        for module in was_inplace:
            module.inplace = True  # type: ignore[assignment]
    if not reached and lowest >= 0:
        raise BadInput(
            "architecture",
            architecture_of(model),
            "its pooled feature is rectified, but not by a last activation that can be taken away; use another model",
        )
    found = tuple(LastActivation(path, call, calls[path]) for path, call in sorted(reached))
    return FeaturePoint(int(feature.shape[1]), found)


def is_activation(module: nn.Module) -> bool:
    """A module that torch or timm call an activation, or any other without weights that is a non-linear function of
    each value."""
    if type(module).__module__ in _ACTIVATION_HOMES:
        return not isinstance(module, nn.MultiheadAttention)
    if next(module.parameters(), None) is not None or next(module.children(), None) is not None:
        return False
    if type(module).__module__.startswith("torch."):
        return False
    values = torch.linspace(-3.0, 3.0, 16).reshape(1, 1, 4, 4)
    try:
        with torch.no_grad():
            output, flipped, doubled = (module(v.clone()) for v in (values, values.flip(2, 3), 2 * values))
    except Exception:  # it takes something else than one tensor
        return False
    if not all(isinstance(o, Tensor) and o.shape == values.shape for o in (output, flipped, doubled)):
        return False
    return torch.equal(output.flip(2, 3), flipped) and not torch.allclose(doubled, 2 * output)


def _walk_back(
    feature: Tensor, owners: dict[object, tuple[str, int]], fused: set[object], architecture: str
) -> set[tuple[str, int]]:
    """Activation calls reached from the feature through pooling and reshaping alone."""
    reached: set[tuple[str, int]] = set()
    seen: set[object] = set()
    open_nodes: list[object] = [feature.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = node.name().rstrip("0123456789")  # type: ignore[attr-defined]
        if node in owners:
            reached.add(owners[node])
        elif kind in _FUNCTIONAL_ACTIVATIONS or node in fused:
            name = "part of its norm layer" if node in fused else f"a function call ({kind.removesuffix('Backward')})"
            raise BadInput("architecture", architecture, f"its last activation is {name} and cannot be taken away")
        elif kind in _PASSED_THROUGH:
            open_nodes.extend(parent for parent, _ in node.next_functions)  # type: ignore[attr-defined]
    return reached


class _Bypass(nn.Module):
    """Stands in for an activation: the identity at one call of a forward pass, the activation itself at the others."""

    def __init__(self, activation: nn.Module, bypassed: frozenset[int], calls: int) -> None:
        super().__init__()
        self.activation, self.bypassed, self.calls, self.next_call = activation, bypassed, calls, 0

    def forward(self, x: Tensor) -> Tensor:
        call, self.next_call = self.next_call, (self.next_call + 1) % self.calls
        if call in self.bypassed:
            return x
        output: Tensor = self.activation(x)
        return output


@contextmanager
def without_last_activation(model: nn.Module, point: FeaturePoint) -> Iterator[nn.Module]:
    """While the context lasts, the model's last activation is the identity; afterwards it is the very same object
    again.

    Parameters, buffers and the keys of `state_dict` of everything else stay as they are, so an optimizer built before
    goes on.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    by_path: dict[str, set[int]] = {}
    calls: dict[str, int] = {}
    for last in point.activations:
        by_path.setdefault(last.path, set()).add(last.call)
        calls[last.path] = last.calls
    try:
        for path, bypassed in by_path.items():
            parent_path, _, name = path.rpartition(".")
            parent = model.get_submodule(parent_path)
            activation = parent.get_submodule(name)
            alone = len(bypassed) == calls[path]
            stand_in = nn.Identity() if alone else _Bypass(activation, frozenset(bypassed), calls[path])
            replaced.append((parent, name, activation))
            setattr(parent, name, stand_in)
        yield model
    finally:
        for parent, name, activation in reversed(replaced):
            setattr(parent, name, activation)


def pre_activation_features(model: nn.Module, x: Tensor, point: FeaturePoint) -> Tensor:
    """The pooled penultimate feature before the last activation; equals `pooled_features` where the model has none.

    Shape:
        x: [B, 3, H, W], normalised for this model.
        returns: [B, D]; differentiable.
    """
    with without_last_activation(model, point):
        return pooled_features(model, x)
