"""What is known of an ordered pair (teacher, student) on one data set: the records that REST, CLI and dashboard show.

Rates are fractions of the `n_samples` compared; every `_low` / `_high` is a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from backend.domain.flips import ClassCounts, PairTable, top_classes
from backend.domain.intervals import PairIntervals, benjamini_hochberg, bootstrap_pair, mcnemar_p_value
from backend.domain.records import Record
from backend.domain.similarity import class_similarity


class Pair(Record):
    """One ordered pair; its intervals in closed form: Wilson for the rates, Newcombe's paired for the difference."""

    teacher: str
    student: str
    dataset: str
    split: str
    n_samples: int = Field(ge=1, description="samples both models were compared on")
    n_classes: int = Field(ge=1, description="classes with such a sample")
    teacher_accuracy: float
    student_accuracy: float
    accuracy_difference: float = Field(description="teacher − student")
    accuracy_difference_low: float
    accuracy_difference_high: float
    positive_flip_rate: float = Field(description="teacher right, student wrong (elsewhere: NFR, student for teacher)")
    positive_flip_rate_low: float
    positive_flip_rate_high: float
    negative_flip_rate: float = Field(description="teacher wrong, student right (elsewhere: NFR, teacher for student)")
    negative_flip_rate_low: float
    negative_flip_rate_high: float
    flip_entropy_nats: float = Field(ge=0, description="of the positive flips over the classes; at most ln C")
    mcnemar_p_value: float = Field(ge=0, le=1, description="exact, two-sided: are the two equally accurate?")


class PairDetail(Pair):
    """A pair's own page: the 2×2 counts, and intervals from 10,000 multinomial draws of them with seed 0."""

    right_both: int
    positive_flips: int
    negative_flips: int
    wrong_both: int
    teacher_accuracy_low: float
    teacher_accuracy_high: float
    student_accuracy_low: float
    student_accuracy_high: float


class ClassFlips(Record):
    """Flips of one pair among the samples of one true class."""

    class_index: int = Field(ge=0)
    class_name: str
    n_samples: int = Field(ge=0)
    positive_flips: int = Field(ge=0)
    negative_flips: int = Field(ge=0)
    positive_flip_share: float = Field(ge=0, le=1, description="of the class's samples")


class FlippedSample(Record):
    """One sample that the two models disagree on in correctness; probabilities where the scan kept them."""

    sample_id: str
    label: int
    teacher_top1: int
    student_top1: int
    teacher_p_top1: float | None = None
    student_p_top1: float | None = None
    teacher_p_label: float | None = None
    student_p_label: float | None = None
    teacher_top5: tuple[int, ...] | None = Field(default=None, description="best classes first, fewer in small spaces")
    student_top5: tuple[int, ...] | None = None
    teacher_p_top5: tuple[float, ...] | None = None
    student_p_top5: tuple[float, ...] | None = None
    thumbnail: str | None = Field(default=None, description="path of the image under the API, where one was packed")


def pair_records(table: PairTable, names: Sequence[str], *, dataset: str, split: str) -> Iterator[Pair]:
    """The rows of a table as records; `names` are the models in the order of the correctness matrix."""
    columns = {name: column.tolist() for name, column in table.columns().items() if name in Pair.model_fields}
    teachers, students = columns.pop("teacher"), columns.pop("student")
    for i, (teacher, student) in enumerate(zip(teachers, students, strict=True)):
        numbers = {name: column[i] for name, column in columns.items()}
        yield Pair(teacher=names[teacher], student=names[student], dataset=dataset, split=split, **numbers)


