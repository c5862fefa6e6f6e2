"""Folders of images and masks, and COCO-style JSON: what is read, and what is wrong with what is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backend.domain.errors import BadInput
from workers.inputs.coco import read_coco
from workers.inputs.dense_canvas import BoxCanvas, MaskCanvas
from workers.inputs.mask_folders import IGNORE, read_mask_folder

PIXELS = 10**6


def _save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)


def _masked(root: Path, layout: str = "{split}/{kind}", masks: str = "masks") -> Path:
    (root / "train").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("ground\nsquare\n")
    for split, n in (("train", 3), ("test", 2)):
        for i in range(n):
            labels = np.zeros((6, 8), np.uint8)
            labels[1:4, 2:5], labels[0] = 1, IGNORE
            _save(root / layout.format(split=split, kind="images") / f"a/{i}.png", np.full((6, 8, 3), 9, np.uint8))
            _save(root / layout.format(split=split, kind=masks) / f"a/{i}.png", labels)
    return root


@pytest.mark.parametrize(("layout", "masks"), [("{split}/{kind}", "masks"), ("{kind}/{split}", "annotations")])
def test_both_layouts_are_read(tmp_path: Path, layout: str, masks: str) -> None:
    splits = read_mask_folder(_masked(tmp_path, layout, masks), max_pixels=PIXELS)
    assert {name: len(images) for name, images in splits.items()} == {"train": 3, "test": 2}
    train = splits["train"]
    assert (train.names, train.class_names) == (("a/0", "a/1", "a/2"), ("ground", "square"))
    image, mask = train.pair(1)
    assert image.size == (8, 6)
    assert (mask[1:4, 2:5] == 1).all()
    assert (mask[0] == IGNORE).all()
    canvas = MaskCanvas(train, np.array([2, 0]), 16)
    pixels, masks_ = canvas[torch.tensor([1])]
    assert pixels.shape == (1, 3, 16, 16)
    assert set(masks_.unique().tolist()) == {0, 1, IGNORE}, "nearest: no class between two"
    np.testing.assert_array_equal(canvas.mask(0), mask)
    on_demand = MaskCanvas(train, np.array([2, 0]), 16, memory_bytes=0)
    assert torch.equal(on_demand[torch.tensor([0, 1])][1], canvas[torch.tensor([0, 1])][1])


def test_palettes_and_zero_ignored(tmp_path: Path) -> None:
    root = _masked(tmp_path)
    palette = Image.new("P", (2, 2))
    palette.putdata([0, 1, 2, 255])
    palette.putpalette([value for i in range(256) for value in (i, 0, 255 - i)])
    palette.save(root / "train" / "masks" / "a" / "0.png")
    _save(root / "train" / "images" / "a" / "0.png", np.zeros((2, 2, 3), np.uint8))
    train = read_mask_folder(root, zero_ignored=True, max_pixels=PIXELS)["train"]
    np.testing.assert_array_equal(train.mask(0), [[IGNORE, 0], [1, IGNORE]])


def _unlisted(root: Path) -> None:
    (root / "classes.txt").unlink()


def _twice(root: Path) -> None:
    (root / "classes.txt").write_text("a\na\n")


def _other_size(root: Path) -> None:
    _save(root / "train" / "masks" / "a" / "1.png", np.zeros((6, 7), np.uint8))


def _unknown_id(root: Path) -> None:
    _save(root / "train" / "masks" / "a" / "1.png", np.full((6, 8), 7, np.uint8))


def _coloured(root: Path) -> None:
    _save(root / "train" / "masks" / "a" / "1.png", np.zeros((6, 8, 3), np.uint8))


def _broken(root: Path) -> None:
    (root / "train" / "masks" / "a" / "1.png").write_bytes(b"no picture")


def _lonely_image(root: Path) -> None:
    (root / "train" / "masks" / "a" / "1.png").unlink()


def _lonely_mask(root: Path) -> None:
    (root / "train" / "images" / "a" / "1.png").unlink()


def _no_splits(root: Path) -> None:
    (root / "train").rename(root / "one")
    (root / "test").rename(root / "two")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_unlisted, "one class name a line"),
        (_twice, "different class names"),
        (_other_size, r"as large as its image, 8 × 6 pixels; this one is 7 × 6"),
        (_unknown_id, r"ids 0 to 1 of classes.txt, or 255 to ignore a pixel; this mask has 7"),
        (_coloured, "one channel of class ids; this one is RGB"),
        (_broken, "mask that can be read"),
        (_lonely_image, r"a mask .*masks/a/1\.\* that goes with it"),
        (_lonely_mask, r"an image .*images/a/1\.\* that goes with it"),
        (_no_splits, "splits like train and test"),
    ],
)
def test_what_is_wrong_with_masks_is_said(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    root = _masked(tmp_path)
    spoil(root)
    with pytest.raises(BadInput, match=message):
        [train.pair(i) for train in (read_mask_folder(root, max_pixels=PIXELS)["train"],) for i in range(3)]


def _coco(
    root: Path, *, split: str = "train2017", images: str = "{split}", json_at: str = "annotations/instances_"
) -> Path:
    content = {
        "images": [{"id": 5, "file_name": "x/0.png"}, {"id": 2, "file_name": "1.png"}],
        "categories": [{"id": 90, "name": "wheel"}, {"id": 7, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 90, "bbox": [1, 2, 3, 4], "iscrowd": 0, "area": 12},
            {"id": 2, "image_id": 5, "category_id": 7, "bbox": [6.5, 0, 9, 3], "iscrowd": 1},
            {"id": 3, "image_id": 5, "category_id": 7, "bbox": [1, 1, 0, 3]},
        ],
    }
    folder = root / images.format(split=split)
    _save(folder / "x" / "0.png", np.zeros((6, 8, 3), np.uint8))
    _save(folder / "1.png", np.zeros((6, 8, 3), np.uint8))
    path = root / f"{json_at}{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("images", "json_at"),
    [("{split}", "annotations/instances_"), ("images/{split}", "annotations/"), ("images", ""), ("{split}/images", "")],
)
def test_coco_is_read_wherever_its_parts_lie(tmp_path: Path, images: str, json_at: str) -> None:
    _coco(tmp_path, images=images, json_at=json_at)
    (tmp_path / "captions.json").write_text("[]")
    splits = read_coco(tmp_path, max_pixels=PIXELS)
    assert list(splits) == ["train2017"]
    train = splits["train2017"]
    assert (train.names, train.class_names) == (("0.png", "1.png"), ("cat", "wheel"))
    canvas = BoxCanvas(train, np.array([0, 1]))
    pixels, truth = canvas.sample(0)
    assert pixels.shape == (3, 6, 8)
    np.testing.assert_array_equal(truth.boxes, [[1, 2, 4, 6], [6.5, 0, 8, 3]])  # cut to the image; no area, no box
    assert (truth.labels.tolist(), truth.crowd.tolist()) == ([2, 1], [False, True])
    assert canvas.sample(1)[1].boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"annotations": [{"id": 4, "image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1]}]},
            "image_id that is listed; 1",
        ),
        (
            {"annotations": [{"id": 4, "image_id": 2, "category_id": 8, "bbox": [0, 0, 1, 1]}]},
            "category_id.*; 8 is not",
        ),
        ({"annotations": [{"id": 4, "image_id": 2, "category_id": [7], "bbox": [0, 0, 1, 1]}]}, "category_id that is"),
        ({"annotations": [{"id": 4, "image_id": 2, "category_id": 7, "bbox": [0, 0, 1]}]}, "four numbers"),
        (
            {"annotations": [{"id": 4, "image_id": 2, "category_id": 7, "bbox": [0, 0, 1, float("inf")]}]},
            "four numbers",
        ),
        ({"annotations": [{"id": 4, "image_id": 2, "category_id": 7, "bbox": [50, 0, 1, 1]}]}, "boxes inside 1.png"),
        ({"categories": []}, "at least one category"),
        ({"categories": [{"id": 1}]}, "id and a name"),
        ({"images": [{"id": 2, "file_name": "../up.png"}]}, "stay inside"),
        ({"images": [{"id": 2, "file_name": "none.png"}], "annotations": []}, "one of the folders"),
        ({"images": [{"id": 2, "file_name": "1.png"}, {"id": 2, "file_name": "1.png"}]}, "id of its own"),
        ({"images": {}}, "list of objects under 'images'"),
    ],
)
def test_what_is_wrong_with_boxes_is_said(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = _coco(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadInput, match=message):
        [
            BoxCanvas(train, np.arange(2)).sample(i)
            for train in read_coco(tmp_path, max_pixels=PIXELS).values()
            for i in (0, 1)
        ]


def test_no_json_and_other_categories_are_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"instances_<split>\.json"):
        read_coco(tmp_path, max_pixels=PIXELS)
    _coco(tmp_path)
    path = _coco(tmp_path, split="val2017")
    path.write_text(json.dumps({**json.loads(path.read_text()), "categories": [{"id": 7, "name": "dog"}]}))
    with pytest.raises(BadInput, match="same categories"):
        read_coco(tmp_path, max_pixels=PIXELS)
    path.write_text("{")
    with pytest.raises(BadInput, match="JSON file"):
        read_coco(tmp_path, max_pixels=PIXELS)
