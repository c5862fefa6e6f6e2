"""A canvas answers like a tensor, whether its images are in memory or decoded on demand."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from backend.domain.catalog import Preprocessing
from backend.domain.errors import BadInput
from workers.inputs.canvas import Canvas, common_view
from workers.inputs.images import ArrayImages, EncodedImages

PREPROCESSING = Preprocessing(input_size=(3, 16, 16), crop_pct=1.0, interpolation="bilinear")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, size=(7, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(7) % 3
NAMES = [str(i) for i in range(7)]


def images():
    return ArrayImages(NAMES, LABELS, ("x", "y", "z"), PIXELS)


def test_in_memory_and_on_demand_give_the_same_pixels():
    chosen = np.array([5, 0, 3])
    held = Canvas(images(), chosen, PREPROCESSING)
    lazy = Canvas(images(), chosen, PREPROCESSING, memory_bytes=0)
    assert torch.equal(held[slice(0, 3)], lazy[slice(0, 3)])
    picked = torch.tensor([2, 0])
    assert torch.equal(held[picked], lazy[picked])
    assert torch.equal(held[picked], torch.from_numpy(PIXELS[[3, 5]]).permute(0, 3, 1, 2))
    assert held.labels.tolist() == lazy.labels.tolist() == [2, 0, 0]
    assert held.sample_ids == ("5", "0", "3")
    assert len(held) == len(lazy) == 3


def broken():
    def read(i):
        if i == 1:
            return b"no image"
        file = io.BytesIO()
        Image.fromarray(PIXELS[i]).save(file, "PNG")
        return file.getvalue()

    return EncodedImages(NAMES, LABELS, ("x", "y", "z"), read, lambda: iter(()), 10_000)


def test_unreadable_samples_are_left_out_and_named():
    canvas = Canvas(broken(), np.arange(3), PREPROCESSING)
    assert canvas.bad_samples == ("1",)
    assert canvas.sample_ids == ("0", "2")
    assert canvas.labels.tolist() == [0, 2]
    assert torch.equal(canvas[slice(0, 2)], torch.from_numpy(PIXELS[[0, 2]]).permute(0, 3, 1, 2))


def test_on_demand_an_unreadable_sample_is_an_error_that_names_it():
    canvas = Canvas(broken(), np.arange(3), PREPROCESSING, memory_bytes=0)
    with pytest.raises(BadInput, match="sample: '1'"):
        canvas[torch.tensor([0, 1])]


def test_nothing_readable_is_refused():
    with pytest.raises(BadInput, match="at least one image"):
        Canvas(broken(), np.array([1]), PREPROCESSING)


def test_the_common_view_is_the_largest_and_the_students_own_cropping():
    student = Preprocessing(input_size=(3, 32, 32), crop_pct=0.9, interpolation="bilinear")
    view = common_view([Preprocessing(input_size=(3, 64, 64), crop_pct=0.5)], student)
    assert view.input_size == (3, 64, 64)
    assert (view.crop_pct, view.interpolation) == (0.9, "bilinear")
