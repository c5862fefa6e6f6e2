"""What one model gets right and another wrong: Roth et al., arXiv:2310.17653, §3.  Pure counting on whole matrices.

M models, N samples, C classes; T teachers, S students (both run over all M models, so [T, S] is [M, M]).

A positive flip is a sample the teacher has right and the student wrong; a negative flip the other way round (elsewhere:
the negative-flip rate, NFR, of replacing the teacher by the student is our positive one; see `ALIASES`). With the
correctness matrix K [M, N] of 0/1 every pair of a zoo follows from one matrix product, `right_both = K Kᵀ`:
positive[t, s] = Σ K[t] − right_both[t, s]. The entropy of a pair's flips over the classes needs the count of every
(pair, class): `flip_sums` in `backend.domain.flip_entropy` does that on packed bits.

Counts are exact integers; rates are fractions of the samples compared, never percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.domain.correctness import as_labels, class_of, correctness, has_label, pad_label_sets
from backend.domain.errors import BadInput
from backend.domain.flip_entropy import entropy_from_sums, flip_sums, matrix_product
from backend.domain.intervals import mcnemar_p_value, newcombe_paired_interval, wilson_interval

__all__ = [
    "ALIASES",
    "ClassCounts",
    "Flips",
    "PairTable",
    "TransferCounts",
    "class_flips",
    "class_of",
    "correctness",
    "count_flips",
    "count_transfer",
    "flip_entropy",
    "flip_pairs",
    "has_label",
    "pad_label_sets",
    "top_classes",
]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ALIASES = {
    "positive_flip_rate": (
        "share of samples the teacher has right and the student wrong; "
        "the negative-flip rate (NFR) of replacing the teacher by the student"
    ),
    "negative_flip_rate": (
        "share of samples the teacher has wrong and the student right; "
        "the negative-flip rate (NFR, backward compatibility) of replacing the student by the teacher"
    ),
    "knowledge_gain": "share of samples a transfer made right: the positive-flip rate of after over before",
    "knowledge_loss": "share of samples a transfer made wrong: the negative-flip rate (NFR) of the update",
}


@dataclass(frozen=True, eq=False)
class Flips:
    """Counts of every ordered pair; axis 0 is the teacher, axis 1 the student.

    `right` [M] counts what each model has right among its own compared samples; `right_both`, `positive` and
    `n_samples` [T, S] count on the samples that both models were compared on.
    """

    n_samples: Ints
    right: Ints
    right_both: Ints
    positive: Ints

    @property
    def negative(self) -> Ints:
        """Teacher wrong and student right, [T, S]: the positive flips of the reversed pair."""
        return self.positive.T

    @property
    def wrong_both(self) -> Ints:
        return self.n_samples - self.right_both - self.positive - self.negative


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Flips of one pair by true class, each [C]."""

    n_samples: Ints
    positive: Ints
    negative: Ints

    @property
    def positive_share(self) -> Floats:
        """Positive flips as a share of that class's samples; 0 where the class has none."""
        return self.positive / np.maximum(self.n_samples, 1)

    def descending(self) -> Ints:
        """Class indices by positive share, largest first, ties by class index (Fig. 2a)."""
        return np.argsort(-self.positive_share, kind="stable").astype(np.int64)


@dataclass(frozen=True, eq=False)
class PairTable:
    """All ordered pairs as columns of equal length, in row order (teacher, then student), ready for a bulk insert.

    `teacher` and `student` are row numbers of the correctness matrix. Pairs with no sample in common have no rates and
    are left out; `n_incomparable` counts them. The other columns are the fields of `backend.domain.pairs.Pair`, and the
    2×2 counts they come from.
    """

    teacher: NDArray[np.int32]
    student: NDArray[np.int32]
    n_samples: Ints
    n_classes: Ints
    right_both: Ints
    positive_flips: Ints
    negative_flips: Ints
    teacher_accuracy: Floats
    student_accuracy: Floats
    accuracy_difference: Floats
    accuracy_difference_low: Floats
    accuracy_difference_high: Floats
    positive_flip_rate: Floats
    positive_flip_rate_low: Floats
    positive_flip_rate_high: Floats
    negative_flip_rate: Floats
    negative_flip_rate_low: Floats
    negative_flip_rate_high: Floats
    flip_entropy_nats: Floats
    mcnemar_p_value: Floats
    n_incomparable: int = 0

    def __len__(self) -> int:
        return len(self.teacher)

    def columns(self) -> dict[str, NDArray[Any]]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n_incomparable"}


