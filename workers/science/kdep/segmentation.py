"""Semantic segmentation downstream: any timm `features_only` backbone with a light head, and mIoU.

The head is small on purpose, so that the figure speaks of the backbone: every stage is brought to the same width by a
1×1 convolution, enlarged to the finest of them, added up, mixed by one 3×3 convolution and classified; logits are
enlarged to the image. KDEP, He et al., CVPR 2022, §4.3 (Cityscapes, VOC12, ADE20K).

B images of H × W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.domain.errors import BadInput
from workers.science.batch import Batch
from workers.science.training import Objective, Terms

IGNORE = 255
"""A pixel with this label counts nowhere, as in VOC and Cityscapes."""


class SegmentationModel(nn.Module):
    """A backbone's last `stages` maps, summed at `width` channels, to logits of every pixel.

    Args:
        backbone: A timm model made with `features_only=True`.
        stages: How many of its maps are used, from the coarsest.
    """

    def __init__(self, backbone: nn.Module, n_classes: int, *, width: int = 64, stages: int = 3) -> None:
        super().__init__()
        channels = backbone.feature_info.channels()  # type: ignore[union-attr, operator]
        if not 1 <= stages <= len(channels):
            raise BadInput("stages", stages, f"expected 1 to {len(channels)}, the maps of this backbone")
        self.backbone, self.stages = backbone, stages
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels[-stages:])
        self.mix = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.classify = nn.Conv2d(width, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W], normalised → logits [B, C, H, W]."""
        maps = self.backbone(x)[-self.stages :]
        size = maps[0].shape[-2:]
        parts = [
            F.interpolate(lateral(feature), size=size, mode="bilinear", align_corners=False)
            for lateral, feature in zip(self.lateral, maps, strict=True)
        ]
        logits = self.classify(self.mix(torch.stack(parts).sum(0)))
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def backbone_of(architecture: str, weights: Mapping[str, Tensor] | None = None, **kwargs: Any) -> nn.Module:
    """A `features_only` backbone with a student's weights; the classifier's weights are left out.

    Raises:
        BadInput: timm has no feature maps for this architecture, or the weights are of another one.
    """
    try:
        backbone: nn.Module = timm.create_model(architecture, features_only=True, **kwargs)
    except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
        raise BadInput("architecture", architecture, f"expected one with feature maps in timm ({error})") from error
    if weights is not None:
        source = timm.create_model(architecture, num_classes=0, **kwargs)
        known = source.state_dict()
        offered = {name: tensor for name, tensor in weights.items() if name in known}
        try:
            source.load_state_dict(offered, strict=False)
            missing = [name for name in known if name not in offered]
        except RuntimeError as error:
            raise BadInput("weights", architecture, f"expected weights of this architecture ({error})") from error
        if missing:
            raise BadInput("weights", missing[0], f"expected weights of {architecture}; this one is missing")
        _copy_weights(source, backbone)
    return backbone


def _copy_weights(source: nn.Module, backbone: nn.Module) -> None:
    """By name; a flattened backbone (`layer1` of a list) writes the first dot of a name as an underscore."""
    known = source.state_dict()
    found: dict[str, Tensor] = {}
    for name in backbone.state_dict():
        plain = name.removeprefix("model.")
        if plain in known:
            found[name] = known[plain]
            continue
        matches = [key for key in known if key.replace(".", "_") == plain.replace(".", "_")]
        if len(matches) != 1:
            raise BadInput("architecture", type(source).__name__, f"no weight for the backbone's {name}")
        found[name] = known[matches[0]]
    backbone.load_state_dict(found, strict=True)


class SegmentationObjective(Objective):
    """Mean cross-entropy over the pixels of a batch that are not ignored; labels are maps [B, H, W].

    Args:
        mean, std: What the backbone normalises images with.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(list(mean)).reshape(1, -1, 1, 1)
        self.std = torch.tensor(list(std)).reshape(1, -1, 1, 1)

    def to(self, device: torch.device) -> None:
        self.mean, self.std = self.mean.to(device), self.std.to(device)

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        if batch.labels is None or batch.labels.ndim != 3:
            raise BadInput("labels", None, "expected a label map [H, W] for each image")
        labels = batch.labels.long()
        logits = student((batch.view - self.mean) / self.std).float()
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return {"loss": total / (labels != IGNORE).sum().clamp_min(1)}


def confusion(top1: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], n_classes: int) -> NDArray[np.int64]:
    """Pixels by [label, prediction], those labelled `IGNORE` left out; confusions of batches add up.

    Raises:
        BadInput: a label or prediction that is no class.
    """
    counted = labels != IGNORE
    y, p = labels[counted].astype(np.int64), top1[counted].astype(np.int64)
    if y.size and (y.min() < 0 or y.max() >= n_classes or p.min() < 0 or p.max() >= n_classes):
        raise BadInput("labels", int(y.max()), f"expected classes 0 to {n_classes - 1}, or {IGNORE} to ignore a pixel")
    counts: NDArray[np.int64] = np.bincount(y * n_classes + p, minlength=n_classes**2).reshape(n_classes, n_classes)
    return counts


def mean_iou(counts: NDArray[np.int64]) -> float:
    """Mean over classes of intersection / union; classes that occur in neither labels nor predictions are left out."""
    hits = np.diag(counts).astype(np.float64)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hits
    present = union > 0
    if not present.any():
        raise BadInput("labels", "all ignored", "expected at least one labelled pixel")
    return float((hits[present] / union[present]).mean())
