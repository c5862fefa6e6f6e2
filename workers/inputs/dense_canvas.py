"""Images with masks and images with boxes, as fine-tuning and evaluation ask for them: by position, as tensors.

Masks are trained at one size: image and mask are scaled to S × S as a whole (the aspect ratio is not kept), the mask by
its nearest pixel; evaluation compares with the mask as it lies on disk. Boxes stay in the pixels of their image.

B samples, S × S pixels of the canvas, H × W of an image.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from backend.domain.errors import BadInput
from workers.inputs.canvas import MEMORY_BYTES, THREADS
from workers.inputs.coco import BoxedImages, ImageBoxes
from workers.inputs.mask_folders import MaskedImages


class MaskCanvas:
    """Some samples of a split at one size; kept in memory where they fit, else decoded at every request."""

    def __init__(
        self, images: MaskedImages, indices: npt.NDArray[np.int64], side: int, *, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        if len(indices) == 0:
            raise BadInput("downstream", 0, "at least one image with a mask in every split")
        self._images, self._indices, self._side = images, [int(i) for i in indices], side
        self._kept: tuple[Tensor, Tensor] | None = None
        if 4 * side * side * len(indices) <= memory_bytes:
            self._kept = self._read(range(len(indices)))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, S, S] uint8 and masks [B, S, S] uint8."""
        if self._kept is not None:
            return self._kept[0][positions], self._kept[1][positions]
        return self._read(positions.tolist())

    def mask(self, position: int) -> npt.NDArray[np.uint8]:
        """The whole mask [H, W]."""
        return self._images.mask(self._indices[position])

    def _read(self, positions: range | list[int]) -> tuple[Tensor, Tensor]:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="masks") as threads:
            pairs = list(threads.map(self._one, positions))
        pixels = torch.from_numpy(np.stack([picture for picture, _ in pairs])).permute(0, 3, 1, 2).contiguous()
        return pixels, torch.from_numpy(np.stack([mask for _, mask in pairs]))

    def _one(self, position: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        image, mask = self._images.pair(self._indices[position])
        size = (self._side, self._side)
        scaled = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR)), np.asarray(scaled)


class BoxCanvas:
    """Some samples of a split, decoded at every request: their sizes differ."""

    def __init__(self, images: BoxedImages, indices: npt.NDArray[np.int64]) -> None:
        if len(indices) == 0:
            raise BadInput("downstream", 0, "at least one image in every split")
        self._images, self._indices = images, [int(i) for i in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def sample(self, position: int) -> tuple[Tensor, ImageBoxes]:
        """Image [3, H, W] uint8 and its boxes."""
        i = self._indices[position]
        image = self._images.image(i)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous()
        return pixels, self._images.boxes(i, image.width, image.height)
