"""Bytes of an image file → RGB pixels, within bounds, or a BadImage with its reason.

Differences from `Image.open(...).convert("RGB")`: 16-bit grey is scaled instead of clipped (40000 → 156), EXIF
orientation is applied, palettes with alpha raise no warning, pixels are counted from the header before any is decoded,
and only image formats are tried (no PostScript, no fonts). Alpha is dropped, as timm and torchvision do.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Image.init()  # loads Pillow's plugins, once and not in a thread
FORMATS = tuple(
    name for name in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF") if name in Image.OPEN
)
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
_ORIENTATION = 0x0112
_RANGE_16_BIT = 65_535


class BadImage(Exception):
    """This sample cannot be read; the text says why. A scan lists it and goes on."""


def bound_decoding(max_pixels: int) -> None:
    """Make Pillow itself refuse more than `max_pixels`, as an error and not as a warning; once a process."""
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """The picture in an image file, upright, mode RGB.

    Raises:
        BadImage: empty, no image, broken, or larger than `max_pixels`.
    """
    if not content:
        raise BadImage("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(f"{width} × {height} pixels are more than the limit of {max_pixels}")
            image.load()
            return to_rgb(_upright(image))
    except BadImage:
        raise
    # The rim of a decoder: broken files make Pillow raise nearly anything (SyntaxError, struct.error, KeyError, ...).
    except Exception as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadImage(reason or type(error).__name__) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode → RGB. Integers beyond 8 bits and floats in [0, 1] are scaled to the full range of 8 bits."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "P":
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits → uint8: integers by 65535, floats up to 1 by 1, others are taken as 0..255."""
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise BadImage("grey values are negative or not finite")
    top = float(values.max(initial=0))
    sixteen_bits = values.dtype.kind in "iu" and (values.dtype.itemsize == 2 or top > 255)
    scale = _RANGE_16_BIT if sixteen_bits else 1 if values.dtype.kind == "f" and top <= 1 else 255
    if top > scale:
        raise BadImage(f"grey values up to {top:g} have no known range")
    return np.rint(values.astype(np.float64) * (255 / scale)).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a broken EXIF block is no reason to lose the picture."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # third-party parser of untrusted bytes
        return image
    if orientation in (None, 1):
        return image
    return ImageOps.exif_transpose(image)