def pair_detail(
    *,
    teacher: str,
    student: str,
    dataset: str,
    split: str,
    right_both: int,
    positive_flips: int,
    negative_flips: int,
    wrong_both: int,
    n_classes: int,
    flip_entropy_nats: float,
) -> PairDetail:
    """The record of one pair from its 2×2 counts; the same counts give the same intervals everywhere."""
    drawn: PairIntervals = bootstrap_pair(right_both, positive_flips, negative_flips, wrong_both)
    n = right_both + positive_flips + negative_flips + wrong_both
    return PairDetail(
        teacher=teacher,
        student=student,
        dataset=dataset,
        split=split,
        n_samples=n,
        n_classes=n_classes,
        teacher_accuracy=(right_both + positive_flips) / n,
        teacher_accuracy_low=drawn.teacher_accuracy.low,
        teacher_accuracy_high=drawn.teacher_accuracy.high,
        student_accuracy=(right_both + negative_flips) / n,
        student_accuracy_low=drawn.student_accuracy.low,
        student_accuracy_high=drawn.student_accuracy.high,
        accuracy_difference=(positive_flips - negative_flips) / n,
        accuracy_difference_low=drawn.accuracy_difference.low,
        accuracy_difference_high=drawn.accuracy_difference.high,
        positive_flip_rate=positive_flips / n,
        positive_flip_rate_low=drawn.positive_flip_rate.low,
        positive_flip_rate_high=drawn.positive_flip_rate.high,
        negative_flip_rate=negative_flips / n,
        negative_flip_rate_low=drawn.negative_flip_rate.low,
        negative_flip_rate_high=drawn.negative_flip_rate.high,
        flip_entropy_nats=flip_entropy_nats,
        mcnemar_p_value=float(mcnemar_p_value(positive_flips, negative_flips)),
        right_both=right_both,
        positive_flips=positive_flips,
        negative_flips=negative_flips,
        wrong_both=wrong_both,
    )


class TopClasses(Record):
    """The fewest classes that hold `p` % of a pair's positive flips, and how alike they are (Fig. 2b).

    `n_flips` of all `n_flips_all`. Cosines are means over unordered pairs of the classes that have a vector
    (`n_covered` of `n_classes`; `n_covered_all` of all classes); `relative_similarity` is mean_cosine /
    mean_cosine_all − 1. None without an embedding table, or where fewer than two classes have a vector.
    """

    p: float
    n_classes: int
    n_flips: int
    n_flips_all: int
    class_indices: tuple[int, ...]
    class_names: tuple[str, ...]
    n_covered: int | None = None
    n_covered_all: int | None = None
    mean_cosine: float | None = None
    mean_cosine_all: float | None = None
    relative_similarity: float | None = None


def top_class_record(
    positive: npt.ArrayLike, class_names: Sequence[str], p: float, embeddings: npt.ArrayLike | None = None
) -> TopClasses:
    """The top-p classes of a pair from its positive flips per class [C]; `embeddings` [C, E] as in `similarity`.

    Raises:
        BadInput: p outside (0, 100], or fewer than two classes with a vector.
    """
    flips = np.asarray(positive, dtype=np.int64)
    chosen = top_classes(flips, p)
    alike: dict[str, Any] = {}
    if embeddings is not None:
        found = class_similarity(embeddings, chosen)
        alike = {
            "n_covered": found.n_covered,
            "n_covered_all": found.n_covered_all,
            "mean_cosine": found.mean_cosine,
            "mean_cosine_all": found.mean_cosine_all,
            "relative_similarity": found.relative,
        }
    return TopClasses(
        p=p,
        n_classes=len(chosen),
        n_flips=int(flips[chosen].sum()),
        n_flips_all=int(flips.sum()),
        class_indices=tuple(int(c) for c in chosen),
        class_names=tuple(class_names[int(c)] for c in chosen),
        **alike,
    )


def class_records(counts: ClassCounts, class_names: Sequence[str]) -> list[ClassFlips]:
    """Per-class flips as records, largest positive share first, ties by index; classes without a sample left out."""
    share = counts.positive_share
    return [
        ClassFlips(
            class_index=int(c),
            class_name=class_names[c],
            n_samples=int(counts.n_samples[c]),
            positive_flips=int(counts.positive[c]),
            negative_flips=int(counts.negative[c]),
            positive_flip_share=float(share[c]),
        )
        for c in counts.descending()
        if counts.n_samples[c]
    ]


def class_q_values(counts: ClassCounts) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Each class's McNemar p-value of the pair, adjusted for the false discovery of listing all classes, [C]."""
    return np.asarray(benjamini_hochberg(mcnemar_p_value(counts.positive, counts.negative))).reshape(-1)
