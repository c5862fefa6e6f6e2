"""Labelled image collections, their splits, fingerprints and class-stratified subsets."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pydantic import Field

from backend.domain.errors import BadInput
from backend.domain.records import Name, Record, Seed, Text, content_hash

DatasetSource = Literal["digits", "imagefolder", "npz", "huggingface", "torchvision", "webdataset", "parquet"]


class DatasetSpec(Record):
    """A data set as a user describes it; `register` reads it once and turns it into a `Dataset`.

    `location` is a folder, a zip of a folder, an npz or Parquet file, or a hub name; `digits` needs none.
    `label_space` maps folder names (wnids, class names) to the indices of a known space, such as imagenet-1k.
    """

    name: Name
    source: DatasetSource
    location: Text | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    label_space: Name | None = None


class Split(Record):
    """One part of a data set. The fingerprint is of sample ids, labels and file contents' sizes or bytes."""

    n_samples: int = Field(ge=0)
    fingerprint: str


class Dataset(Record):
    """A data set that was read once. `external` ones know labels only (they came with imported predictions)."""

    id: UUID
    name: Name
    source: DatasetSource | Literal["external"]
    location: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    label_space: str | None = None
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    created_at: datetime

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    def evaluation_split(self, wanted: str | None = None) -> str:
        """The split to look at: the one named, the only one, else val / validation, else test."""
        return choose_split(self, wanted, ("val", "validation", "test"))

    def training_split(self, wanted: str | None = None) -> str:
        """The split to learn from: the one named, the only one, else train / training."""
        return choose_split(self, wanted, ("train", "training"))


def choose_split(dataset: Dataset, wanted: str | None, preferred: tuple[str, ...]) -> str:
    known = sorted(dataset.splits)
    if wanted is not None:
        if wanted not in dataset.splits:
            raise BadInput("split", wanted, f"data set {dataset.name!r} has the splits {', '.join(known)}")
        return wanted
    if len(known) == 1:
        return known[0]
    for name in preferred:
        if name in dataset.splits:
            return name
    raise BadInput("split", None, f"name one of the splits of {dataset.name!r}: {', '.join(known)}")


class Subset(Record):
    """A seeded, class-stratified part of a split: `share` of each class, or `limit` samples in all; neither: all."""

    share: Annotated[float, Field(gt=0, le=1)] | None = None
    limit: Annotated[int, Field(ge=1, le=10**9)] | None = None
    seed: Seed = 0

    @property
    def key(self) -> str:
        return "all" if self.share is None and self.limit is None else content_hash(self)[:16]

    def indices(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sorted positions of the chosen samples.

        Every class keeps its share of the subset as nearly as whole samples allow (largest remainder, ties by class
        index), so a limit of N gives exactly min(N, len(labels)) samples.

        Args:
            labels: [N] class of each sample.
        """
        n = len(labels)
        wanted = n if self.limit is None else min(self.limit, n)
        if self.share is not None:
            wanted = min(wanted, max(1, round(self.share * n)))
        if wanted >= n:
            return np.arange(n, dtype=np.int64)
        rng = np.random.default_rng(self.seed)
        classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        exact = counts * (wanted / n)
        quota = np.floor(exact).astype(np.int64)
        leftover = np.argsort(-(exact - quota), kind="stable")[: wanted - int(quota.sum())]
        quota[leftover] += 1
        chosen = [rng.permutation(np.flatnonzero(inverse == c))[: quota[c]] for c in range(len(classes))]
        return np.sort(np.concatenate(chosen)).astype(np.int64)
