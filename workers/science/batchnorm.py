"""BatchNorm's running statistics: found, held still, and estimated anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm of the model (timm's fused norm-activation layers among them)."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """In train mode, normalise with the batch's statistics but leave the running ones alone (SAM's second pass)."""
    layers = [layer for layer in batchnorm_layers(model) if layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@torch.no_grad()
def reestimate_statistics(model: nn.Module, views: Iterable[Tensor]) -> None:
    """Set the running statistics to their plain mean over `views`, for weights that were averaged (soups).

    The rest of the model runs in eval mode; a model without BatchNorm is left alone. Modes are put back afterwards.
    """
    layers = [layer for layer in batchnorm_layers(model) if layer.track_running_stats]
    if not layers:
        return
    training = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative mean
        layer.train()
    try:
        for view in views:
            model(view)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in training.items():
            module.training = mode
