"""Segmentation and detection as downstream tasks, on pictures of squares."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backend.domain.downstream import DownstreamParams
from backend.domain.errors import BadInput, MissingExtra
from workers.science.kdep.dense import BoxBatches, DenseBench, MaskBatches, detection_task, segmentation_task
from workers.science.kdep.detection import torchvision_operators
from workers.science.kdep.downstream import DownstreamRun, Scores
from workers.science.kdep.segmentation import IGNORE, backbone_of

SIDE = 32
HALVES = (0.5, 0.5, 0.5)


def _corner(seed: int) -> tuple[int, int]:
    top, left = np.random.default_rng(seed).integers(2, 14, 2)
    return int(top), int(left)


class Squares:
    """A bright square on dark ground; the first row is ignored. The masks on disk are twice as large."""

    def __init__(self, first: int, n: int) -> None:
        self.seeds = range(first, first + n)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.zeros(len(positions), 3, SIDE, SIDE, dtype=torch.uint8)
        masks = torch.zeros(len(positions), SIDE, SIDE, dtype=torch.uint8)
        for row, position in enumerate(positions.tolist()):
            top, left = _corner(self.seeds[position])
            pixels[row, :, top : top + 16, left : left + 16] = 255
            masks[row, top : top + 16, left : left + 16] = 1
            masks[row, 0] = IGNORE
        return pixels, masks

    def mask(self, position: int) -> np.ndarray:
        masks = self[torch.tensor([position])][1][0].numpy()
        return np.kron(masks, np.ones((2, 2), np.uint8))


@dataclass(frozen=True)
class Truth:
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


class Boxes(Squares):
    def sample(self, position: int) -> tuple[torch.Tensor, Truth]:
        top, left = _corner(self.seeds[position])
        boxes = np.array([[left, top, left + 16, top + 16], [0, 0, 4, 4]], dtype=np.float64)
        return self[torch.tensor([position])][0][0], Truth(boxes, np.array([1, 1]), np.array([False, True]))


def _bench(n_classes: int, size: int = SIDE, name: str = "test_resnet") -> DenseBench:
    def backbone() -> nn.Module:
        torch.manual_seed(3)
        return backbone_of(name)

    return DenseBench(backbone, n_classes, size, HALVES, HALVES)


def _ended(steps: Generator[Any, None, Scores]) -> tuple[list[Any], Scores]:
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return seen, end.value


def test_segmentation_learns_squares_and_repeats_itself() -> None:
    params = DownstreamParams(epochs=12, batch_size=8, lrs=(0.1,), stages=4)
    task = segmentation_task("squares", _bench(2), Squares(0, 16), Squares(16, 4), Squares(20, 4), params)
    assert (task.name, task.metric, task.task) == ("squares", "miou", "segmentation")
    seen, scores = _ended(task.fine_tune(0.1, 0))
    assert len(seen) == 12 * 2 + 2
    assert min(scores.validation, scores.test) > 0.7
    assert _ended(task.fine_tune(0.1, 0))[1] == scores
    assert _ended(task.fine_tune(0.1, 1))[1] != scores


def test_masks_are_mirrored_with_their_images() -> None:
    batches = MaskBatches(Squares(0, 12), 5, seed=1)
    assert batches.steps_per_epoch == 3
    epoch = list(batches.epoch(0))
    assert sorted(torch.cat([batch.indices for batch in epoch]).tolist()) == list(range(12))
    originals = Squares(0, 12)[torch.arange(12)][1]
    flipped = 0
    for batch in epoch:
        bright, labelled = batch.view[:, 0] > 0.5, batch.labels == 1
        assert torch.equal(bright, labelled)
        flipped += sum(not torch.equal(a, b) for a, b in zip(batch.labels, originals[batch.indices], strict=True))
    assert 0 < flipped < 12
    assert torch.equal(next(iter(batches.epoch(0, start=2))).view, epoch[2].view)


def test_boxes_are_mirrored_with_their_images() -> None:
    flipped = 0
    for images, targets in BoxBatches(Boxes(0, 12), 5, seed=1, epoch=0):
        for image, target in zip(images, targets, strict=True):
            ((x0, y0, x1, y1),) = target["boxes"].long().tolist()
            assert target["labels"].tolist() == [1], "the crowd is no target"
            inside = torch.zeros(SIDE, SIDE)
            inside[y0:y1, x0:x1] = 1
            assert torch.equal(image[0], inside)
            flipped += (x0, y0) not in [_corner(seed)[::-1] for seed in range(12)]
    assert flipped > 0


def _operators() -> None:
    try:
        torchvision_operators()
    except MissingExtra as error:
        pytest.skip(str(error))


FEW = {"rpn_pre_nms_top_n_train": 100, "rpn_post_nms_top_n_train": 50, "rpn_pre_nms_top_n_test": 100}
FEW |= {"rpn_post_nms_top_n_test": 30, "rpn_batch_size_per_image": 64, "box_batch_size_per_image": 32, "width": 32}


def test_detection_is_a_downstream_set_with_three_scores() -> None:
    _operators()
    params = DownstreamParams(epochs=1, batch_size=4, lrs=(0.02,))
    parts = Boxes(0, 8), Boxes(8, 2), Boxes(10, 2)
    task = detection_task("boxes", _bench(1, size=64), *parts, params, "ap50", **FEW)
    steps = DownstreamRun("net", [task], params).steps()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result = end.value
            break
    (found,) = result.sets
    assert (found.task, found.metric, found.others.keys()) == ("detection", "ap50", {"ap", "ap50", "ap75"})
    assert found.others["ap50"] == found.test
    assert found.others["ap"].mean <= found.others["ap50"].mean
    assert result.average == found.test


def test_detection_finds_squares() -> None:
    _operators()
    params = DownstreamParams(epochs=14, batch_size=4, lrs=(0.04,))
    squares = Boxes(0, 8)
    task = detection_task("boxes", _bench(1, size=64), squares, squares, squares, params, **FEW)
    scores = _ended(task.fine_tune(0.04, 0))[1]
    assert scores.others["ap50"] > 0.7
    assert scores.validation == scores.test == scores.others["ap"]


def test_what_a_student_cannot_do_is_said_before_anything_is_trained() -> None:
    parts = Squares(0, 4), Squares(4, 2), Squares(6, 2)
    with pytest.raises(BadInput, match="maps of this backbone"):
        segmentation_task("s", _bench(2), *parts, DownstreamParams(stages=9))
    with pytest.raises(BadInput, match=r"downstream_params.size.*a size that this student takes"):
        segmentation_task("s", _bench(2, size=40, name="test_vit"), *parts, DownstreamParams())
