"""Every mode and every kind of damage: right pixels, or a reason."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from workers.inputs.decoding import BadImage, bound_decoding, decode

LIMIT = 1_000_000


@pytest.fixture(autouse=True)
def _bounds():
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        bound_decoding(LIMIT)
        yield
    Image.MAX_IMAGE_PIXELS = before


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 40000], [65535, 257]], dtype=np.uint16)
    pixels = np.asarray(decode(encoded(Image.fromarray(values)), LIMIT))
    assert pixels[..., 0].tolist() == [[0, 156], [255, 1]]
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), [[0, 128, 255]]),
        (np.array([[0.0, 100.0, 255.0]], dtype=np.float32), [[0, 100, 255]]),
        (np.array([[0, 7, 255]], dtype=np.int32), [[0, 7, 255]]),
        (np.array([[0, 40000, 65535]], dtype=np.int32), [[0, 156, 255]]),
    ],
)
def test_wide_grey_values_in_tiff(values, expected):
    pixels = np.asarray(decode(encoded(Image.fromarray(values), "TIFF"), LIMIT))
    assert pixels[..., 0].tolist() == expected


def test_wide_grey_values_without_a_range_are_bad():
    with pytest.raises(BadImage, match="no known range"):
        decode(encoded(Image.fromarray(np.array([[0, 10**6]], dtype=np.int32)), "TIFF"), LIMIT)


def test_alpha_is_dropped_as_timm_does():
    rgba = Image.fromarray(np.array([[[10, 20, 30, 0], [40, 50, 60, 128]]], dtype=np.uint8))
    assert np.asarray(decode(encoded(rgba), LIMIT)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    grey = Image.merge("LA", (Image.new("L", (2, 1), 77), Image.new("L", (2, 1), 0)))
    assert np.asarray(decode(encoded(grey), LIMIT)).tolist() == [[[77] * 3] * 2]


def test_palettes_with_alpha_raise_no_warning():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 120, 10] + [0] * (254 * 3))
    content = encoded(image, transparency=b"\x00\x80" + b"\xff" * 254)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = np.asarray(decode(content, LIMIT))
    assert pixels[0, 0].tolist() == [250, 120, 10]


def test_cmyk_and_grey_and_gif():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = np.asarray(decode(encoded(cmyk, "JPEG", quality=100), LIMIT))[0, 0]
    assert red[0] > 240
    assert red[1] < 15
    assert np.asarray(decode(encoded(Image.new("L", (3, 2), 77)), LIMIT)).tolist() == [[[77] * 3] * 3] * 2
    first = np.asarray(decode(encoded(Image.new("L", (3, 2), 5), "GIF"), LIMIT))
    assert first.shape == (2, 3, 3)


def test_exif_orientation_is_applied():
    image = Image.fromarray(np.zeros((10, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    assert decode(encoded(image, "JPEG", exif=exif), LIMIT).size == (10, 20)
    assert decode(encoded(image, "JPEG"), LIMIT).size == (20, 10)


def test_a_broken_exif_block_does_not_lose_the_picture():
    content = encoded(Image.new("RGB", (6, 4)), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + b"\x99" * 30)
    assert decode(content, LIMIT).size == (6, 4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html><body>404</body></html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "PNG|chunk|image"),
    ],
)
def test_what_is_no_image_is_bad(content, reason):
    with pytest.raises(BadImage, match=reason):
        decode(content, LIMIT)


def test_truncated_files_are_bad():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP"):
        content = encoded(image, kind)
        with pytest.raises(BadImage):
            decode(content[: len(content) // 2], LIMIT)


def test_bombs_are_refused_by_their_header():
    content = encoded(Image.new("1", (1001, 1000)))
    assert len(content) < 1000
    with pytest.raises(BadImage, match=r"pixels|decompression bomb"):
        decode(content, LIMIT)
    assert decode(encoded(Image.new("1", (1000, 1000))), LIMIT).size == (1000, 1000)
    with pytest.raises(BadImage, match="10 × 10 pixels are more than the limit of 99"):
        decode(encoded(Image.new("L", (10, 10))), 99)
