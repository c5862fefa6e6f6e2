"""Segmentation and detection as downstream tasks: a student's backbone with a fresh head, fine-tuned and measured.

KDEP, He et al., CVPR 2022, §4.3. All weights are trained, images are mirrored at random; learning rates are chosen on
validation, as for classification. mIoU is counted over the pixels of the masks as they are, whatever size was trained
at; AP as COCO counts it.

B images, S × S pixels of a training view, H × W of an image, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.domain.downstream import DownstreamParams, Metric
from backend.domain.errors import BadInput
from backend.domain.methods import TrainingParams
from backend.domain.progress import Progress
from workers.science.augment import as_images, uniforms
from workers.science.batch import Batch
from workers.science.kdep.detection import (
    AveragePrecision,
    Boxes,
    DetectionBatch,
    average_precision,
    build_detector,
    detect,
    fit_detector,
    torchvision_operators,
)
from workers.science.kdep.downstream import DownstreamTask, Scores
from workers.science.kdep.segmentation import SegmentationModel, SegmentationObjective, confusion, mean_iou
from workers.science.order import batch_bounds, epoch_order
from workers.science.training import Training, fit

EVALUATED_AT_ONCE = 32


class Masked(Protocol):
    """Images with masks by position."""

    def __len__(self) -> int: ...
    def __getitem__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, S, S] uint8 and masks [B, S, S] uint8."""
        ...

    def mask(self, position: int) -> NDArray[np.uint8]:
        """The whole mask [H, W]."""
        ...


class ImageTruth(Protocol):
    """Ground truth of one image: boxes [n, 4], labels [n] from 1, crowd flags [n]."""

    @property
    def boxes(self) -> NDArray[np.float64]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def crowd(self) -> NDArray[np.bool_]: ...


class Boxed(Protocol):
    """Images with boxes by position."""

    def __len__(self) -> int: ...
    def sample(self, position: int) -> tuple[Tensor, ImageTruth]:
        """Image [3, H, W] uint8 and its boxes."""
        ...


@dataclass(frozen=True)
class DenseBench:
    """What a fine-tuning starts from.

    Args:
        backbone: A fresh `features_only` copy of the student, with the weights it has when this is called.
        size: S; for detection the shorter side.
        mean, std: What the backbone normalises images with.
    """

    backbone: Callable[[], nn.Module]
    n_classes: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str = "cpu"


class MaskBatches:
    """Epochs over masked images, mirrored at random; a pure function of (seed, epoch)."""

    def __init__(self, images: Masked, batch_size: int, seed: int) -> None:
        self.images, self.seed = images, seed
        self._bounds = batch_bounds(len(images), batch_size)
        self.steps_per_epoch = len(self._bounds)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        order = torch.from_numpy(epoch_order(len(self.images), seed=self.seed, epoch=epoch))
        for first, last in self._bounds[start:]:
            positions = order[first:last]
            pixels, masks = self.images[positions]
            mirrored = uniforms(self.seed, epoch, positions, 1)[:, 0] < 0.5
            view = torch.where(mirrored.reshape(-1, 1, 1, 1), pixels.flip(3), pixels)
            labels = torch.where(mirrored.reshape(-1, 1, 1), masks.flip(2), masks)
            yield Batch(as_images(view), labels.long(), positions)


def segmentation_task(
    name: str, bench: DenseBench, train: Masked, validation: Masked, test: Masked, params: DownstreamParams
) -> DownstreamTask:
    """Fine-tune a `SegmentationModel` on masks: SGD, cosine, all weights.

    Raises:
        BadInput: the backbone has no such maps, or does not take images of this size.
    """
    _probe(SegmentationModel(bench.backbone(), bench.n_classes, stages=params.stages), bench)

    def fine_tune(lr: float, seed: int) -> Generator[Progress, None, Scores]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SegmentationModel(bench.backbone(), bench.n_classes, stages=params.stages)
        settings = TrainingParams(
            epochs=params.epochs,
            batch_size=params.batch_size,
            lr=lr,
            momentum=params.momentum,
            weight_decay=params.weight_decay,
            schedule="cosine",
            seed=seed,
        )
        objective = SegmentationObjective(bench.mean, bench.std)
        batches = MaskBatches(train, params.batch_size, seed)
        yield from fit(Training(objective, model, batches, settings, device=bench.device))
        chosen = yield from _measured_iou(model, objective, validation, bench)
        return Scores(chosen, (yield from _measured_iou(model, objective, test, bench)))

    return DownstreamTask(name, fine_tune, "miou", "segmentation")


