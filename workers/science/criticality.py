"""Which MLP neurons a prediction hangs on: ReMem, arXiv:2506.23041, appendix C.2 and Figures 7–15.

h a neuron (an input of a block's fc2), F pre-logits: the influence of h on an image is ‖F(h←0) − F‖ / ‖F‖, its
criticality the largest influence over the images. B images, N tokens, D width, d neurons of a block, K neurons at once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput
from backend.domain.progress import Progress
from backend.domain.remem import CriticalityParams
from backend.domain.remem_results import BlockCriticality, CriticalityResult, CriticalNeuron, InfluencedImage
from workers.science.information.features import Views
from workers.science.preprocessed import Preprocessed
from workers.science.remem.blocks import architecture, scaled, transformer_blocks
from workers.science.remem.reweighting import weights_of


@torch.no_grad()
def measure_criticality(
    model: Preprocessed,
    views: Views,
    n_images: int,
    params: CriticalityParams,
    *,
    name: str,
    data: str,
    device: torch.device | str = "cpu",
) -> Generator[Progress, None, CriticalityResult]:
    """Criticality of neurons block by block; returns the record.

    Switching a neuron off changes its block's output by a known vector per token, so only the blocks above are run
    again, for many neurons and images at once. Of each block the `candidates` neurons with the largest such change are
    examined (None: all).
    """
    model.eval().to(device)
    inner = model.model
    chosen = _chosen_blocks(inner, params)
    influences: dict[int, tuple[Tensor, Tensor]] = {}
    images_at_once = min(n_images, params.batch_size)
    neurons_at_once = max(1, params.batch_size // images_at_once)
    per_block = {block: _candidates(inner, block, params) for block in chosen}
    total = sum(per_block.values()) * len(range(0, n_images, images_at_once))
    done = 0
    for index in chosen:
        neurons = None
        if per_block[index] < _fc2(inner, index).in_features:
            neurons = _strongest(model, views, n_images, index, per_block[index], images_at_once, device)
        neurons = torch.arange(per_block[index], device=device) if neurons is None else neurons
        table = torch.zeros(len(neurons), n_images)
        for start in range(0, n_images, images_at_once):
            positions = torch.arange(start, min(start + images_at_once, n_images))
            images = model.prepare(views(positions).to(device))
            for first in range(0, len(neurons), neurons_at_once):
                part = neurons[first : first + neurons_at_once]
                rows, columns = slice(first, first + len(part)), slice(start, start + len(positions))
                table[rows, columns] = influence(inner, images, index, part).cpu()
                done += len(part)
                yield Progress(step=done, total=total, unit="neurons", message=f"block {index}")
        influences[index] = (neurons.cpu(), table)
    blocks = tuple(_summary(inner, index, *influences[index], params) for index in chosen)
    return CriticalityResult(model=name, data=data, n_images=n_images, blocks=blocks)


@torch.no_grad()
def influence(model: nn.Module, images: Tensor, block: int, neurons: Tensor) -> Tensor:
    """‖F(h←0) − F‖ / ‖F‖ for neurons [K] of a block and normalised images [B, C, H, W]: [K, B], float32.

    The model is in eval mode. ‖F‖ counts as 1e-12 at least.
    """
    layer = transformer_blocks(model)[block]
    output, activations = _at_block(model, images, block)
    features = _pre_logits(model, images).float()
    fc2 = _fc2(model, block)
    change = activations[..., neurons].movedim(-1, 0).unsqueeze(-1) * fc2.weight.t()[neurons][:, None, None, :]
    moved = output - weights_of(layer).mlp * scaled(layer, 2, change.flatten(0, 1)).reshape(change.shape)
    with _injected(model, block, moved.flatten(0, 1)):
        without = _pre_logits(model, images[:1].expand(moved.shape[0] * moved.shape[1], -1, -1, -1)).float()
    distance = (without.reshape(*moved.shape[:2], -1) - features).norm(dim=-1)
    relative: Tensor = distance / features.norm(dim=-1).clamp_min(1e-12)
    return relative


def maximise_activations(
    model: Preprocessed,
    block: int,
    neurons: list[int],
    *,
    steps: int = 200,
    lr: float = 0.1,
    smoothness: float = 1.0,
    jitter: int = 4,
    seed: int = 0,
) -> Tensor:
    """Images [K, 3, H, W] in [0, 1] that neurons of a block respond to most, by gradient ascent from seeded noise.

    Ascends the neuron's mean activation over tokens minus `smoothness` times the mean squared difference of
    neighbouring pixels, under random shifts of up to `jitter` pixels, through a sigmoid that keeps pixels in range.
    """
    model.eval()
    inner, device = model.model, next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    shape = (len(neurons), 3, model.height, model.width)
    pixels = (0.1 * torch.randn(shape, generator=generator)).to(device).requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=lr)
    picked = torch.tensor(neurons, device=device)
    for _ in range(steps):
        shift = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist() if jitter else [0, 0]
        images = torch.sigmoid(pixels).roll(shift, dims=(2, 3))
        with torch.enable_grad():
            activations = _activations_only(inner, model.prepare(images), block)
            response = activations.float().mean(dim=1)[torch.arange(len(neurons), device=device), picked]
            rough = images.diff(dim=2).square().mean(dim=(1, 2, 3)) + images.diff(dim=3).square().mean(dim=(1, 2, 3))
            (gradient,) = torch.autograd.grad((smoothness * rough - response).sum(), pixels)
        pixels.grad = gradient
        optimizer.step()
    return torch.sigmoid(pixels).detach()


class _Reached(Exception):
    """Carries the activations out of a forward pass that need not go on."""

    def __init__(self, activations: Tensor) -> None:
        self.activations = activations


def _activations_only(model: nn.Module, images: Tensor, block: int) -> Tensor:
    def leave(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Reached(args[0])

    hook = _fc2(model, block).register_forward_pre_hook(leave)
    try:
        model(images)
    except _Reached as reached:
        return reached.activations.flatten(1, -2)
    finally:
        hook.remove()
    raise BadInput("block", block, "a block whose MLP is run")


def _at_block(model: nn.Module, images: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The block's output [B, N, D] and its neurons' activations [B, N, d]."""
    seen: dict[str, Tensor] = {}
    hooks = [
        transformer_blocks(model)[block].register_forward_hook(lambda m, args, out: seen.update(output=out)),
        _fc2(model, block).register_forward_pre_hook(lambda m, args: seen.update(activations=args[0])),
    ]
    try:
        model.forward_features(images)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    if "activations" not in seen:
        raise BadInput("block", block, "a block whose MLP is not pruned")
    return seen["output"], seen["activations"]