@dataclass(frozen=True, eq=False)
class TransferCounts:
    """What a transfer changed: the student before and after, and against its teacher. Fractions of the N compared.

    `transfer_rate[p]` is the share of the initial positive flips of the top-p % classes that the student has right
    afterwards; None where there was no flip to learn from.
    """

    n_samples: int
    student_accuracy_before: float
    student_accuracy_after: float
    transfer_delta: float
    knowledge_gain: float
    knowledge_loss: float
    positive_flip_rate_delta: float
    negative_flip_rate_delta: float
    transfer_rate: dict[int, float | None]


def count_flips(correct: Bools, compared: Bools | None = None) -> Flips:
    """Flips of every ordered pair by one matrix product.

    positive[t, s] − positive[s, t] = right[t] − right[s] on the same samples: ρ_pos − ρ_neg = Δ accuracy.

    Args:
        correct: Which model has which sample right, [M, N].
        compared: Samples that take part: [N] for all models alike, or [M, N] where models can answer different
            samples (then a pair is counted on what both can); None means all.
    """
    correct, compared = _checked(correct, compared)
    if compared is not None:
        correct = correct & compared
    right = correct.sum(axis=1, dtype=np.int64)
    right_both = matrix_product(correct, correct).astype(np.int64)
    if compared is None or compared.ndim == 1:
        n = correct.shape[1] if compared is None else int(compared.sum())
        return Flips(np.full_like(right_both, n), right, right_both, right[:, None] - right_both)
    masks, which = _different_rows(compared)
    n_samples = matrix_product(masks, masks).astype(np.int64)[which[:, None], which[None, :]]
    shared_right = matrix_product(correct, masks).astype(np.int64)[:, which]
    return Flips(n_samples, right, right_both, shared_right - right_both)


def flip_entropy(
    correct: Bools, classes: ArrayLike, n_classes: int, compared: Bools | None = None, *, threads: int | None = None
) -> Floats:
    """Entropy of the distribution of positive flips over the classes, [T, S] in nats (Fig. 1b).

    H = ln P − (1/P) Σ_c n_c ln n_c with n_c positive flips of class c and P = Σ n_c; 0 without flips, at most ln C.

    Args:
        correct: [M, N].
        classes: The class each sample is counted under, [N]; −1 leaves the sample out.
        n_classes: C; every class index is below it.
        compared: As in `count_flips`.
    """
    correct, compared, classes_n = _on_classes(correct, classes, n_classes, compared)
    flips = count_flips(correct, compared)
    return entropy_from_sums(flips.positive, flip_sums(correct, classes_n, compared, threads=threads))


def flip_pairs(
    correct: Bools, classes: ArrayLike, n_classes: int, compared: Bools | None = None, *, threads: int | None = None
) -> PairTable:
    """Every ordered pair's counts, rates, entropy, closed-form 95 % intervals and McNemar p-value.

    Arguments as in `flip_entropy`. `n_classes` of a row counts the classes with at least one sample that both models
    were compared on.
    """
    correct, compared, classes_n = _on_classes(correct, classes, n_classes, compared)
    flips = count_flips(correct, compared)
    entropy = entropy_from_sums(flips.positive, flip_sums(correct, classes_n, compared, threads=threads))
    pair_classes = _compared_classes(classes_n, n_classes, compared, len(correct))

    off_diagonal = ~np.eye(len(correct), dtype=np.bool_)
    teacher, student = np.nonzero(off_diagonal & (flips.n_samples > 0))
    at = (teacher, student)
    n, both, positive, negative = flips.n_samples[at], flips.right_both[at], flips.positive[at], flips.negative[at]
    positive_low, positive_high = wilson_interval(positive, n)
    negative_low, negative_high = wilson_interval(negative, n)
    low, high = newcombe_paired_interval(both, positive, negative, n)
    return PairTable(
        teacher=teacher.astype(np.int32),
        student=student.astype(np.int32),
        n_samples=n,
        n_classes=pair_classes[at],
        right_both=both,
        positive_flips=positive,
        negative_flips=negative,
        teacher_accuracy=(both + positive) / n,
        student_accuracy=(both + negative) / n,
        accuracy_difference=(positive - negative) / n,
        accuracy_difference_low=low,
        accuracy_difference_high=high,
        positive_flip_rate=positive / n,
        positive_flip_rate_low=positive_low,
        positive_flip_rate_high=positive_high,
        negative_flip_rate=negative / n,
        negative_flip_rate_low=negative_low,
        negative_flip_rate_high=negative_high,
        flip_entropy_nats=entropy[at],
        mcnemar_p_value=_mirrored_p_values(flips.positive)[at],
        n_incomparable=int(off_diagonal.sum()) - len(teacher),
    )


