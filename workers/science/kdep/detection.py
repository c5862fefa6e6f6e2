"""Object detection downstream: torchvision's Faster R-CNN on any timm backbone, and average precision by our own count.

AP as COCO counts it: detections by falling score, each matched to the best free box of its image and class at the
threshold, precision made monotone and read at 101 recalls; AP is the mean over thresholds .50 … .95, AP50 and AP75 at
one. Crowd regions are ignored: a detection in one counts neither way. KDEP, He et al., CVPR 2022, §4.3 (VOC0712,
COCO).

Boxes are (x0, y0, x1, y1) in pixels. G ground-truth boxes, P detections, C classes (1 … C; 0 is background).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.domain.errors import BadInput, MissingExtra
from backend.domain.progress import Progress

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
_ANCHOR = 4
"""Side of a level's larger anchors in strides of that level: 32 pixels at stride 8, as in COCO's models."""
_RECALLS = np.linspace(0, 1, 101)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image: ground truth (scores None) or detections.

    Shape:
        boxes: [n, 4]; labels: [n]; scores: [n]; crowd: [n] flags of ground truth.
    """

    boxes: Floats
    labels: NDArray[np.int64]
    scores: Floats | None = None
    crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def of_class(self, label: int) -> Boxes:
        mine = self.labels == label
        crowd = self.crowd[mine] if len(self.crowd) == len(self.labels) else np.zeros(int(mine.sum()), dtype=bool)
        return Boxes(self.boxes[mine], self.labels[mine], None if self.scores is None else self.scores[mine], crowd)


@dataclass(frozen=True)
class AveragePrecision:
    """Fractions; the mean over classes that have ground truth."""

    ap: float
    ap50: float
    ap75: float
    n_classes: int


def box_iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every pair: [n, 4], [m, 4] → [n, m]; empty boxes have none."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    area_a, area_b = (np.clip(x[:, 2:] - x[:, :2], 0, None).prod(axis=1) for x in (a, b))
    union = area_a[:, None] + area_b[None, :] - intersection
    shares: Floats = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return shares


def average_precision(truth: Sequence[Boxes], detections: Sequence[Boxes], *, most: int = 100) -> AveragePrecision:
    """AP, AP50 and AP75 over images; at most `most` detections of each image and class are looked at.

    Raises:
        BadInput: another number of images, detections without scores, or no ground truth at all.
    """
    if len(truth) != len(detections):
        raise BadInput("detections", len(detections), f"expected those of {len(truth)} images")
    if any(found.scores is None for found in detections):
        raise BadInput("detections", "no scores", "expected a score for each detection")
    labels = sorted({int(label) for image in truth for label in image.labels[~_crowd(image)]})
    if not labels:
        raise BadInput("truth", "no boxes", "expected at least one box in the evaluation set")
    table = np.array([_class_precisions(label, truth, detections, most) for label in labels])
    means = table.mean(axis=0)
    at = {threshold: float(value) for threshold, value in zip(THRESHOLDS, means, strict=True)}
    return AveragePrecision(float(means.mean()), at[0.5], at[0.75], len(labels))


def _crowd(image: Boxes) -> NDArray[np.bool_]:
    return image.crowd if len(image.crowd) == len(image.labels) else np.zeros(len(image.labels), dtype=bool)


def _class_precisions(label: int, truth: Sequence[Boxes], detections: Sequence[Boxes], most: int) -> list[float]:
    scores: list[Floats] = []
    hits: list[NDArray[np.int8]] = []  # [thresholds, detections]: 1 right, 0 wrong, −1 ignored
    n_boxes = 0
    for image, found in zip(truth, detections, strict=True):
        mine, theirs = image.of_class(label), found.of_class(label)
        n_boxes += int((~mine.crowd).sum())
        assert theirs.scores is not None
        order = np.argsort(-theirs.scores, kind="stable")[:most]
        scores.append(theirs.scores[order])
        hits.append(_match(theirs.boxes[order], mine))
    all_scores, all_hits = np.concatenate(scores), np.concatenate(hits, axis=1)
    order = np.argsort(-all_scores, kind="stable")
    return [_interpolated(all_hits[k, order], n_boxes) for k in range(len(THRESHOLDS))]


def _match(boxes: Floats, truth: Boxes) -> NDArray[np.int8]:
    """Each detection, best first, takes the free box it overlaps most; crowds take any number."""
    matched = np.zeros((len(THRESHOLDS), len(boxes)), dtype=np.int8)
    if not len(boxes) or not len(truth.boxes):
        return matched
    overlap = box_iou(boxes, truth.boxes)
    if truth.crowd.any():  # of a crowd, the share of the detection that lies inside counts
        inside = _share_inside(boxes, truth.boxes[truth.crowd])
        overlap[:, truth.crowd] = inside
    for k, threshold in enumerate(THRESHOLDS):
        free = ~truth.crowd
        for i in range(len(boxes)):
            candidates = np.where(free, overlap[i], -1.0)
            best = int(candidates.argmax())
            if candidates[best] >= threshold:
                free = free & (np.arange(len(free)) != best)
                matched[k, i] = 1
            elif truth.crowd.any() and overlap[i, truth.crowd].max() >= threshold:
                matched[k, i] = -1
    return matched


