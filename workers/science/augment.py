"""Seeded views of images: the same (seed, view, sample) is the same picture, whoever asks and in whatever batch.

All random choices come from a counter-based hash of (seed, view, sample, draw), so a view can be made again without its
neighbours, and a batch is made at once with whole-tensor operations. B samples, H × W pixels, S the side of the view.

Modes: none; flip (mirror); crop (shift by up to an eighth, black borders); crop_flip; rrc (random-resized crop of
8-100 % of the area, ratio 3/4-4/3, mirror; Szegedy et al., arXiv:1409.4842); paper (centre crop, mirror, colour
distortion and greyscale: Roth et al., arXiv:2310.17653; distortion as in Chen et al., arXiv:2002.05709, strength .5).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backend.domain.errors import BadInput
from backend.domain.methods import Augment

JITTER, HUE, JITTER_CHANCE, GREY_CHANCE = 0.4, 0.1, 0.8, 0.2
RRC_AREA, RRC_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_LUMA = (0.299, 0.587, 0.114)
_RGB_TO_YIQ = torch.tensor([_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)], dtype=torch.float64)


def make_view(
    images: Tensor, mode: Augment, *, indices: Tensor, seed: int, view: int, size: int | None = None
) -> Tensor:
    """View number `view` of these samples.

    Args:
        images: [B, 1 or 3, H, W], uint8 or float in [0, 1]; grey ones become three equal channels.
        indices: [B], positions in the data set; with `seed` and `view` they fix every random choice.
        size: S, the side of the result. Without it the images' own size, after the centre crop of `paper`.

    Shape:
        → [B, 3, S, S] (or [B, 3, H, W]), float32 in [0, 1].
    """
    images = as_images(images)
    draws = uniforms(seed, view, indices, 12)
    if mode == "rrc":
        return _flip(_resized_crop(images, draws[:, 1:5], size), draws[:, 0])
    if mode == "paper" or size is not None:
        images = _centre_square(images, size)
    if mode in ("crop", "crop_flip"):
        images = _shifted(images, draws[:, 1:3])
    if mode in ("flip", "crop_flip", "paper"):
        images = _flip(images, draws[:, 0])
    if mode == "paper":
        images = _distorted(images, draws[:, 5:11])
    return images


def as_images(images: Tensor) -> Tensor:
    """[B, 1 or 3, H, W] uint8 or float → [B, 3, H, W] float32 in [0, 1].

    Raises:
        BadInput: another shape.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise BadInput("images", tuple(images.shape), "[B, 1 or 3, H, W]")
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return scaled.expand(-1, 3, -1, -1)


def uniforms(seed: int, view: int, indices: Tensor, n_draws: int) -> Tensor:
    """Uniform numbers in [0, 1) that depend on (seed, view, sample, draw) alone, float64 [B, n_draws]."""
    samples = indices.detach().cpu().numpy().astype(np.uint64)[:, None]
    draws = np.arange(n_draws, dtype=np.uint64)[None, :]
    key = _mixed(np.array([[seed]], dtype=np.uint64))
    key = _mixed(key ^ np.array([[view]], dtype=np.uint64))
    bits = _mixed(_mixed(key ^ samples) ^ draws)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) / 2**53)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output for each state (Steele et al., OOPSLA 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _flip(images: Tensor, draw: Tensor) -> Tensor:
    return torch.where((draw < 0.5).to(images.device).reshape(-1, 1, 1, 1), images.flip(3), images)


def _centre_square(images: Tensor, size: int | None) -> Tensor:
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[:, :, top : top + side, left : left + side]
    if size in (None, side):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _shifted(images: Tensor, draws: Tensor) -> Tensor:
    """Each image moved by whole pixels, up to an eighth of its side, what comes in is black."""
    n, _, height, width = images.shape
    rows = _window(height, draws[:, 0], images.device)
    columns = _window(width, draws[:, 1], images.device)
    pad_y, pad_x = _padding(height), _padding(width)
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y)).permute(0, 2, 3, 1)
    which = torch.arange(n, device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _padding(side: int) -> int:
    return max(1, round(side / 8))


def _window(side: int, draw: Tensor, device: torch.device) -> Tensor:
    starts = (draw * (2 * _padding(side) + 1)).long().to(device)
    return starts[:, None] + torch.arange(side, device=device)


def _resized_crop(images: Tensor, draws: Tensor, size: int | None) -> Tensor:
    """A random part of each image, bilinearly, at full size; sides longer than the image are cut to it."""
    height, width = images.shape[-2:]
    out_height, out_width = (height, width) if size is None else (size, size)
    area = RRC_AREA[0] + draws[:, 0] * (RRC_AREA[1] - RRC_AREA[0])
    low, high = math.log(RRC_RATIO[0]), math.log(RRC_RATIO[1])
    ratio = torch.exp(low + draws[:, 1] * (high - low)) * (height / width)  # of the picture, not of its frame
    part_x, part_y = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    centre_x, centre_y = (1 - part_x) * (2 * draws[:, 2] - 1), (1 - part_y) * (2 * draws[:, 3] - 1)
    zero = torch.zeros_like(area)
    affine = torch.stack(
        [torch.stack([part_x, zero, centre_x], dim=1), torch.stack([zero, part_y, centre_y], dim=1)], dim=1
    ).to(images.device, images.dtype)
    grid = F.affine_grid(affine, [len(images), 3, out_height, out_width], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _distorted(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of most images changed, some made grey.

    All of them are linear in the pixels, so an image is multiplied once, by the product of its matrices [3, 3].
    """
    n = len(images)
    brightness, contrast, saturation = (1 + JITTER * (2 * draws[:, :3] - 1)).T
    luma = torch.tensor(_LUMA, dtype=torch.float64)
    to_grey, same = luma.expand(3, 3), torch.eye(3, dtype=torch.float64)
    colours = to_grey + saturation.reshape(n, 1, 1) * (same - to_grey)
    matrices = _hue_matrices(HUE * (2 * draws[:, 3] - 1)) @ colours * (brightness * contrast).reshape(n, 1, 1)
    jittered, grey = draws[:, 4] < JITTER_CHANCE, draws[:, 5] < GREY_CHANCE
    matrices = torch.where(jittered.reshape(n, 1, 1), matrices, same)
    matrices = torch.where(grey.reshape(n, 1, 1), to_grey @ matrices, matrices)
    changed = matrices.to(images) @ images.flatten(2)
    mean_luma = images.mean(dim=(2, 3)) @ luma.to(images)
    lift = torch.where(jittered, (1 - contrast) * brightness, 0).to(images) * mean_luma  # contrast turns about the mean
    return changed.add_(lift.reshape(n, 1, 1)).clamp_(0, 1).reshape(images.shape)


def _hue_matrices(turns: Tensor) -> Tensor:
    """Rotation of the hue by a share of the full circle, in YIQ, as RGB matrices [B, 3, 3]."""
    cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [torch.stack(row, dim=1) for row in ((one, zero, zero), (zero, cos, -sin), (zero, sin, cos))]
    matrices: Tensor = torch.linalg.inv(_RGB_TO_YIQ) @ torch.stack(rows, dim=1) @ _RGB_TO_YIQ
    return matrices
