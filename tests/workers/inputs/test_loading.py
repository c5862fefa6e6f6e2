"""Decoding ahead: order, bad images, and pictures shown."""

import threading

import numpy as np
import torch
from PIL import Image

from backend.domain.catalog import Preprocessing
from workers.inputs.decoding import BadImage
from workers.inputs.images import ArrayImages
from workers.inputs.loading import Decoder
from workers.inputs.transforms import EvalTransform

PRE = Preprocessing(input_size=(3, 8, 8), crop_pct=1.0)


class Broken(ArrayImages):
    def image(self, i: int) -> Image.Image:
        if i % 7 == 3:
            raise BadImage(f"number {i}")
        return super().image(i)


def images(n: int = 50, kind: type[ArrayImages] = ArrayImages) -> ArrayImages:
    pixels = np.repeat(np.arange(n, dtype=np.uint8), 64).reshape(n, 8, 8)
    return kind([str(i) for i in range(n)], np.zeros(n, int), ["x"], pixels)


def test_batches_come_in_order_whatever_the_threads() -> None:
    order = np.random.default_rng(0).permutation(50)
    for threads in (1, 4):
        with Decoder(images(), EvalTransform(PRE), threads=threads, batch_size=12) as decoder:
            batches = list(decoder.batches(order))
        assert [len(batch) for batch in batches] == [12, 12, 12, 12, 2]
        assert np.concatenate([batch.positions for batch in batches]).tolist() == order.tolist()
        assert torch.cat([batch.pixels[:, 0, 0, 0] for batch in batches]).tolist() == order.tolist()


def test_bad_images_are_left_out_and_named() -> None:
    seen: dict[int, int] = {}
    lock = threading.Lock()

    def look(index: int, picture: Image.Image) -> None:
        with lock:
            seen[index] = picture.getpixel((0, 0))[0]

    with Decoder(images(50, Broken), EvalTransform(PRE), threads=3, batch_size=16, look=look) as decoder:
        batches = list(decoder.batches(np.arange(50)))
    bad = {i for i in range(50) if i % 7 == 3}
    assert {i: reason for batch in batches for i, reason in batch.bad.items()} == {i: f"number {i}" for i in bad}
    for batch in batches:
        assert batch.pixels[:, 0, 0, 0].tolist() == batch.positions.tolist()
    assert seen == {i: i for i in range(50) if i not in bad}


def test_stopping_early_leaves_no_thread_behind() -> None:
    with Decoder(images(), EvalTransform(PRE), threads=2, batch_size=4) as decoder:
        next(decoder.batches(np.arange(50)))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