def _share_inside(boxes: Floats, regions: Floats) -> Floats:
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    area = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)[:, None]
    shares: Floats = np.divide(intersection, area, out=np.zeros_like(intersection), where=area > 0)
    return shares


def _interpolated(hits: NDArray[np.int8], n_boxes: int) -> float:
    """Area under the monotone precision-recall curve at 101 recalls."""
    counted = hits[hits >= 0]
    right = np.cumsum(counted == 1)
    if n_boxes == 0 or not len(counted):
        return 0.0
    recall = right / n_boxes
    precision = right / np.arange(1, len(counted) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    index = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.where(index < len(precision), precision[np.minimum(index, len(precision) - 1)], 0.0).mean())


def torchvision_operators() -> Any:
    """torchvision's detection package, where its compiled operators load.

    Raises:
        MissingExtra: torchvision is missing, or was built for another torch.
    """
    try:
        import torchvision
        from torchvision.models import detection

        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (ImportError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise MissingExtra(f"detection (torchvision with compiled operators: {error})", "workers") from error
    return detection


class _Pyramid(nn.Module):
    """A `features_only` backbone and a feature pyramid over its last maps: {"0": [B, width, H, W], …}."""

    def __init__(self, backbone: nn.Module, stages: int, width: int) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        channels = backbone.feature_info.channels()[-stages:]  # type: ignore[union-attr, operator]
        self.backbone, self.stages, self.out_channels = backbone, stages, width
        self.pyramid = FeaturePyramidNetwork(channels, width, extra_blocks=LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(x)[-self.stages :]
        pyramid: dict[str, Tensor] = self.pyramid(OrderedDict((str(i), m) for i, m in enumerate(maps)))
        return pyramid


def build_detector(
    backbone: nn.Module,
    n_classes: int,
    *,
    side: int = 512,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    stages: int = 3,
    width: int = 128,
    **options: Any,
) -> nn.Module:
    """Faster R-CNN with a feature pyramid on a timm `features_only` backbone; anchors of 2.8 and 4 strides a level.

    Args:
        n_classes: C, without the background.
        side: The shorter side that images are scaled to; also the longest that is allowed, doubled.
        options: Further arguments of torchvision's FasterRCNN.

    Raises:
        MissingExtra: torchvision's compiled operators do not load.
    """
    detection = torchvision_operators()
    strides = backbone.feature_info.reduction()[-stages:]  # type: ignore[union-attr, operator]
    sizes = tuple((round(_ANCHOR * stride / 2**0.5), _ANCHOR * stride) for stride in (*strides, 2 * strides[-1]))
    anchors = detection.rpn.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    detector: nn.Module = detection.FasterRCNN(
        _Pyramid(backbone, stages, width),
        num_classes=n_classes + 1,
        rpn_anchor_generator=anchors,
        min_size=side,
        max_size=2 * side,
        image_mean=list(mean),
        image_std=list(std),
        **options,
    )
    return detector


DetectionBatch = tuple[Sequence[Tensor], Sequence[Mapping[str, Tensor]]]
"""Images [3, H, W] in [0, 1], and for each its {"boxes": [n, 4], "labels": [n]}, labels from 1."""


def fit_detector(
    detector: nn.Module,
    epochs: Sequence[Iterable[DetectionBatch]],
    steps_per_epoch: int,
    *,
    lr: float = 0.02,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup_steps: int = 100,
    grad_clip: float = 10.0,
    seed: int = 0,
    device: str = "cpu",
) -> Generator[Progress, None, None]:
    """Train on the sum of the detector's losses: SGD, linear warm-up, then × .1 after two thirds and eight ninths.

    Each step seeds torch from (seed, step), so the boxes that are sampled are the same in every run.
    """
    detector.to(device).train()
    trainable = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr, momentum=momentum, weight_decay=weight_decay)
    total, step = len(epochs) * steps_per_epoch, 0
    for number, batches in enumerate(epochs, start=1):
        for images, targets in batches:
            factor = min(1.0, (step + 1) / max(1, min(warmup_steps, total // 3)))
            factor *= 0.1 ** sum(step >= total * share for share in (2 / 3, 8 / 9))
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
                placed = [{name: value.to(device) for name, value in target.items()} for target in targets]
                losses = detector([image.to(device) for image in images], placed)
                loss = torch.stack(list(losses.values())).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(trainable, grad_clip)
                optimizer.step()
            step += 1
            values = {name: float(value.detach()) for name, value in losses.items()}
            yield Progress(step=step, total=total, epoch=number, metrics={"loss": float(loss.detach()), **values})


@torch.no_grad()
def detect(detector: nn.Module, images: Iterable[Tensor], device: str = "cpu") -> list[Boxes]:
    """The detections of each image [3, H, W] in [0, 1], in its own pixels."""
    detector.eval()
    found = []
    for image in images:
        output = detector([image.to(device)])[0]
        found.append(
            Boxes(
                output["boxes"].cpu().double().numpy(),
                output["labels"].cpu().numpy().astype(np.int64),
                output["scores"].cpu().double().numpy(),
            )
        )
    return found
