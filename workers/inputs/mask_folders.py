"""Segmentation data sets: a folder of images and a folder of masks, and a list of classes.

    root/classes.txt                    one class name a line; line c is class c
    root/<split>/images/**/name.jpg     root/<split>/masks/**/name.png      or
    root/images/<split>/**/name.jpg     root/masks/<split>/**/name.png      (`annotations` for `masks`, as in ADE20K)

A mask has one channel with the class of every pixel, 255 where none counts, and the size of its image. Palettes (VOC)
are read as their indices. With `zero_ignored` 0 means unlabelled, and line c of the list is class c + 1 of the masks.

N images of their own H × W pixels, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from backend.domain.errors import BadInput
from workers.inputs.decoding import EXTENSIONS, FORMATS, BadImage, decode
from workers.inputs.imagefolder import SPLIT_NAMES

IGNORE = 255
FIELD = "downstream"
_MASKS = ("masks", "annotations", "labels")
_SCALAR_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")
MAX_CLASSES = IGNORE


class MaskedImages:
    """The N images of one split with their masks; nothing is decoded before it is asked for.

    Attributes:
        names: N paths below the folder of images, without their endings.
        class_names: C names.
    """

    def __init__(
        self,
        pairs: list[tuple[str, Path, Path]],
        class_names: tuple[str, ...],
        *,
        zero_ignored: bool,
        max_pixels: int,
    ) -> None:
        self.names = tuple(name for name, _, _ in pairs)
        self._files = [(image, mask) for _, image, mask in pairs]
        self.class_names, self.zero_ignored, self._max_pixels = class_names, zero_ignored, max_pixels

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> Image.Image:
        """Image i, upright, RGB.

        Raises:
            BadInput: it cannot be read.
        """
        path = self._files[i][0]
        try:
            return decode(path.read_bytes(), self._max_pixels)
        except (BadImage, OSError) as error:
            raise BadInput(FIELD, str(path), f"an image that can be read ({error})") from None

    def mask(self, i: int) -> npt.NDArray[np.uint8]:
        """The classes of image i's pixels, [H, W], `IGNORE` where none counts.

        Raises:
            BadInput: it cannot be read, has several channels, or ids that are no class.
        """
        path = self._files[i][1]
        try:
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height > self._max_pixels:
                    raise BadInput(FIELD, str(path), f"a mask of at most {self._max_pixels} pixels")
                mode = file.mode
                ids: npt.NDArray[Any] = np.asarray(file)
        except BadInput:
            raise
        except Exception as error:  # broken files make Pillow raise nearly anything
            raise BadInput(FIELD, str(path), f"a mask that can be read ({error})") from None
        if mode not in _SCALAR_MODES or ids.ndim != 2:
            raise BadInput(FIELD, str(path), f"a mask with one channel of class ids; this one is {mode}")
        return self._classes(ids.astype(np.int64), path)

    def _classes(self, ids: npt.NDArray[np.int64], path: Path) -> npt.NDArray[np.uint8]:
        first = 1 if self.zero_ignored else 0
        ignored = (ids == IGNORE) | (ids == 0) if self.zero_ignored else ids == IGNORE
        classes = np.where(ignored, IGNORE, ids - first)
        unknown = ids[~ignored & ((classes < 0) | (classes >= len(self.class_names)))]
        if unknown.size:
            last = len(self.class_names) - 1 + first
            known = f"the ids {first} to {last} of classes.txt, or {IGNORE} to ignore a pixel"
            raise BadInput(FIELD, str(path), f"{known}; this mask has {int(unknown[0])}")
        return classes.astype(np.uint8)

    def pair(self, i: int) -> tuple[Image.Image, npt.NDArray[np.uint8]]:
        """Image i and its mask, of one size.

        Raises:
            BadInput: as above, or the mask has another size than the image.
        """
        image, mask = self.image(i), self.mask(i)
        if mask.shape != (image.height, image.width):
            found = f"{mask.shape[1]} × {mask.shape[0]}"
            expected = f"a mask as large as its image, {image.width} × {image.height} pixels; this one is {found}"
            raise BadInput(FIELD, str(self._files[i][1]), expected)
        return image, mask


def read_mask_folder(root: Path, *, zero_ignored: bool = False, max_pixels: int) -> dict[str, MaskedImages]:
    """The splits of a segmentation data set.

    Raises:
        BadInput: no list of classes, no splits, an image without mask or a mask without image.
    """
    class_names = _class_names(root)
    found: dict[str, MaskedImages] = {}
    for split, images, masks in _folders(root):
        pairs = _paired(images, masks)
        found[split] = MaskedImages(pairs, class_names, zero_ignored=zero_ignored, max_pixels=max_pixels)
    if not found:
        layout = "<split>/images and <split>/masks, or images/<split> and masks/<split>; splits like train and test"
        raise BadInput(FIELD, str(root), layout)
    return found


def _class_names(root: Path) -> tuple[str, ...]:
    path = root / "classes.txt"
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise BadInput(FIELD, str(path), "a text file with one class name a line") from None
    while names and not names[-1]:
        names.pop()
    if not 1 <= len(names) <= MAX_CLASSES or not all(names) or len(set(names)) != len(names):
        raise BadInput(FIELD, str(path), f"1 to {MAX_CLASSES} different class names, one a line")
    return tuple(names)


def _folders(root: Path) -> list[tuple[str, Path, Path]]:
    """(split, images, masks) of both layouts."""
    found = []
    for split in sorted(SPLIT_NAMES):
        for pattern in ("{split}/{kind}", "{kind}/{split}"):
            images = root / pattern.format(split=split, kind="images")
            masks = [root / pattern.format(split=split, kind=kind) for kind in _MASKS]
            there = [path for path in masks if path.is_dir()]
            if images.is_dir() and there:
                found.append((split, images, there[0]))
                break
    return found


def _paired(images: Path, masks: Path) -> list[tuple[str, Path, Path]]:
    pictures, labels = _by_name(images), _by_name(masks)
    for here, there, other in ((pictures, labels, f"a mask {masks}"), (labels, pictures, f"an image {images}")):
        lonely = sorted(here.keys() - there.keys())
        if lonely:
            raise BadInput(FIELD, str(here[lonely[0]]), f"{other}/{lonely[0]}.* that goes with it")
    if not pictures:
        raise BadInput(FIELD, str(images), "at least one image with its mask")
    return [(name, pictures[name], labels[name]) for name in sorted(pictures)]


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise BadInput(FIELD, str(path), f"one file of each name; {found[name].name} is there too")
            found[name] = path
    return found
