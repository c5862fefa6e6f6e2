"""Images that come as arrays: scikit-learn's digits, and npz files.

An npz file holds `images` and `labels` (one split, `all`), or `<split>_images`/`<split>_labels`, or
`x_<split>`/`y_<split>`; `X`/`Y` and `x`/`y` also mean one split. Images are uint8, or floats in [0, 1], shaped
[N, H, W], [N, H, W, 1], [N, H, W, 3] or [N, 3, H, W]; labels are [N] whole numbers from 0. `class_names` is optional.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backend.domain.datasets import Subset
from backend.domain.errors import BadInput
from backend.settings import Settings
from workers.inputs.images import ArrayImages, Images

_WHOLE_SPLIT = "all"
_PAIRS = (("images", "labels"), ("X", "Y"), ("x", "y"))
_DIGITS_TOP = 16  # grey values of scikit-learn's digits go from 0 to 16
_DIGITS_SPLITS = {"val": 500, "transfer": 397}  # the other 900 are `train`


def read_digits(location: str | None, options: dict[str, Any], settings: Settings) -> dict[str, Images]:
    """The 1,797 handwritten digits of scikit-learn, 8 × 8, grey: train 900, transfer 397, val 500.

    The splits are class-stratified and the same everywhere. Grey values 0..16 are spread over 0..255.
    """
    from sklearn.datasets import load_digits

    if location is not None or options:
        raise BadInput("location", location or options, "nothing: digits come with scikit-learn and have no options")
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    pixels = np.rint(digits.images * (255 / _DIGITS_TOP)).astype(np.uint8)
    names = [str(name) for name in range(10)]
    left = np.arange(len(labels))
    chosen: dict[str, npt.NDArray[np.int64]] = {}
    for split, size in _DIGITS_SPLITS.items():
        picked = Subset(limit=size, seed=0).indices(labels[left])
        chosen[split] = left[picked]
        left = np.delete(left, picked)
    chosen["train"] = left
    return {
        split: ArrayImages([str(i) for i in rows], labels[rows], names, pixels[rows])
        for split, rows in sorted(chosen.items())
    }


def read_npz(location: str | None, options: dict[str, Any], settings: Settings) -> dict[str, Images]:
    """The splits of an npz file, see the head of this module."""
    if options:
        raise BadInput("options", sorted(options), "an npz data set has no options")
    path = Path(location or "")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise BadInput("location", location, f"an npz file that can be read ({error})") from None
    names = [str(name) for name in arrays.get("class_names", arrays.get("classes", np.array([], dtype=str)))]
    splits = _npz_splits(arrays)
    if not splits:
        raise BadInput(
            "location",
            sorted(arrays),
            "an npz with images and labels, or <split>_images and <split>_labels, or x_<split> and y_<split>",
        )
    checked = {split: (_pixels(split, *pair), _labels(split, *pair)) for split, pair in splits.items()}
    n_classes = 1 + max(int(labels.max(initial=-1)) for _, labels in checked.values())
    if names and len(names) < n_classes:
        raise BadInput("class_names", len(names), f"at least {n_classes} names, labels go up to {n_classes - 1}")
    names = names or [str(index) for index in range(n_classes)]
    return {
        split: ArrayImages([str(i) for i in range(len(labels))], labels, names, pixels)
        for split, (pixels, labels) in checked.items()
    }


def _npz_splits(arrays: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    splits = {}
    for images, labels in _PAIRS:
        if images in arrays:
            if labels not in arrays:
                raise BadInput("location", images, f"labels beside the images, as {labels!r}")
            splits[_WHOLE_SPLIT] = (arrays[images], arrays[labels])
            break
    for name in arrays:
        if name.startswith("x_"):
            split, labels = name[2:], f"y_{name[2:]}"
        elif name.endswith("_images"):
            split, labels = name.removesuffix("_images"), name.removesuffix("_images") + "_labels"
        else:
            continue
        if labels not in arrays:
            raise BadInput("location", name, f"labels beside the images, as {labels!r}")
        splits[split] = (arrays[name], arrays[labels])
    return splits


def _pixels(split: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or 0 in images.shape:
        raise BadInput(f"images of {split}", images.shape, "[N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W], N > 0")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind == "f" and np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1:
        return np.rint(images * 255).astype(np.uint8)
    raise BadInput(f"images of {split}", str(images.dtype), "uint8, or floats from 0 to 1")


def _labels(split: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise BadInput(f"labels of {split}", f"{flat.dtype} {flat.shape}", "[N] whole numbers")
    if len(flat) != len(images):
        raise BadInput(f"labels of {split}", len(flat), f"one label for each of the {len(images)} images")
    if len(flat) and int(flat.min()) < 0:
        raise BadInput(f"labels of {split}", int(flat.min()), "class indices from 0; a sample has no label")
    return flat.astype(np.int64)
