"""N labelled images of one split: what every reader of data sets yields, whatever the format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from backend.domain.errors import BadInput
from workers.inputs.decoding import BadImage, decode

Labels = npt.NDArray[np.int64]


class Images:
    """Labelled images. Reading is thread-safe; nothing is decoded before it is asked for.

    Attributes:
        sample_ids: N names, unique within the split.
        labels: [N] class indices into `class_names`.
        class_names: C names.
    """

    def __init__(self, sample_ids: Sequence[str], labels: npt.ArrayLike, class_names: Sequence[str]) -> None:
        self.sample_ids = tuple(sample_ids)
        self.labels: Labels = np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def image(self, i: int) -> Image.Image:
        """Sample i, upright, mode RGB.

        Raises:
            BadImage: it cannot be read.
        """
        raise NotImplementedError

    def contents(self) -> Iterable[bytes]:
        """Evidence of what the samples hold, in order, for the fingerprint: bytes, check sums or sizes."""
        raise NotImplementedError

    def array(self, indices: Sequence[int] | Labels | None = None) -> npt.NDArray[np.uint8]:
        """All samples (or those at `indices`) at once, [N, 3, H, W]; for data sets of one small image size.

        Raises:
            BadInput: images differ in size, or one cannot be read.
        """
        chosen = range(len(self)) if indices is None else [int(i) for i in indices]
        pixels: list[npt.NDArray[np.uint8]] = []
        for i in chosen:
            try:
                pixels.append(np.asarray(self.image(i)).transpose(2, 0, 1))
            except BadImage as error:
                raise BadInput("sample", self.sample_ids[i], f"an image that can be read: {error}") from None
        shapes = {item.shape for item in pixels}
        if len(shapes) > 1:
            raise BadInput("images", sorted(shapes)[:2], "images of one size; this data set mixes sizes")
        return np.stack(pixels) if pixels else np.zeros((0, 3, 1, 1), dtype=np.uint8)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over sample ids, labels and contents."""
        digest = hashlib.sha256()
        for sample_id, label, content in zip(self.sample_ids, self.labels, self.contents(), strict=True):
            digest.update(f"{sample_id}\0{label}\0".encode(errors="surrogateescape"))
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def relabelled(self, labels: npt.ArrayLike, class_names: Sequence[str]) -> Images:
        """These images with other labels."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.labels = np.asarray(labels, dtype=np.int64)
        copy.class_names = tuple(class_names)
        return copy


class ArrayImages(Images):
    """Images that are in memory as one array of pixels: [N, H, W] (grey) or [N, H, W, 3], uint8."""

    def __init__(
        self,
        sample_ids: Sequence[str],
        labels: npt.ArrayLike,
        class_names: Sequence[str],
        pixels: npt.NDArray[np.uint8],
    ) -> None:
        super().__init__(sample_ids, labels, class_names)
        self.pixels = pixels

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[i])).convert("RGB")

    def contents(self) -> Iterable[bytes]:
        return (np.ascontiguousarray(item).tobytes() for item in self.pixels)

    def array(self, indices: Sequence[int] | Labels | None = None) -> npt.NDArray[np.uint8]:
        pixels = self.pixels if indices is None else self.pixels[np.asarray(indices, dtype=np.int64)]
        if pixels.ndim == 3:
            return np.repeat(pixels[:, None], 3, axis=1)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


class EncodedImages(Images):
    """Images that are files somewhere: `read(i)` gives the bytes of sample i, `evidence` what stands for them."""

    def __init__(
        self,
        sample_ids: Sequence[str],
        labels: npt.ArrayLike,
        class_names: Sequence[str],
        read: Callable[[int], bytes],
        evidence: Callable[[], Iterable[bytes]],
        max_pixels: int,
    ) -> None:
        super().__init__(sample_ids, labels, class_names)
        self._read, self._evidence, self.max_pixels = read, evidence, max_pixels

    def encoded(self, i: int) -> bytes:
        """The file of sample i.

        Raises:
            BadImage: it cannot be read.
        """
        try:
            return self._read(i)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror or error}") from None

    def image(self, i: int) -> Image.Image:
        return decode(self.encoded(i), self.max_pixels)

    def contents(self) -> Iterable[bytes]:
        return self._evidence()
