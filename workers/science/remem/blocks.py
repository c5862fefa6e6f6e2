"""The two halves of a pre-norm transformer block, found by structure in timm's families.

x̃ = x + attention branch(x);  x' = x̃ + MLP branch(x̃);  a branch is drop_path(scale(f(norm(·)))), the scale a LayerScale
module, a γ vector or nothing. XCiT has a third branch (local patch interaction) between the two.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput

FAMILIES = (
    "a pre-norm transformer of timm with blocks of norm1, attn, norm2, mlp (ViT, DeiT, BEiT, EVA, CaiT, XCiT, ...)"
)
_SCALES = {1: ("ls1", "gamma_1", "gamma1"), 2: ("ls2", "gamma_2", "gamma2"), 3: ("ls3", "gamma_3", "gamma3")}


def architecture(model: nn.Module) -> str:
    """What errors call the model: timm's name for it where it has one, and its class."""
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") if isinstance(config, dict) else getattr(config, "architecture", None)
    return f"{name} ({type(model).__name__})" if name else type(model).__name__


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks, bottom first, having checked on a probe image that they are what their parts say.

    Raises:
        BadInput: names the architecture; parallel and post-norm blocks and models without blocks are refused.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not len(blocks):
        raise BadInput("model", architecture(model), f"{FAMILIES}; it has no list of blocks")
    found = list(blocks)
    for block in found:
        missing = [
            part for part in ("norm1", "attn", "norm2", "mlp") if not isinstance(getattr(block, part, None), nn.Module)
        ]
        if missing:
            kind = type(block).__name__
            raise BadInput("model", architecture(model), f"{FAMILIES}; its {kind} has no {', '.join(missing)}")
    _check_pre_norm(model, found)
    return found


def _check_pre_norm(model: nn.Module, blocks: list[nn.Module]) -> None:
    """Run each block's parts on what it really receives; post-norm blocks have the same parts and other outputs."""
    if all(getattr(block, "parts_checked", False) for block in blocks):
        return
    seen: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Tensor]] = []
    hooks = [
        block.register_forward_hook(
            lambda module, args, kwargs, output: seen.append((module, args, kwargs, output)), with_kwargs=True
        )
        for block in blocks
    ]
    try:
        with evaluating(model), torch.no_grad(), stock_forwards(blocks):
            model(probe_image(model))
            for block, args, kwargs, output in seen:
                try:
                    again = attention_half(block, *args, **kwargs)
                    again = mlp_half(block, again)
                    same = again.shape == output.shape and torch.allclose(again, output, rtol=1e-4, atol=1e-5)
                except (RuntimeError, TypeError, ValueError):
                    same = False
                if not same:
                    raise BadInput(
                        "model", architecture(model), f"{FAMILIES}; its {type(block).__name__} computes something else"
                    )
                block.parts_checked = True  # type: ignore[assignment]
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def stock_forwards(blocks: list[nn.Module]) -> Iterator[None]:
    """Inside, blocks run their class's forward even if one was installed on the instance."""
    kept = {block: block.__dict__.pop("forward") for block in blocks if "forward" in block.__dict__}
    try:
        yield
    finally:
        for block, forward in kept.items():
            block.__dict__["forward"] = forward


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def image_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width the model was built for."""
    config = getattr(model, "pretrained_cfg", None) or {}
    given = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
    channels, height, width = given or (3, 224, 224)
    patches = getattr(model, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
    return int(getattr(model, "in_chans", channels) or channels), int(height), int(width)


def probe_image(model: nn.Module) -> Tensor:
    """One fixed, non-constant image of the model's size, type and device, [1, C, H, W]; draws no random numbers."""
    channels, height, width = image_size(model)
    weight = next(model.parameters())
    ramp = torch.arange(channels * height * width, dtype=torch.float64)
    return torch.sin(ramp * 0.7311).add(torch.sin(ramp * 0.0127)).reshape(1, channels, height, width).to(weight)


def attention_branch(block: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """drop_path(scale(attn(norm1 x))), the block's further arguments handed on by name where attn takes them."""
    given = {**dict(zip(_names(type(block))[1:], args, strict=False)), **kwargs}
    accepted = _names(type(block.attn))
    y = block.attn(block.norm1(x), **{name: value for name, value in given.items() if name in accepted})  # type: ignore[operator]
    return _drop(block, 1, scaled(block, 1, y))


def attention_half(block: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """x̃ with the stock weights."""
    return local_half(block, x + attention_branch(block, x, *args, **kwargs), *args, **kwargs)


def local_half(block: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """XCiT's local patch interaction added; every other block returns x as it is."""
    if not hasattr(block, "local_mp"):
        return x
    given = {**dict(zip(_names(type(block))[1:], args, strict=False)), **kwargs}
    y = block.local_mp(block.norm3(x), given["H"], given["W"])  # type: ignore[operator]
    return x + _drop(block, 3, scaled(block, 3, y))


def mlp_branch(block: nn.Module, x: Tensor) -> Tensor:
    """drop_path(scale(mlp(norm2 x̃)))."""
    return _drop(block, 2, scaled(block, 2, block.mlp(block.norm2(x))))  # type: ignore[operator]


def mlp_half(block: nn.Module, x: Tensor) -> Tensor:
    """x' with the stock weights."""
    return x + mlp_branch(block, x)


def scale_parameter(block: nn.Module, which: int) -> nn.Parameter | None:
    """The γ of branch 1 (attention) or 2 (MLP), [D], or None without LayerScale."""
    for name in _SCALES[which]:
        part = getattr(block, name, None)
        if isinstance(part, nn.Parameter):
            return part
        gamma = getattr(part, "gamma", None)
        if isinstance(gamma, nn.Parameter):
            return gamma
    return None


def scaled(block: nn.Module, which: int, y: Tensor) -> Tensor:
    """LayerScale of branch 1 (attention), 2 (MLP) or 3 (XCiT's local one) applied to [..., D]; y itself without one."""
    for name in _SCALES[which]:
        part = getattr(block, name, None)
        if isinstance(part, nn.Module):
            return part(y)  # type: ignore[no-any-return]
        if isinstance(part, Tensor):
            return part * y
    return y


def _drop(block: nn.Module, which: int, y: Tensor) -> Tensor:
    drop = getattr(block, f"drop_path{which}", None) or getattr(block, "drop_path", None)
    return y if drop is None else drop(y)


_SIGNATURES: dict[type, tuple[str, ...]] = {}


def _names(kind: type) -> tuple[str, ...]:
    """The arguments of a module class's forward after self."""
    if kind not in _SIGNATURES:
        _SIGNATURES[kind] = tuple(inspect.signature(kind.forward).parameters)[1:]  # type: ignore[attr-defined]
    return _SIGNATURES[kind]
