"""Packed thumbnails: written once, added to, read without the images."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from backend import thumbnails
from backend.settings import Settings

PRINT = "f" * 64


def test_small_pictures_stay_and_large_ones_fit(tmp_path: Path) -> None:
    for size, expected in (((32, 20), (32, 20)), ((960, 480), (96, 48)), ((500, 3), (96, 1)), ((97, 97), (96, 96))):
        made = thumbnails.make(Image.new("RGB", size, (200, 30, 30)))
        with Image.open(io.BytesIO(made)) as image:
            assert image.format == "JPEG"
            assert image.size == expected
            assert abs(int(np.asarray(image)[0, 0, 0]) - 200) < 8


def test_packs_are_added_to(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert thumbnails.thumbnail(settings, PRINT, "a") is None
    assert thumbnails.packed_ids(settings, PRINT) == frozenset()
    assert thumbnails.pack(settings, PRINT, {"a": b"1", "b/ü.png": b"2"}) == 2
    assert thumbnails.thumbnail(settings, PRINT, "b/ü.png") == b"2"
    assert thumbnails.pack(settings, PRINT, {"c": b"3"}) == 3
    assert [thumbnails.thumbnail(settings, PRINT, name) for name in ("a", "c", "d")] == [b"1", b"3", None]
    assert thumbnails.packed_ids(settings, PRINT) == {"a", "b/ü.png", "c"}
    assert thumbnails.thumbnail(settings, "0" * 64, "a") is None


def test_neither_this_nor_the_import_loads_torch() -> None:
    code = "import sys, backend.thumbnails, backend.predictions, backend.pairing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
