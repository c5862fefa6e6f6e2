"""A model's last feature map with the images it came from, computed when asked for or kept in memory.

B images, D feature width, h × w feature grid, H × W image. Images are un-normalised, in [0, 1], rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput
from workers.science.preprocessed import Preprocessed

Views = Callable[[Tensor], Tensor]
"""Positions [B] (int64) → un-normalised views [B, 3, H, W] in [0, 1]."""


class Features(Protocol):
    """Feature maps and their images by position."""

    @property
    def n_images(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def image_size(self) -> tuple[int, int]: ...

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, D, h, w] and images [B, 3, H, W] in [0, 1], both float32."""
        ...


class ModelFeatures:
    """Features computed anew at every request; holds no image.

    Args:
        model: Any timm model behind its preprocessing; put into eval mode. Class and register tokens are dropped.
        views: Where the images come from.
        n_images: How many there are.
    """

    def __init__(self, model: Preprocessed, views: Views, n_images: int, device: torch.device | str = "cpu") -> None:
        self.model, self.views, self.n_images, self.device = model.eval().to(device), views, n_images, device
        features, images = self.batch(torch.zeros(1, dtype=torch.int64))
        self.width, self.grid, self.image_size = features.shape[1], _size(features), _size(images)

    @torch.no_grad()
    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        normalised = self.model.prepare(self.views(positions).to(self.device))
        images = (normalised * self.model.std + self.model.mean).clamp(0, 1).mul(255).round().div(255)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return feature_map(self.model.model, normalised).float(), images


@dataclass(frozen=True)
class CachedFeatures:
    """Features in memory, float32 [N, D, h, w], with their images as bytes [N, 3, H, W]."""

    features: Tensor
    images: Tensor

    @property
    def n_images(self) -> int:
        return self.features.shape[0]

    @property
    def width(self) -> int:
        return self.features.shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        return _size(self.features)

    @property
    def image_size(self) -> tuple[int, int]:
        return _size(self.images)

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        positions = positions.to(self.features.device)
        return self.features[positions], self.images[positions].float() / 255


def cache_bytes(features: Features) -> int:
    """What `cached` would take."""
    height, width = features.image_size
    rows, columns = features.grid
    return features.n_images * (4 * features.width * rows * columns + 3 * height * width)


def cached(features: ModelFeatures, *, batch_size: int = 64) -> Generator[int, None, CachedFeatures]:
    """Compute every feature once; yields the number done, returns the CachedFeatures (StopIteration's value)."""
    height, width = features.image_size
    kept = torch.empty(features.n_images, features.width, *features.grid, device=features.device)
    images = torch.empty(features.n_images, 3, height, width, dtype=torch.uint8, device=features.device)
    for start in range(0, features.n_images, batch_size):
        positions = torch.arange(start, min(start + batch_size, features.n_images))
        part, pixels = features.batch(positions)
        kept[start : start + len(part)] = part
        images[start : start + len(part)] = pixels.mul(255).round().to(torch.uint8)
        yield start + len(part)
    return CachedFeatures(kept, images)


def feature_map(model: nn.Module, images: Tensor) -> Tensor:
    """The last feature map of a timm model for normalised images [B, C, H, W], as [B, D, h, w].

    Patch tokens are put back on their grid without class, distillation and register tokens; maps with channels last are
    turned.

    Raises:
        BadInput: the model has no `forward_features`, or what it returns has no grid.
    """
    name = type(model).__name__
    if not hasattr(model, "forward_features"):
        raise BadInput("model", name, "a model with timm's forward_features")
    features = model.forward_features(images)  # type: ignore[operator]
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise BadInput("model", name, "a model whose forward_features returns tokens or a feature map")
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2).contiguous() if _channels_last(model, features) else features
    tokens = features[:, int(getattr(model, "num_prefix_tokens", 0)) :]
    height, width = _grid(model, tokens.shape[1], _size(images))
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)


def _channels_last(model: nn.Module, features: Tensor) -> bool:
    declared = getattr(model, "output_fmt", None)
    if declared is not None:
        return str(getattr(declared, "value", declared)).upper() == "NHWC"
    width = getattr(model, "num_features", features.shape[1])
    return bool(features.shape[-1] == width and features.shape[1] != width)


def _grid(model: nn.Module, n_tokens: int, image_size: tuple[int, int]) -> tuple[int, int]:
    size_of = getattr(getattr(model, "patch_embed", None), "dynamic_feat_size", None)
    if size_of is not None:
        rows, columns = size_of(image_size)
        if rows * columns == n_tokens:
            return int(rows), int(columns)
    height, width = image_size
    rows = round((n_tokens * height / width) ** 0.5)
    if rows < 1 or n_tokens % rows:
        raise BadInput("model", type(model).__name__, f"a model whose {n_tokens} patch tokens form a grid")
    return rows, n_tokens // rows


def _size(images: Tensor) -> tuple[int, int]:
    return int(images.shape[-2]), int(images.shape[-1])