@contextmanager
def _injected(model: nn.Module, block: int, output: Tensor) -> Iterator[None]:
    """Inside, the block returns `output` whatever it is given, and those below it return what they are given."""
    lower = transformer_blocks(model)[: block + 1]
    kept = [layer.__dict__.get("forward") for layer in lower]
    for layer in lower:
        layer.__dict__["forward"] = lambda x, *args, **kwargs: x
    lower[-1].__dict__["forward"] = lambda x, *args, **kwargs: output
    try:
        yield
    finally:
        for layer, forward in zip(lower, kept, strict=True):
            del layer.__dict__["forward"]
            if forward is not None:
                layer.__dict__["forward"] = forward


def _pre_logits(model: nn.Module, images: Tensor) -> Tensor:
    features = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    assert isinstance(features, Tensor)
    return features.flatten(1)


def _fc2(model: nn.Module, block: int) -> nn.Linear:
    mlp = transformer_blocks(model)[block].mlp
    fc2 = getattr(mlp, "fc2", None)
    if not isinstance(fc2, nn.Linear) or hasattr(mlp, "adapter"):
        raise BadInput("model", architecture(model), "blocks whose MLP ends in a linear layer, without adapters")
    return fc2


def _chosen_blocks(model: nn.Module, params: CriticalityParams) -> list[int]:
    n_blocks = len(transformer_blocks(model))
    chosen = list(range(n_blocks)) if params.blocks is None else sorted(set(params.blocks))
    if chosen and chosen[-1] >= n_blocks:
        raise BadInput("blocks", chosen[-1], f"between 0 and {n_blocks - 1}")
    return chosen


def _candidates(model: nn.Module, block: int, params: CriticalityParams) -> int:
    return min(params.candidates or 10**9, _fc2(model, block).in_features)


def _strongest(
    model: Preprocessed, views: Views, n_images: int, block: int, count: int, batch: int, device: torch.device | str
) -> Tensor:
    """The neurons whose switching off changes the block's output most on some image, strongest first."""
    layer, fc2 = transformer_blocks(model.model)[block], _fc2(model.model, block)
    reach = scaled(layer, 2, fc2.weight.t()).norm(dim=1)
    largest = torch.zeros(fc2.in_features, device=device)
    for start in range(0, n_images, batch):
        positions = torch.arange(start, min(start + batch, n_images))
        activations = _activations_only(model.model, model.prepare(views(positions).to(device)), block)
        largest = torch.maximum(largest, activations.norm(dim=1).amax(dim=0).float() * reach)
    return largest.topk(count).indices


def _summary(
    model: nn.Module, block: int, neurons: Tensor, table: Tensor, params: CriticalityParams
) -> BlockCriticality:
    criticality = table.amax(dim=1)
    top = criticality.sort(descending=True, stable=True).indices[: params.top_neurons]
    shown = []
    for row in top.tolist():
        images = table[row].sort(descending=True, stable=True).indices[: params.top_images].tolist()
        shown.append(
            CriticalNeuron(
                block=block,
                neuron=int(neurons[row]),
                criticality=float(criticality[row]),
                images=tuple(InfluencedImage(index=image, influence=float(table[row, image])) for image in images),
            )
        )
    return BlockCriticality(
        block=block,
        n_neurons=_fc2(model, block).in_features,
        n_examined=len(neurons),
        mean=float(criticality.mean()),
        maximum=float(criticality.max()),
        neurons=tuple(shown),
    )
