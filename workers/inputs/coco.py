"""Detection data sets: folders of images and COCO-style JSON.

    root/annotations/instances_<split>.json, root/annotations/<split>.json or root/<split>.json
    root/<split>/name.jpg, root/images/<split>/name.jpg or root/images/name.jpg

The JSON has `images` (id, file_name), `annotations` (image_id, category_id, bbox [x, y, width, height], iscrowd) and
`categories` (id, name); further fields are passed over. Categories are numbered 1 … C by falling out in order of their
ids. Boxes without area are left out, boxes that reach beyond their image are cut to it.

N images, n boxes of one image as (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from backend.domain.errors import BadInput
from workers.inputs.decoding import BadImage, decode
from workers.inputs.imagefolder import SPLIT_NAMES

FIELD = "downstream"
MAX_BYTES = 2 * 1024**3
_PLACES = ("{split}", "images/{split}", "{split}/images", "images", ".")


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of one image: [n, 4] float64, labels [n] from 1, crowd flags [n]."""

    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]


class BoxedImages:
    """The N images of one split with their boxes."""

    def __init__(
        self, paths: Sequence[Path], raw: Sequence[list[tuple[Any, ...]]], class_names: Sequence[str], max_pixels: int
    ) -> None:
        self._paths, self._raw, self._max_pixels = tuple(paths), tuple(raw), max_pixels
        self.class_names = tuple(class_names)
        self.names = tuple(path.name for path in self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, i: int) -> Image.Image:
        """Image i, upright, RGB.

        Raises:
            BadInput: it cannot be read.
        """
        try:
            return decode(self._paths[i].read_bytes(), self._max_pixels)
        except (BadImage, OSError) as error:
            raise BadInput(FIELD, str(self._paths[i]), f"an image that can be read ({error})") from None

    def boxes(self, i: int, width: int, height: int) -> ImageBoxes:
        """The boxes of image i, which is `width` × `height` pixels.

        Raises:
            BadInput: a box that lies outside the image as a whole.
        """
        kept = []
        for x, y, w, h, label, crowd, annotation in self._raw[i]:
            box = (max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h))
            if w <= 0 or h <= 0:
                continue
            if box[2] <= box[0] or box[3] <= box[1]:
                expected = f"boxes inside {self._paths[i].name} ({width} × {height} pixels)"
                raise BadInput(FIELD, f"annotation {annotation}", expected)
            kept.append((*box, label, crowd))
        table = np.array(kept, dtype=np.float64).reshape(-1, 6)
        return ImageBoxes(table[:, :4], table[:, 4].astype(np.int64), table[:, 5].astype(bool))


def read_coco(root: Path, *, max_pixels: int) -> dict[str, BoxedImages]:
    """The splits of a detection data set, all with the same classes.

    Raises:
        BadInput: no JSON, or what is wrong with it; splits with different categories.
    """
    files = _files(root)
    if not files:
        raise BadInput(FIELD, str(root), "annotations/instances_<split>.json or <split>.json, with splits like train")
    found: dict[str, BoxedImages] = {}
    known: list[tuple[int, str]] | None = None
    for split, path in files.items():
        content = _loaded(path)
        categories = _categories(content, path)
        if known is not None and categories != known:
            raise BadInput(FIELD, str(path), f"the same categories as in {next(iter(files.values())).name}")
        known = categories
        found[split] = _images(root, split, path, content, categories, max_pixels)
    return found


def _files(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder, prefix in ((root / "annotations", "instances_"), (root / "annotations", ""), (root, "")):
        for path in sorted(folder.glob(f"{prefix}*.json")):
            split = path.stem.removeprefix(prefix)
            if _split_name(split) and split not in found:
                found[split] = path
    return found


def _split_name(name: str) -> bool:
    """train, val, test and the like, with a year as in COCO."""
    return name.rstrip("0123456789") in SPLIT_NAMES


def _loaded(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(FIELD, str(path), f"at most {MAX_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(FIELD, str(path), f"a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise BadInput(FIELD, str(path), "an object with images, annotations and categories")
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name), list) or not all(isinstance(one, dict) for one in content[name]):
            raise BadInput(FIELD, str(path), f"a list of objects under {name!r}")
    return content


def _categories(content: dict[str, Any], path: Path) -> list[tuple[int, str]]:
    try:
        found = sorted((int(one["id"]), str(one["name"])) for one in content["categories"])
    except (KeyError, TypeError, ValueError):
        raise BadInput(FIELD, str(path), "an id and a name for every category") from None
    if not found or len({id for id, _ in found}) != len(found):
        raise BadInput(FIELD, str(path), "at least one category, each id once")
    return found


def _images(
    root: Path, split: str, path: Path, content: dict[str, Any], categories: list[tuple[int, str]], max_pixels: int
) -> BoxedImages:
    labels = {id: number for number, (id, _) in enumerate(categories, start=1)}
    names: dict[Any, str] = {}
    for one in content["images"]:
        id, name = one.get("id"), one.get("file_name")
        if not isinstance(id, (int, str)) or not isinstance(name, str) or id in names:
            raise BadInput(FIELD, f"{path}: image {id}", "an id of its own and a file_name for every image")
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise BadInput(FIELD, f"{path}: {name}", "file names that stay inside the data set")
        names[id] = name
    if not names:
        raise BadInput(FIELD, str(path), "at least one image")
    boxes: dict[Any, list[tuple[Any, ...]]] = {id: [] for id in names}
    for one in content["annotations"]:
        boxes[_image_of(one, names, path)].append(_box(one, labels, path))
    folder = _place(root, split, next(iter(names.values())))
    paths = []
    for id in names:
        file = folder / names[id]
        if not file.is_file():
            raise BadInput(FIELD, str(file), f"the image that {path.name} names")
        paths.append(file)
    return BoxedImages(paths, list(boxes.values()), [name for _, name in categories], max_pixels)


def _place(root: Path, split: str, name: str) -> Path:
    places = [root / pattern.format(split=split) for pattern in _PLACES]
    there = [place for place in places if (place / name).is_file()]
    if not there:
        looked = ", ".join(str(place.relative_to(root)) for place in places)
        raise BadInput(FIELD, name, f"an image in one of the folders {looked} of {root}")
    return there[0]


def _image_of(one: dict[str, Any], names: dict[Any, str], path: Path) -> Any:
    id = one.get("image_id")
    if not isinstance(id, (int, str)) or id not in names:
        raise BadInput(FIELD, f"{path}: annotation {one.get('id')}", f"an image_id that is listed; {id!r} is not")
    return id


def _box(one: dict[str, Any], labels: dict[int, int], path: Path) -> tuple[Any, ...]:
    """x, y, width, height, label, crowd, the annotation's own id."""
    where = f"{path}: annotation {one.get('id')}"
    category = one.get("category_id")
    if not isinstance(category, int) or category not in labels:
        raise BadInput(FIELD, where, f"a category_id that is listed; {category!r} is not")
    box = one.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(x, (int, float)) for x in box)
    if not numbers or not all(math.isfinite(x) for x in box):  # type: ignore[union-attr]
        raise BadInput(FIELD, where, f"a bbox of four numbers: x, y, width, height; not {box!r}")
    x, y, w, h = (float(value) for value in box)  # type: ignore[union-attr]
    return x, y, w, h, labels[category], bool(one.get("iscrowd", 0)), one.get("id")