def _measured_iou(
    model: nn.Module, objective: SegmentationObjective, images: Masked, bench: DenseBench
) -> Generator[Progress, None, float]:
    """mIoU over the whole masks: logits are enlarged to them."""
    model.eval()
    counts = np.zeros((bench.n_classes, bench.n_classes), dtype=np.int64)
    for start in range(0, len(images), EVALUATED_AT_ONCE):
        positions = torch.arange(start, min(start + EVALUATED_AT_ONCE, len(images)))
        with torch.no_grad():
            view = as_images(images[positions][0]).to(bench.device)
            logits = model((view - objective.mean) / objective.std).float()
            for position, one in zip(positions.tolist(), logits, strict=True):
                truth = images.mask(position)
                whole = F.interpolate(one[None], size=truth.shape, mode="bilinear", align_corners=False)
                counts += confusion(whole[0].argmax(0).cpu().numpy(), truth, bench.n_classes)
        yield Progress(step=int(positions[-1]) + 1, total=len(images), unit="images")
    return mean_iou(counts)


@dataclass(frozen=True)
class BoxBatches:
    """One epoch over boxed images, mirrored at random; torchvision's lists of images and targets."""

    images: Boxed
    batch_size: int
    seed: int
    epoch: int

    def __iter__(self) -> Iterator[DetectionBatch]:
        order = epoch_order(len(self.images), seed=self.seed, epoch=self.epoch)
        for first, last in batch_bounds(len(self.images), self.batch_size):
            positions = torch.from_numpy(order[first:last])
            mirrored = uniforms(self.seed, self.epoch, positions, 1)[:, 0] < 0.5
            pairs = [self._one(int(i), bool(flip)) for i, flip in zip(positions, mirrored, strict=True)]
            yield [image for image, _ in pairs], [target for _, target in pairs]

    def _one(self, position: int, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
        pixels, truth = self.images.sample(position)
        kept = ~truth.crowd
        boxes = torch.from_numpy(truth.boxes[kept]).float().reshape(-1, 4)
        image = pixels.float() / 255
        if flip:
            image, width = image.flip(2), image.shape[2]
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        return image, {"boxes": boxes, "labels": torch.from_numpy(truth.labels[kept])}


def detection_task(
    name: str,
    bench: DenseBench,
    train: Boxed,
    validation: Boxed,
    test: Boxed,
    params: DownstreamParams,
    metric: Metric = "ap",
    **options: Any,
) -> DownstreamTask:
    """Fine-tune Faster R-CNN on boxes; `metric` chooses the learning rate, AP, AP50 and AP75 are all reported.

    Args:
        options: Of torchvision's FasterRCNN.

    Raises:
        MissingExtra: torchvision's compiled operators do not load.
        BadInput: the backbone has no such maps, or does not take images of this size.
    """
    torchvision_operators()
    _probe(SegmentationModel(bench.backbone(), bench.n_classes, stages=params.stages), bench)
    steps = len(batch_bounds(len(train), params.batch_size))

    def fine_tune(lr: float, seed: int) -> Generator[Progress, None, Scores]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            detector = build_detector(
                bench.backbone(),
                bench.n_classes,
                side=bench.size,
                mean=bench.mean,
                std=bench.std,
                stages=params.stages,
                **options,
            )
        yield from fit_detector(
            detector,
            [BoxBatches(train, params.batch_size, seed, epoch) for epoch in range(params.epochs)],
            steps,
            lr=lr,
            momentum=params.momentum,
            weight_decay=params.weight_decay,
            seed=seed,
            device=bench.device,
        )
        chosen = yield from _measured_precision(detector, validation, bench.device)
        tested = yield from _measured_precision(detector, test, bench.device)
        found = {"ap": tested.ap, "ap50": tested.ap50, "ap75": tested.ap75}
        return Scores(float(getattr(chosen, metric)), found[metric], found)

    return DownstreamTask(name, fine_tune, metric, "detection")


def _measured_precision(detector: nn.Module, images: Boxed, device: str) -> Generator[Progress, None, AveragePrecision]:
    truth, found = [], []
    for position in range(len(images)):
        pixels, boxes = images.sample(position)
        truth.append(Boxes(boxes.boxes, boxes.labels, crowd=boxes.crowd))
        found += detect(detector, [pixels.float() / 255], device)
        yield Progress(step=position + 1, total=len(images), unit="images")
    return average_precision(truth, found)


@torch.no_grad()
def _probe(model: nn.Module, bench: DenseBench) -> None:
    """Whether the backbone takes images of this size, found before anything is trained."""
    try:
        logits = model.eval()(torch.zeros(1, len(bench.mean), bench.size, bench.size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput("downstream_params.size", bench.size, f"a size that this student takes ({reason})") from None
    assert logits.shape == (1, bench.n_classes, bench.size, bench.size)
