"""What pre-training is worth: fine-tuning on other data sets, as it is asked for and what it says.

KDEP, He et al., CVPR 2022, §4.1 and §4.3: classification (Caltech-256, DTD, CUB, CIFAR-100), semantic segmentation
(Cityscapes, VOC12, ADE20K; mIoU), detection (VOC0712, COCO; AP, AP50, AP75). Scores are fractions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from backend.domain.errors import BadInput
from backend.domain.records import Name, Record, Seed, Text

Task = Literal["classification", "segmentation", "detection"]
Metric = Literal["top1", "mean_per_class", "miou", "ap", "ap50", "ap75"]
METRICS: dict[Task, tuple[Metric, ...]] = {
    "classification": ("top1", "mean_per_class"),
    "segmentation": ("miou",),
    "detection": ("ap", "ap50", "ap75"),
}


class DownstreamParams(Record):
    """How a student is fine-tuned on each set.

    Short forms, for the command line: numbers joined by commas (`lrs="0.1,0.03"`), one learning rate alone, `lr` for
    `lrs`, and for `seeds` how many. `size`, `stages`: of segmentation and detection alone.
    """

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 50
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    lrs: Annotated[tuple[float, ...], Field(min_length=1, max_length=32)] = (0.1, 0.03, 0.01, 0.003)
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 5e-4
    seeds: Annotated[tuple[Seed, ...], Field(min_length=3, max_length=100)] = (0, 1, 2)
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    size: Annotated[int, Field(ge=16, le=4_096)] | None = Field(
        None, description="segmentation: side of the images; detection: their shorter side; default: the student's"
    )
    stages: Annotated[int, Field(ge=1, le=16)] = Field(
        3, description="segmentation, detection: feature maps of the backbone that are used, from the coarsest"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = dict(values)
        if "lr" in given:
            if "lrs" in given:
                raise ValueError("lr: give either lr or lrs")
            given["lrs"] = given.pop("lr")
        for name, kind in (("lrs", float), ("seeds", int)):
            value = given.get(name)
            if isinstance(value, str):
                given[name] = _numbers(name, value, kind)
        if isinstance(given.get("lrs"), (int, float)):
            given["lrs"] = [given["lrs"]]
        if isinstance(given.get("seeds"), int) and not isinstance(given["seeds"], bool):
            given["seeds"] = list(range(min(given["seeds"], 101)))
        return given

    @model_validator(mode="after")
    def _sane(self) -> DownstreamParams:
        if any(not (math.isfinite(lr) and 0 < lr <= 100) for lr in self.lrs) or len(set(self.lrs)) != len(self.lrs):
            raise ValueError("lrs: expected different learning rates above 0 and at most 100")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: a seed is named twice")
        return self


def _numbers(name: str, text: str, kind: type[float]) -> list[float]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name}: {text!r}: numbers joined by commas are expected") from None


class DownstreamSource(Record):
    """A data set to fine-tune on. Without a validation split, `validation_share` of the training images is held out
    (for classification, of each class).

    Classification: `dataset` is a catalogued data set. Segmentation and detection: `location` is a folder (of images
    and masks, or of images and COCO-style JSON; docs/kdep.md), `dataset` what it is called in tables. `zero_ignored`:
    the masks' 0 means unlabelled, and classes count from 1, as in ADE20K.

    Short forms: `NAME`, `segmentation:FOLDER`, `detection:FOLDER`.
    """

    dataset: Name
    task: Task = "classification"
    location: Text | None = None
    train_split: Name | None = None
    validation_split: Name | None = None
    test_split: Name | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    metric: Metric = "top1"
    zero_ignored: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, source: Any) -> Any:
        if isinstance(source, str):
            task, colon, location = source.partition(":")
            source = {"task": task, "location": location} if colon else {"dataset": source}
        if not isinstance(source, dict):
            return source
        given = dict(source)
        if not given.get("dataset") and isinstance(given.get("location"), str):
            last = re.split(r"[/\\]", given["location"].rstrip("/\\"))[-1]
            given["dataset"] = re.sub(r"[^A-Za-z0-9._-]+", "-", last)
        task = given.get("task", "classification")
        if given.get("metric") is None and task in METRICS:
            given["metric"] = METRICS[task][0]
        return given

    @model_validator(mode="after")
    def _fits(self) -> DownstreamSource:
        if self.metric not in METRICS[self.task]:
            raise ValueError(f"metric: {self.task} is judged by {' or '.join(METRICS[self.task])}")
        if (self.location is None) != (self.task == "classification"):
            what = "a catalogued data set and no location" if self.location else "a location, the folder of its images"
            raise ValueError(f"location: {self.task} takes {what}")
        if self.zero_ignored and self.task != "segmentation":
            raise ValueError("zero_ignored: of segmentation alone")
        return self


class Estimate(Record):
    """A mean over seeds with Student's t interval; null bounds with a single seed."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and Student's t interval; without bounds for a single value.

    Raises:
        BadInput: no values.
    """
    from scipy.special import stdtrit  # every web process imports these records; few of them need a quantile

    if not values:
        raise BadInput("values", [], "expected at least one score")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean=mean, low=None, high=None, values=tuple(values))
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * std / math.sqrt(n)
    return Estimate(mean=mean, low=mean - half, high=mean + half, values=tuple(values))


class DownstreamSet(Record):
    """Fine-tuning on one data set: the learning rate is the best on validation, the estimate is on test.

    `others`: further scores on test of the same fine-tunings (detection: ap, ap50 and ap75).
    """

    dataset: str
    task: Task = "classification"
    metric: Metric = "top1"
    lr: float
    validation: dict[str, float]
    test: Estimate
    others: dict[str, Estimate] = Field(default_factory=dict)


class DownstreamResult(Record):
    """A pre-trained student fine-tuned on several sets.

    `average` is over the sets of classification, seed by seed; over all sets where none of them is one.
    """

    model: str
    seeds: tuple[Seed, ...]
    sets: tuple[DownstreamSet, ...]
    average: Estimate
