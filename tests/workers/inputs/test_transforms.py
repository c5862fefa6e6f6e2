"""Our preprocessing is timm's, to the bit."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from backend.domain.catalog import Preprocessing
from backend.domain.errors import BadInput
from workers.inputs.transforms import EvalTransform, Normalizer


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_equal_to_timm(interpolation: str, crop_mode: str) -> None:
    sides = [(224, 224), (32, 32), (96, 64)]
    for (height, width), crop_pct, size in itertools.product(
        sides, (0.875, 1.0), ((300, 200), (31, 47), (224, 224), (3, 90))
    ):
        pre = Preprocessing(
            input_size=(3, height, width), interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode
        )
        image = picture(*size)
        theirs = create_transform(
            input_size=(3, height, width),
            is_training=False,
            interpolation=interpolation,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            mean=pre.mean,
            std=pre.std,
        )(image)
        ours = Normalizer(pre)(torch.from_numpy(EvalTransform(pre)(image).copy())[None])[0]
        assert torch.equal(ours, theirs), (height, width, crop_pct, size)


def test_grey_models_see_one_channel() -> None:
    pre = Preprocessing(input_size=(1, 28, 28), mean=(0.5,), std=(0.5,))
    pixels = EvalTransform(pre)(picture(28, 28))
    assert pixels.shape == (28, 28, 1)
    assert Normalizer(pre)(torch.from_numpy(pixels.copy())[None]).shape == (1, 1, 28, 28)


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(BadInput, match="input_size"):
        EvalTransform(Preprocessing(input_size=(4, 32, 32), mean=(0.5,), std=(0.5,)))


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (1, 1)])
def test_extreme_shapes_stay_small_in_memory(size: tuple[int, int]) -> None:
    pre = Preprocessing(input_size=(3, 224, 224))
    tracemalloc.start()
    pixels = EvalTransform(pre)(picture(*size))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert pixels.shape == (224, 224, 3)


def test_the_shortcut_for_long_images_sees_what_the_long_way_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    pre = Preprocessing(input_size=(3, 32, 32))
    # Smooth, because Pillow may take its two passes in another order, which shows where noise is clipped in between.
    rows = 128 + 100 * np.sin(np.arange(1200) / 9)
    image = Image.fromarray(np.repeat(np.repeat(rows[:, None, None], 6, 1), 3, 2).astype(np.uint8))
    whole = EvalTransform(pre)(image).astype(int)
    monkeypatch.setattr("workers.inputs.transforms._MAX_RESIZED_PIXELS", 100)
    assert np.abs(EvalTransform(pre)(image).astype(int) - whole).max() <= 2
