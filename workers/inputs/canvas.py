"""Images as training and evaluation see them: decoded, resized and cropped to one size, uint8, in memory or on demand.

A `Canvas` answers `canvas[indices] → [B, 3, S, S] uint8`, as a tensor would, so that the science needs no knowledge of
files. What fits the budget is decoded once; the rest each time it is asked for, by threads (Pillow frees the GIL).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backend.domain.catalog import Preprocessing
from backend.domain.errors import BadInput
from workers.inputs.decoding import BadImage
from workers.inputs.images import Images
from workers.inputs.transforms import EvalTransform

MEMORY_BYTES = 2 << 30
THREADS = 4


class Canvas:
    """N samples of a split at one size.

    Args:
        images: The split.
        indices: [N] positions of the samples in it.
        preprocessing: How they are resized and cropped; normalising is left to the models.
        memory_bytes: Above this they are decoded on demand.

    Attributes:
        labels: [N] int64.
        sample_ids: N names.
        bad_samples: Names of samples that could not be read; they are left out (decoding on demand raises instead).
    """

    def __init__(
        self,
        images: Images,
        indices: npt.NDArray[np.int64],
        preprocessing: Preprocessing,
        *,
        memory_bytes: int = MEMORY_BYTES,
        threads: int = THREADS,
    ) -> None:
        self._images, self._transform = images, EvalTransform(preprocessing)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="canvas")
        self.bad_samples: tuple[str, ...] = ()
        self._pixels: Tensor | None = None
        self.indices = np.asarray(indices, dtype=np.int64)
        if len(self.indices) * int(np.prod(self._transform.shape)) <= memory_bytes:
            self._decode_all()
            self._threads.shutdown()
        if len(self.indices) == 0:
            raise BadInput("dataset", len(indices), "at least one image that can be read")
        self.labels = torch.from_numpy(images.labels[self.indices])
        self.sample_ids = tuple(images.sample_ids[i] for i in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        """Pixels of the chosen samples, [B, 1 or 3, S, S] uint8.

        Raises:
            BadInput: One of them cannot be read.
        """
        if self._pixels is not None:
            return self._pixels[chosen]
        positions = self.indices[chosen] if isinstance(chosen, slice) else self.indices[chosen.cpu().numpy()]
        return _stack(list(self._threads.map(self._one, positions.tolist())))

    def _one(self, position: int) -> npt.NDArray[np.uint8]:
        try:
            return self._transform(self._images.image(position))
        except BadImage as error:
            name = self._images.sample_ids[position]
            raise BadInput(
                "sample", name, f"an image that can be read ({error}); remove it from the data set"
            ) from None

    def _decode_all(self) -> None:
        def read(position: int) -> npt.NDArray[np.uint8] | None:
            try:
                return self._transform(self._images.image(position))
            except BadImage:
                return None

        decoded = list(self._threads.map(read, self.indices.tolist()))
        kept = [i for i, pixels in enumerate(decoded) if pixels is not None]
        self.bad_samples = tuple(
            self._images.sample_ids[self.indices[i]] for i, pixels in enumerate(decoded) if pixels is None
        )
        self.indices = self.indices[kept]
        self._pixels = _stack([pixels for pixels in decoded if pixels is not None])


def common_view(models: Sequence[Preprocessing], student: Preprocessing) -> Preprocessing:
    """The size all models of a transfer share: the student's way of cropping, at the largest input size of any."""
    side = max(max(one.input_size[1:]) for one in (*models, student))
    channels = max(one.input_size[0] for one in (*models, student))
    return student.model_copy(update={"input_size": (channels, side, side), "mean": (0.5,), "std": (0.5,)})


def _stack(pixels: list[npt.NDArray[np.uint8]]) -> Tensor:
    if not pixels:
        return torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
