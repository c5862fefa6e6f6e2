"""Which model has which sample right, for single labels, sets of labels and samples without one.

M models, N samples, K labels of the sample with most. ReaL (Beyer et al., arXiv:2006.07159) gives an image a set of
labels, sometimes an empty one; a prediction is right if it is in the set, and an image without a label is compared by
nobody: −1, or a row of −1, is left out of every count, and the number compared is reported instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.domain.errors import BadInput

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Labels = ArrayLike | Sequence[Iterable[int]]


def pad_label_sets(label_sets: Iterable[Iterable[int]]) -> NDArray[np.int32]:
    """Multi-labels as a matrix [N, K], padded with −1; a sample without labels is a row of −1.

    Beyer et al., arXiv:2006.07159 (ReaL): a prediction is right if it is in the sample's set.
    """
    rows = [tuple(row) for row in label_sets]
    padded = np.full((len(rows), max((len(row) for row in rows), default=0) or 1), -1, dtype=np.int32)
    for i, row in enumerate(rows):
        if any(label < 0 for label in row):
            raise BadInput("labels", list(row), f"sample {i}: class indices must not be negative; leave the set empty")
        padded[i, : len(row)] = row
    return padded


def as_labels(labels: Labels) -> NDArray[Any]:
    """Labels as an integer array: [N], or [N, K] padded with −1 when samples have sets of labels."""
    if isinstance(labels, Sequence) and any(isinstance(x, Iterable) and not isinstance(x, str) for x in labels):
        return pad_label_sets(labels)  # type: ignore[arg-type]
    array = np.asarray(labels)
    if array.size == 0:
        raise BadInput("labels", array.shape, "at least one sample is needed")
    if not np.issubdtype(array.dtype, np.integer) or array.ndim not in (1, 2):
        raise BadInput("labels", f"{array.dtype} {array.shape}", "class indices must be integers, [N] or padded [N, K]")
    if array.min() < -1:
        raise BadInput("labels", int(array.min()), "class indices must be 0 or more, -1 means: no label")
    return array


def has_label(labels: Labels) -> Bools:
    """Which samples take part, [N]: those with a label (−1, or an empty set, is left out of every count)."""
    array = as_labels(labels)
    return np.asarray(array >= 0 if array.ndim == 1 else (array >= 0).any(axis=1))


def class_of(labels: Labels, preferred: ArrayLike | None = None) -> Ints:
    """The one class a sample is counted under, [N]; −1 without a label.

    Of a set, `preferred` (the data set's own label) where the set contains it, else the first. Reduces to `labels` when
    every sample has one.
    """
    array = as_labels(labels)
    if array.ndim == 1:
        return array.astype(np.int64)
    # The first entry of a row is its first label: sets are padded at the end.
    first = array[:, 0].astype(np.int64)
    if preferred is None:
        return first
    own = np.asarray(preferred, dtype=np.int64)
    if own.shape != first.shape:
        raise BadInput("preferred", own.shape, f"one class per sample, {first.shape}, is needed")
    return np.where(((array == own[:, None]) & (array >= 0)).any(axis=1), own, first)


def correctness(top1: ArrayLike, labels: Labels) -> Bools:
    """Which model has which sample right, [M, N].

    A sample without a label, and a prediction outside the label space (negative), is right for nobody.

    Args:
        top1: Predicted class of every model, [M, N] or [N] of one model (gives [1, N]).
        labels: True class [N] (−1: none), or sets of classes, as a list of lists or padded [N, K].

    Raises:
        BadInput: when the numbers of samples differ or the values are not class indices.
    """
    predicted = np.atleast_2d(np.asarray(top1))
    truth = as_labels(labels)
    if predicted.ndim != 2 or not np.issubdtype(predicted.dtype, np.integer):
        raise BadInput("top1", f"{predicted.dtype} {predicted.shape}", "class indices must be integers, [M, N]")
    if predicted.shape[1] != len(truth):
        raise BadInput(
            "top1", predicted.shape, f"one prediction per sample is needed, {len(truth)} samples have labels"
        )
    sets = truth[:, None] if truth.ndim == 1 else truth
    columns = [(np.ascontiguousarray(column, dtype=np.int64), column >= 0) for column in sets.T]
    right = np.zeros(predicted.shape, dtype=np.bool_)
    for row, out in zip(predicted, right, strict=True):
        wide = row.astype(np.int64)
        for column, present in columns:
            out |= (wide == column) & present
    return right
