"""Pooled penultimate features before the last activation, for any timm model: KDEP, He et al., CVPR 2022, §3.1.

The last activation is found by walking the autograd graph back from the pooled feature through pooling, reshaping,
concatenation and dropout: the first activation modules met are the last ones of the network. To read the feature before
them they are replaced by the identity *while the context lasts*. Hooking the norm layer in front of them would be
wrong: an in-place activation overwrites the very tensor that such a hook has kept.

B images, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput
from workers.science.kdep.activation_calls import ActivationCalls

# What may lie between the last activation and the pooled feature without changing which activation is the last one.
_PASSED_THROUGH = frozenset({
    "AdaptiveAvgPool2DBackward", "AdaptiveMaxPool2DBackward", "AliasBackward", "AsStridedBackward",
    "AvgPool2DBackward", "CatBackward", "CloneBackward", "ExpandBackward", "MaxPool2DWithIndicesBackward",
    "MeanBackward", "MkldnnAdaptiveAvgPool2DBackward", "NativeDropoutBackward", "PermuteBackward",
    "ReshapeAliasBackward", "SelectBackward", "SliceBackward",
    "SplitBackward", "SqueezeBackward", "StackBackward", "ToCopyBackward", "TransposeBackward", "UnsafeViewBackward",
    "UnsqueezeBackward", "ViewBackward",
})  # fmt: skip
# Activations: where one is met that is neither a module's nor a known function's, such as a clamp, the model is
# refused.
_ACTIVATION_NODES = frozenset({
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
    """Where a model's pre-activation feature is read; without any activation the model's own feature passes through.

    `functions` are numbers of activation functions' calls in a forward pass, out of `function_calls`, for a network
    that calls its last activation as a function; then `activations` is empty.
    """

    width: int
    activations: tuple[LastActivation, ...]
    functions: tuple[int, ...] = ()
    function_calls: int = 0

    @property
    def passes_through(self) -> bool:
        return not self.activations and not self.functions


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

    Networks without timm's `forward_features` and `forward_head` give what enters the linear layer they end with.

    Raises:
        BadInput: when there is no such vector, naming the architecture.
    """
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        return _classifier_input(model, x)
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


def _classifier_input(model: nn.Module, x: Tensor) -> Tensor:
    """What enters the linear layer whose output is the model's."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((output, args[0]))

    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    for output, feature in reversed(seen):
        if output is logits and feature.ndim == 2:
            return feature
    expected = "expected a timm model, or one that ends with a linear layer on one vector a sample"
    raise BadInput("architecture", architecture_of(model), expected)


def find_feature_point(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> FeaturePoint:
    """Find the model's last activation(s) with one forward pass; weights, mode and hooks are as before afterwards.

    Args:
        input_size: [channels, height, width] of a probe; None: the size the model was built for.

    Raises:
        BadInput: naming the architecture, when the last activation cannot be taken away: it is part of a norm layer or
            of an unknown function, or something behind it (an affine, a sum) leaves a feature that is nowhere negative.
    """
    size = input_size or input_size_of(model)
    was_training = {name: module.training for name, module in model.named_modules()}
    was_inplace = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    calls: dict[str, int] = {}
    owners: dict[object, tuple[str, int]] = {}  # the graph node of an activation's output → its module and which call
    fused: set[object] = set()
    functions: dict[object, int] = {}  # the same for activation functions, those that modules call among them
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
            with ActivationCalls(nodes=functions) as counter:
                feature = pooled_features(model, probe)
            reached = _walk_back(feature, owners, functions, fused, architecture_of(model))
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
    width = int(feature.shape[1])
    if any(node not in owners for node in reached):
        numbers = tuple(sorted(functions[node] for node in reached if node in functions))
        return FeaturePoint(width, (), numbers, counter.counted)
    found = sorted(owners[node] for node in reached)
    return FeaturePoint(width, tuple(LastActivation(path, call, calls[path]) for path, call in found))


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
            output, flipped = module(values.clone()), module(values.flip(2, 3))
    except Exception:  # it takes something else than one tensor
        return False
    if not all(isinstance(one, Tensor) and one.shape == values.shape for one in (output, flipped)):
        return False
    bends = output.flatten().diff().diff().abs().max()
    return torch.equal(output.flip(2, 3), flipped) and bool(bends > 1e-4)


def _walk_back(
    feature: Tensor,
    owners: Mapping[object, tuple[str, int]],
    functions: Mapping[object, int],
    fused: set[object],
    architecture: str,
) -> set[object]:
    """Graph nodes of activations reached from the feature through pooling and reshaping alone."""
    reached: set[object] = set()
    seen: set[object] = set()
    open_nodes: list[object] = [feature.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = node.name().rstrip("0123456789")  # type: ignore[attr-defined]
        if node in owners or node in functions:
            reached.add(node)
        elif kind in _ACTIVATION_NODES or node in fused:
            name = "part of its norm layer" if node in fused else f"a {kind.removesuffix('Backward')} of unknown origin"
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
    if point.functions:
        with ActivationCalls(point.functions, point.function_calls):
            yield model
        return
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