def class_flips(teacher_correct: Bools, student_correct: Bools, classes: ArrayLike, n_classes: int) -> ClassCounts:
    """Flips of one pair by true class; under a millisecond at 50,000 samples, so nobody stores it.

    Args:
        teacher_correct, student_correct: [N].
        classes: The class each sample is counted under, [N]; −1 leaves the sample out.
    """
    teacher, student = np.asarray(teacher_correct, dtype=np.bool_), np.asarray(student_correct, dtype=np.bool_)
    classes_n = _checked_classes(classes, n_classes)
    if teacher.shape != classes_n.shape or student.shape != classes_n.shape:
        raise BadInput("correct", (teacher.shape, student.shape), f"one value per sample, {classes_n.shape}, is needed")

    def per_class(chosen: Bools | slice) -> Ints:
        # Shifted by one so that the samples without a class fall into bin 0.
        return np.bincount(classes_n[chosen] + 1, minlength=n_classes + 1)[1:].astype(np.int64)

    return ClassCounts(per_class(slice(None)), per_class(teacher & ~student), per_class(student & ~teacher))


def top_classes(positive_per_class: ArrayLike, p: float | Fraction) -> Ints:
    """The fewest classes whose positive flips reach p % of all flips (Fig. 2b, 5a), most flips first, ties by index.

    Exact: no rounding decides whether a class belongs. Empty when there is no flip.

    Args:
        positive_per_class: Counts, [C].
        p: Percent of all positive flips, 0 < p ≤ 100.
    """
    counts = np.asarray(positive_per_class)
    if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise BadInput("positive_per_class", f"{counts.dtype} {counts.shape}", "counts must be integers ≥ 0, [C]")
    share = p if isinstance(p, Fraction) else Fraction(str(p))
    if not 0 < share <= 100:
        raise BadInput("p", p, "percent of the positive flips, above 0 and at most 100")
    total = int(counts.sum())
    if total == 0:
        return np.empty(0, dtype=np.int64)
    order = np.argsort(-counts.astype(np.int64), kind="stable")
    needed = -(-share.numerator * total // (100 * share.denominator))
    return order[: int(np.searchsorted(np.cumsum(counts[order]), needed)) + 1].astype(np.int64)


def count_transfer(
    before: Bools,
    after: Bools,
    teacher: Bools,
    classes: ArrayLike,
    n_classes: int,
    top_p: Sequence[int] = (2, 5, 20, 50, 100),
) -> TransferCounts:
    """What a student gained and lost by a transfer, and how much of its teacher's complementary knowledge it took over.

    transfer_delta = knowledge_gain − knowledge_loss exactly; 0 everywhere when `after` equals `before`.

    Args:
        before, after, teacher: Correctness of the student before and after and of its teacher, [N].
        classes: The class each sample is counted under, [N]; −1 leaves the sample out.
        top_p: Percentages for `transfer_rate`.
    """
    initial = class_flips(teacher, before, classes, n_classes)
    classes_n = _checked_classes(classes, n_classes)
    labelled = classes_n >= 0
    if not labelled.any():
        raise BadInput("labels", -1, "at least one sample needs a label")
    was, now, told = (np.asarray(x, dtype=np.bool_)[labelled] for x in (before, after, teacher))
    classes_n, n = classes_n[labelled], int(labelled.sum())
    gained, lost = int((now & ~was).sum()), int((was & ~now).sum())

    def rate(p: int) -> float | None:
        flipped = told & ~was & np.isin(classes_n, top_classes(initial.positive, p))
        return float((flipped & now).sum() / flipped.sum()) if flipped.any() else None

    return TransferCounts(
        n_samples=n,
        student_accuracy_before=int(was.sum()) / n,
        student_accuracy_after=int(now.sum()) / n,
        transfer_delta=(gained - lost) / n,
        knowledge_gain=gained / n,
        knowledge_loss=lost / n,
        positive_flip_rate_delta=(int((told & ~now).sum()) - int((told & ~was).sum())) / n,
        negative_flip_rate_delta=(int((now & ~told).sum()) - int((was & ~told).sum())) / n,
        transfer_rate={p: rate(p) for p in top_p},
    )


def _mirrored_p_values(positive: Ints) -> Floats:
    """McNemar's p-value of every ordered pair, [T, S]; a pair and its reverse have the same."""
    p_values = np.ones(positive.shape)
    upper = np.triu_indices(len(positive), k=1)
    p_values[upper] = mcnemar_p_value(positive[upper], positive.T[upper])
    return np.minimum(p_values, p_values.T)


def _checked(correct: Bools, compared: Bools | None) -> tuple[Bools, Bools | None]:
    matrix = np.asarray(correct)
    if matrix.dtype != np.bool_ or matrix.ndim != 2 or 0 in matrix.shape:
        raise BadInput("correct", f"{matrix.dtype} {matrix.shape}", "a boolean matrix [M, N], not empty, is needed")
    if compared is None:
        return matrix, None
    mask = np.asarray(compared)
    if mask.dtype != np.bool_ or mask.shape not in (matrix.shape, matrix.shape[1:]):
        raise BadInput(
            "compared", f"{mask.dtype} {mask.shape}", f"a boolean mask [N] or [M, N] = {matrix.shape} is needed"
        )
    return matrix, mask


def _checked_classes(classes: ArrayLike, n_classes: int) -> Ints:
    array = as_labels(classes)
    if array.ndim != 1:
        raise BadInput("classes", array.shape, "one class per sample, [N]; reduce sets of labels with class_of first")
    if n_classes < 1 or array.max() >= n_classes:
        raise BadInput("labels", int(array.max()), f"class indices must be below the number of classes, {n_classes}")
    return array.astype(np.int64, copy=False)


def _on_classes(
    correct: Bools, classes: ArrayLike, n_classes: int, compared: Bools | None
) -> tuple[Bools, Bools | None, Ints]:
    """Inputs checked, and samples without a class taken out of the comparison."""
    correct, compared = _checked(correct, compared)
    classes_n = _checked_classes(classes, n_classes)
    if len(classes_n) != correct.shape[1]:
        raise BadInput("classes", classes_n.shape, f"one class per sample is needed, {correct.shape[1]} samples")
    labelled = classes_n >= 0
    if not labelled.all():
        compared = labelled if compared is None else compared & labelled
    return correct, compared, classes_n


def _compared_classes(classes: Ints, n_classes: int, compared: Bools | None, n_models: int) -> Ints:
    """Number of classes with a sample that both models of a pair were compared on, [M, M]."""

    if compared is None or compared.ndim == 1:
        counted = classes[classes >= 0 if compared is None else compared]
        return np.full(
            (n_models, n_models), np.count_nonzero(np.bincount(counted, minlength=n_classes)), dtype=np.int64
        )
    masks, which = _different_rows(compared)
    order = np.argsort(classes, kind="stable")
    counts = np.zeros((len(masks), len(masks)), dtype=np.int64)
    for samples in np.split(order, np.searchsorted(classes[order], np.arange(n_classes)))[1:]:
        shared = masks[:, samples]
        counts += matrix_product(shared, shared) > 0
    return np.asarray(counts[which[:, None], which[None, :]])


def _different_rows(masks: Bools) -> tuple[Bools, NDArray[np.intp]]:
    """The different rows, [U, N], and which of them each row is, [M]: a zoo has few label spaces, hence few masks."""
    index: dict[bytes, int] = {}
    which = np.array([index.setdefault(mask.tobytes(), len(index)) for mask in masks], dtype=np.intp)
    return masks[np.unique(which, return_index=True)[1]], which
