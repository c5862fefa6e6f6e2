"""Picture → model input: timm's evaluation transform, split so that one decoding serves many models.

`EvalTransform` resizes and crops to uint8 pixels (the expensive part, shared by models of one preprocessing key);
`normalize` turns a batch of them into floats. Together they equal `timm.data.create_transform(is_training=False)` to
the bit. One difference: an image so long that its resized form would not fit in memory (1 × 30,000) is resized only
where the crop looks.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from backend.domain.catalog import Preprocessing
from backend.domain.errors import BadInput

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_MAX_RESIZED_PIXELS = 16_000_000


class EvalTransform:
    """RGB picture → pixels [H, W, channels], uint8, as the preprocessing says. Thread-safe."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        channels, self.height, self.width = preprocessing.input_size
        if channels not in (1, 3):
            raise BadInput("input_size", preprocessing.input_size, "1 (grey) or 3 (RGB) channels; images have no more")
        self.channels = channels
        self.crop_mode = preprocessing.crop_mode
        self.resampling = RESAMPLING[preprocessing.interpolation]
        self._scaled = tuple(math.floor(side / preprocessing.crop_pct) for side in (self.height, self.width))
        if min(self._scaled) < 1:
            raise BadInput("crop_pct", preprocessing.crop_pct, "a share of the image that leaves a pixel to see")
        mean = preprocessing.mean if channels == len(preprocessing.mean) else preprocessing.mean[:1] * channels
        self._fill = tuple(round(255 * value) for value in mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    def __call__(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        if self.channels == 1:
            image = image.convert("L")
        pixels = np.asarray(self._crop(self._resize(image)))
        return pixels[..., None] if self.channels == 1 else pixels

    def _resize(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        new_width, new_height = self._resized(width, height)
        if (new_width, new_height) == (width, height):
            return image
        if new_width * new_height <= _MAX_RESIZED_PIXELS:
            return image.resize((new_width, new_height), self.resampling)
        # Only the middle that the crop will see, at the same scale.
        seen_width, seen_height = min(new_width, 4 * self.width), min(new_height, 4 * self.height)
        left, top = (new_width - seen_width) // 2, (new_height - seen_height) // 2
        box = (
            left * width / new_width,
            top * height / new_height,
            (left + seen_width) * width / new_width,
            (top + seen_height) * height / new_height,
        )
        return image.resize((seen_width, seen_height), self.resampling, box=box)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing: the rules of torchvision's Resize and timm's ResizeKeepRatio."""
        scaled_height, scaled_width = self._scaled
        if self.crop_mode == "squash":
            return scaled_width, scaled_height
        if self.crop_mode == "center" and scaled_height == scaled_width:
            short, long = min(width, height), max(width, height)
            other = int(scaled_height * long / short)
            return (scaled_height, other) if width <= height else (other, scaled_height)
        ratios = (height / scaled_height, width / scaled_width)
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _crop(self, image: Image.Image) -> Image.Image:
        """The middle; what is missing is black, or the mean colour where the crop mode adds a border."""
        width, height = image.size
        if self.width > width or self.height > height:
            left, right = max(0, self.width - width) // 2, (max(0, self.width - width) + 1) // 2
            top, bottom = max(0, self.height - height) // 2, (max(0, self.height - height) + 1) // 2
            fill = self._fill if self.crop_mode == "border" else (0,) * self.channels
            image = ImageOps.expand(image, (left, top, right, bottom), fill if self.channels == 3 else fill[0])
            width, height = image.size
            if (width, height) == (self.width, self.height):
                return image
        top = round((height - self.height) / 2.0)
        left = round((width - self.width) / 2.0)
        return image.crop((left, top, left + self.width, top + self.height))


class Normalizer:
    """Pixels [B, H, W, channels] uint8 → model input [B, channels, H, W], float32: (x / 255 − mean) / std."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=self.device).reshape(1, -1, 1, 1)
        self._std = torch.tensor(preprocessing.std, dtype=torch.float32, device=self.device).reshape(1, -1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        moved = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        return moved.float().div_(255).sub_(self._mean).div_(self._std)
