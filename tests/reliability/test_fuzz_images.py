"""T12 in small: one file in ten is broken."""

import warnings

from PIL import Image

from tests.reliability.fuzz_images import fuzz


def test_a_scan_lists_exactly_the_bad_files() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        outcome = fuzz(n_images=600, n_bad=60, seed=1)
    Image.MAX_IMAGE_PIXELS = before
    assert outcome["breaches"] == []
    assert outcome["listed"] == 60
