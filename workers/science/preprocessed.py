"""One view, many models: a model that takes an un-normalised image and prepares it by its own rules.

Teacher, frozen student and student see the same augmented view; each resizes and normalises it for itself.
B samples, H × W pixels, C classes, D pooled features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.domain.errors import BadInput

ABSENT = -1e30
"""The logit of a class that a head cannot express: its probability is exactly 0, and it never wins an argmax."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


class Preprocessed(nn.Module):
    """`model` behind its own preprocessing.

    Args:
        model: Takes normalised images [B, channels, H', W'], returns logits [B, C].
        input_size: The side, (H', W'), or timm's (channels, H', W').
        mean, std: Of each channel; one value for a model of grey images.
        interpolation: nearest, bilinear or bicubic; used, with antialiasing, only where the view has another size.
            Bicubic overshoot is clamped to [0, 1], as image libraries do.
        outputs: For each of C classes the model's output that expresses it, -1 for none; logits are then [B, C] over
            these, `ABSENT` where there is none. For a head that speaks another label space than the data set.

    A model of one channel sees the mean of the view's three.
    """

    mean: Tensor
    std: Tensor
    outputs: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        input_size: int | Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if len(mean) not in (1, 3) or len(std) != len(mean) or min(std) <= 0:
            raise BadInput("mean, std", (mean, std), "one or three values each, std above 0")
        sizes = (input_size,) if isinstance(input_size, int) else tuple(input_size)
        self.height, self.width = (sizes[0], sizes[0]) if len(sizes) == 1 else sizes[-2:]
        self.channels = sizes[0] if len(sizes) == 3 else len(mean)
        if len(sizes) not in (1, 2, 3) or self.channels not in (1, 3) or min(self.height, self.width) < 1:
            raise BadInput(
                "input_size", input_size, "side, (height, width) or (channels, height, width), 1 or 3 channels"
            )
        if interpolation not in INTERPOLATIONS:
            raise BadInput("interpolation", interpolation, f"one of: {', '.join(INTERPOLATIONS)}")
        self.model = model
        self.interpolation = interpolation
        channel_mean, channel_std = torch.tensor(list(mean)), torch.tensor(list(std))
        if self.channels == 1 and len(mean) == 3:
            channel_mean, channel_std = channel_mean.mean().reshape(1), channel_std.mean().reshape(1)
        self.register_buffer("outputs", None if outputs is None else torch.tensor(outputs), persistent=False)
        self.register_buffer("mean", channel_mean.float().reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", channel_std.float().reshape(1, -1, 1, 1), persistent=False)

    def prepare(self, view: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] → what the model takes, [B, channels, H', W']."""
        if self.channels == 1 and view.shape[1] == 3:
            view = view.mean(dim=1, keepdim=True)
        if view.shape[-2:] != (self.height, self.width):
            smooth = {} if self.interpolation == "nearest" else {"antialias": True, "align_corners": False}
            view = F.interpolate(view, size=(self.height, self.width), mode=self.interpolation, **smooth)
            if self.interpolation == "bicubic":
                view = view.clamp(0, 1)
        return (view - self.mean) / self.std

    def forward(self, view: Tensor) -> Tensor:
        """Logits [B, C] of a view [B, 3, H, W] in [0, 1]."""
        logits: Tensor = self.model(self.prepare(view))
        return logits if self.outputs is None else in_space(logits, self.outputs)

    def features(self, view: Tensor) -> Tensor:
        """Pooled features before the classifier, [B, D] (timm's `forward_head(pre_logits=True)`).

        Raises:
            BadInput: the model does not expose its features the way timm's do.
        """
        return self._pool(self._feature_map(view))

    def features_and_logits(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one pass through the body: [B, D] and [B, C]."""
        feature_map = self._feature_map(view)
        logits: Tensor = self.model.forward_head(feature_map)  # type: ignore[operator]
        return self._pool(feature_map), logits if self.outputs is None else in_space(logits, self.outputs)

    def feature_dim(self) -> int:
        """D, from one black image in eval mode."""
        parameter = next(self.model.parameters())
        training = {module: module.training for module in self.modules()}
        with torch.no_grad():
            self.eval()
            features = self.features(torch.zeros(1, 3, self.height, self.width, device=parameter.device))
        for module, mode in training.items():
            module.training = mode
        return int(features.shape[1])

    def _feature_map(self, view: Tensor) -> Tensor:
        if not (hasattr(self.model, "forward_features") and hasattr(self.model, "forward_head")):
            raise BadInput("model", type(self.model).__name__, "a model with timm's forward_features and forward_head")
        feature_map: Tensor = self.model.forward_features(self.prepare(view))  # type: ignore[operator]
        return feature_map

    def _pool(self, feature_map: Tensor) -> Tensor:
        pooled: Tensor = self.model.forward_head(feature_map, pre_logits=True)  # type: ignore[operator]
        return pooled.flatten(1)


def in_space(logits: Tensor, outputs: Tensor) -> Tensor:
    """Logits [B, C_head] read in another label space: column c is output `outputs[c]`, `ABSENT` where that is -1."""
    return logits[:, outputs.clamp(min=0)].masked_fill(outputs < 0, ABSENT)


def classifier_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the last layer, by timm's `get_classifier()`: names like `fc` also match `mlp.fc1`.

    Raises:
        BadInput: the model has no `get_classifier()` or no layer behind it.
    """
    inner = model.model if isinstance(model, Preprocessed) else model
    if not hasattr(inner, "get_classifier"):
        raise BadInput("model", type(inner).__name__, "a model with timm's get_classifier()")
    found = inner.get_classifier()  # type: ignore[operator]
    heads = found if isinstance(found, (tuple, list)) else [found]
    parameters = [parameter for head in heads for parameter in head.parameters()]
    if not parameters:
        raise BadInput("model", type(inner).__name__, "a model with a classifier (num_classes above 0)")
    return parameters


def frozen(model: nn.Module) -> nn.Module:
    """The model itself, in eval mode and without gradients; for teachers."""
    return model.eval().requires_grad_(False)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that shares no memory with `model`, in eval mode and without gradients; for the frozen student."""
    return frozen(copy.deepcopy(model))
