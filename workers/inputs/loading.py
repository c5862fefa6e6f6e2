"""Decode ahead of the models: threads read, decode, resize and crop while a batch is being scored.

Pillow lets go of Python's lock while it decodes and resamples, so threads do the work of processes without copying
pixels between them, and start at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from workers.inputs.decoding import BadImage
from workers.inputs.images import Images
from workers.inputs.transforms import EvalTransform

_CHUNK = 8  # images a thread takes at once
_AHEAD = 3  # batches in flight beyond the one that is being scored

Look = Callable[[int, Image.Image], None]


@dataclass(frozen=True)
class Decoded:
    """One batch of a data set.

    Shape:
        positions: [B] indices into the data set of the images that could be read, ascending as asked for.
        pixels: [B, H, W, channels], uint8.
        bad: index → reason of those that could not.
    """

    positions: npt.NDArray[np.int64]
    pixels: Tensor
    bad: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)


class Decoder:
    """A pool of threads that decodes one data set for one preprocessing.

    Args:
        look: Called with the index and the picture of every image that was read, in a thread (thumbnails).
    """

    def __init__(
        self,
        images: Images,
        transform: EvalTransform,
        *,
        threads: int,
        batch_size: int,
        pin_memory: bool = False,
        look: Look | None = None,
    ) -> None:
        self.images, self.transform, self.look = images, transform, look
        self.batch_size, self.pin_memory = batch_size, pin_memory
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")

    def batches(self, indices: npt.NDArray[np.int64]) -> Iterator[Decoded]:
        """The images at `indices`, in that order, `batch_size` at a time."""
        starts = iter(range(0, len(indices), self.batch_size))
        waiting: deque[_Pending] = deque()
        try:
            while True:
                while len(waiting) <= _AHEAD and (start := next(starts, None)) is not None:
                    waiting.append(self._submit(indices[start : start + self.batch_size]))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for pending in waiting:
                pending.cancel()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, indices: npt.NDArray[np.int64]) -> _Pending:
        pixels = torch.empty((len(indices), *self.transform.shape), dtype=torch.uint8, pin_memory=self.pin_memory)
        target = pixels.numpy()
        futures = [self._pool.submit(self._fill, target, indices, start) for start in range(0, len(indices), _CHUNK)]
        return _Pending(indices, pixels, futures)

    def _fill(self, target: npt.NDArray[np.uint8], indices: npt.NDArray[np.int64], start: int) -> dict[int, str]:
        bad: dict[int, str] = {}
        for row in range(start, min(start + _CHUNK, len(indices))):
            index = int(indices[row])
            try:
                picture = self.images.image(index)
                target[row] = self.transform(picture)
            except BadImage as error:
                bad[row] = str(error)
                continue
            if self.look is not None:
                self.look(index, picture)
        return bad


@dataclass(frozen=True)
class _Pending:
    indices: npt.NDArray[np.int64]
    pixels: Tensor
    futures: list[Future[dict[int, str]]]

    def result(self) -> Decoded:
        bad: dict[int, str] = {}
        for future in self.futures:
            bad.update(future.result())
        if not bad:
            return Decoded(self.indices, self.pixels)
        good = np.array([row for row in range(len(self.indices)) if row not in bad], dtype=np.int64)
        reasons = {int(self.indices[row]): reason for row, reason in bad.items()}
        return Decoded(self.indices[good], self.pixels[torch.from_numpy(good)], reasons)

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()
