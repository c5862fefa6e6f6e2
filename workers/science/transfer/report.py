"""From predictions before and after to a transfer's report: Roth et al., arXiv:2310.17653, §4.4 and §5.

N samples, C classes. Intervals: 95 % percentiles of 10,000 multinomial draws with seed 0, over the joint table of what
student before, student after and teacher have right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.domain.correctness import class_of, correctness, has_label
from backend.domain.errors import BadInput
from backend.domain.flips import class_flips, count_transfer, top_classes
from backend.domain.intervals import BOOTSTRAP_DRAWS
from backend.domain.transfers import TOP_P, EpochResult, TeacherComparison, TransferResult, precondition_warning

SHARES = ("positive_flips_to_teacher", "negative_flips_to_teacher")
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def report_transfer(
    before: ArrayLike,
    after: ArrayLike,
    teachers: Mapping[str, ArrayLike],
    labels: ArrayLike,
    n_classes: int,
    *,
    control_after: ArrayLike | None = None,
    positive_flips_to_teacher: float | None = None,
    negative_flips_to_teacher: float | None = None,
    positive_flip_rate_on_transfer_set: float | None = None,
    epochs: Sequence[EpochResult] = (),
) -> TransferResult:
    """The report of one transfer.

    Args:
        before, after: Top-1 classes of the student, [N].
        teachers: Name → top-1 classes, [N]; empty for a control.
        labels: True classes [N] (-1: none, left out), or sets of them, padded with -1, [N, K].
        n_classes: C.
        control_after: Top-1 classes of the same student trained without a teacher, [N].
        positive_flips_to_teacher, negative_flips_to_teacher: Of KL+DP on the transfer set (`flips_to_teacher`).
        positive_flip_rate_on_transfer_set: The precondition (`positive_flip_rate`).
        epochs: One per epoch (`report_epoch`).

    Raises:
        BadInput: arrays of different lengths, labels outside the classes, no labelled sample.
    """
    classes, was, now = class_of(labels), _right(before, labels), _right(after, labels)
    told = _known(teachers, labels)
    counts = count_transfer(was, now, told, classes, n_classes, TOP_P)
    kept = has_label(labels)
    low, high = _intervals(was[kept], now[kept], told[kept], classes[kept], n_classes)
    report: dict[str, Any] = {
        "n_samples": counts.n_samples,
        "n_classes": len(np.unique(classes[kept])),
        "student_accuracy_before": counts.student_accuracy_before,
        "student_accuracy_after": counts.student_accuracy_after,
        "transfer_delta": counts.transfer_delta,
        "knowledge_gain": counts.knowledge_gain,
        "knowledge_loss": counts.knowledge_loss,
    }
    shown = ["student_accuracy_after", "transfer_delta", "knowledge_gain", "knowledge_loss"]
    if teachers:
        report |= {
            "positive_flip_rate_delta": counts.positive_flip_rate_delta,
            "negative_flip_rate_delta": counts.negative_flip_rate_delta,
            "transfer_rate": counts.transfer_rate,
            "transfer_rate_low": {p: low.get(f"top {p}") for p in TOP_P},
            "transfer_rate_high": {p: high.get(f"top {p}") for p in TOP_P},
            "teachers": {
                name: _compare(was, now, _right(top1, labels), kept, classes, n_classes)
                for name, top1 in teachers.items()
            },
        }
        shown += ["positive_flip_rate_delta", "negative_flip_rate_delta"]
    report |= {f"{name}_low": low[name] for name in shown} | {f"{name}_high": high[name] for name in shown}
    if control_after is not None:
        report |= _against_control(was[kept], now[kept], _right(control_after, labels)[kept])
    warning = None
    if positive_flip_rate_on_transfer_set is not None:
        warning = precondition_warning(positive_flip_rate_on_transfer_set)
    return TransferResult.model_validate(
        report
        | {
            "positive_flips_to_teacher": positive_flips_to_teacher,
            "negative_flips_to_teacher": negative_flips_to_teacher,
            "positive_flip_rate_on_transfer_set": positive_flip_rate_on_transfer_set,
            "epochs": tuple(epochs),
            "warnings": () if warning is None else (warning,),
        }
    )


def report_epoch(
    epoch: int,
    before: ArrayLike,
    after: ArrayLike,
    teachers: Mapping[str, ArrayLike],
    labels: ArrayLike,
    n_classes: int,
    metrics: Mapping[str, float] | None = None,
) -> EpochResult:
    """The student after epoch number `epoch` (from 1); arguments as in `report_transfer`, and so are the figures."""
    found = report_transfer(before, after, teachers, labels, n_classes).model_dump()
    found |= {f"student_accuracy{end}": found[f"student_accuracy_after{end}"] for end in ("", "_low", "_high")}
    values = {name: found[name] for name in EpochResult.model_fields if name in found}
    metrics = dict(metrics or {})
    shares = {name: metrics[name] for name in SHARES if name in metrics}
    return EpochResult.model_validate({**values, **shares, "epoch": epoch, "metrics": metrics})


def positive_flip_rate(teachers: Mapping[str, ArrayLike], student: ArrayLike, labels: ArrayLike) -> float:
    """Share of the labelled samples that some teacher has right and the student wrong; the precondition of a transfer.

    Shape:
        teachers' and student's top-1 classes and labels: [N] each.
    """
    kept = has_label(labels)
    return float((_known(teachers, labels) & ~_right(student, labels))[kept].mean())


def flips_to_teacher(
    to_teacher: ArrayLike, teachers: Mapping[str, ArrayLike], frozen_student: ArrayLike, labels: ArrayLike
) -> tuple[float | None, float | None]:
    """Shares of the positive and of the negative flips whose target KL+DP took from a teacher; None without such flips.

    Shape:
        to_teacher: [N] bool (`teacher_mask`, or `pick_model` > 0); top-1 classes and labels: [N].
    """
    given, kept = np.asarray(to_teacher, dtype=np.bool_), has_label(labels)
    told, own = _known(teachers, labels), _right(frozen_student, labels)

    def share(flips: Bools) -> float | None:
        return float(given[flips].mean()) if flips.any() else None

    return share(told & ~own & kept), share(own & ~told & kept)


def _right(top1: ArrayLike, labels: ArrayLike) -> Bools:
    return np.asarray(correctness(top1, labels)[0])


def _known(teachers: Mapping[str, ArrayLike], labels: ArrayLike) -> Bools:
    """Which samples some teacher has right, [N]."""
    if not teachers:
        return np.zeros(len(np.asarray(labels)), dtype=np.bool_)
    return np.asarray(np.any([_right(top1, labels) for top1 in teachers.values()], axis=0))


def _compare(
    was: Bools, now: Bools, told: Bools, kept: Bools, classes: NDArray[np.int64], n_classes: int
) -> TeacherComparison:
    was, now, told, classes = was[kept], now[kept], told[kept], classes[kept]
    low, high = _intervals(was, now, told, classes, n_classes)
    n = len(was)
    values: dict[str, float] = {
        "positive_flip_rate_delta": (int((told & ~now).sum()) - int((told & ~was).sum())) / n,
        "negative_flip_rate_delta": (int((now & ~told).sum()) - int((was & ~told).sum())) / n,
    }
    for name in tuple(values):
        values |= {f"{name}_low": low[name], f"{name}_high": high[name]}
    return TeacherComparison(
        teacher_accuracy=float(told.mean()),
        positive_flip_rate_before=float((told & ~was).mean()),
        negative_flip_rate_before=float((was & ~told).mean()),
        **values,
    )


def _intervals(
    was: Bools, now: Bools, told: Bools, classes: NDArray[np.int64], n_classes: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Bounds by name; the top-p classes are those of the sample, not drawn again."""
    positive = class_flips(told, was, classes, n_classes).positive
    # The smallest of the nested top-p sets a sample's class is in: 0..len(TOP_P).
    ring = np.sum([~np.isin(classes, top_classes(positive, p)) for p in TOP_P], axis=0)
    cell = ((ring * 2 + was) * 2 + now) * 2 + told
    n_cells = 8 * (len(TOP_P) + 1)
    cells = np.arange(n_cells)
    ring_c, was_c, now_c, told_c = cells // 8, cells // 4 % 2 == 1, cells // 2 % 2 == 1, cells % 2 == 1
    drawn = _draw(np.bincount(cell, minlength=n_cells))

    def rate(chosen: Bools) -> Floats:
        return np.asarray(drawn[:, chosen].sum(axis=1))

    gain, loss = rate(now_c & ~was_c), rate(was_c & ~now_c)
    figures = {
        "student_accuracy_after": rate(now_c),
        "transfer_delta": gain - loss,
        "knowledge_gain": gain,
        "knowledge_loss": loss,
        "positive_flip_rate_delta": rate(told_c & ~now_c) - rate(told_c & ~was_c),
        "negative_flip_rate_delta": rate(now_c & ~told_c) - rate(was_c & ~told_c),
    }
    for i, p in enumerate(TOP_P):
        flipped = told_c & ~was_c & (ring_c <= i)
        whole, taken = rate(flipped), rate(flipped & now_c)
        if (whole > 0).any():
            figures[f"top {p}"] = taken[whole > 0] / whole[whole > 0]
    bounds = {name: np.quantile(values, [0.025, 0.975]) for name, values in figures.items()}
    return {name: float(b[0]) for name, b in bounds.items()}, {name: float(b[1]) for name, b in bounds.items()}


def _against_control(was: Bools, now: Bools, control: Bools) -> dict[str, float]:
    """Δ of the control, and how far the transfer is above it, sample by sample."""
    difference = now.astype(np.int64) - control.astype(np.int64)
    drawn = _draw(np.bincount(difference + 1, minlength=3))
    low, high = np.quantile(drawn[:, 2] - drawn[:, 0], [0.025, 0.975])
    return {
        "control_delta": (int(control.sum()) - int(was.sum())) / len(was),
        "delta_above_control": int(difference.sum()) / len(was),
        "delta_above_control_low": float(low),
        "delta_above_control_high": float(high),
    }


def _draw(counts: NDArray[np.int64]) -> Floats:
    """Multinomial draws of a table, as shares: [draws, cells]."""
    n = int(counts.sum())
    if n < 1:
        raise BadInput("labels", -1, "at least one sample needs a label")
    return np.random.default_rng(0).multinomial(n, counts / n, size=BOOTSTRAP_DRAWS) / n
