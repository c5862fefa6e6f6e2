"""One pair down to its classes and samples, from the two predictions files: nothing of this is stored per pair.

A file is read once and kept for the next question about the same model; counting 50,000 samples takes a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import quote
from uuid import UUID

import numpy as np
import numpy.typing as npt

from backend.domain.datasets import Dataset
from backend.domain.errors import BadInput, NotFound
from backend.domain.flips import class_flips
from backend.domain.pairs import ClassFlips, FlippedSample, TopClasses, class_records, top_class_record
from backend.embeddings import of_dataset, read_embeddings
from backend.settings import Settings
from backend.store import results
from backend.store.queries.paging import Page, check_limit, decode_cursor, encode_cursor
from backend.store.queries.pairs import pair_split
from backend.store.results import StoredEvaluation
from backend.store.session import Store

if TYPE_CHECKING:
    from backend.prediction_files import Predictions

SampleKind = Literal["positive", "negative", "both_right", "both_wrong"]
KINDS: tuple[str, ...] = get_args(SampleKind)

Positions = npt.NDArray[np.int64]


class Compared:
    """The samples that two models both answered and both could: positions in each file, and who was right, [N]."""

    def __init__(self, dataset: Dataset, split: str, teacher: Predictions, student: Predictions, left_out: set[int]):
        self.dataset, self.split, self.teacher, self.student = dataset, split, teacher, student
        ids = teacher.sample_ids
        if len(ids) == len(student.sample_ids) and bool((ids == student.sample_ids).all()):
            self.teacher_at = self.student_at = np.arange(len(ids), dtype=np.int64)
        else:
            # In the teacher's order, as its file has it.
            _, in_teacher, in_student = np.intersect1d(ids, student.sample_ids, return_indices=True)
            order = np.argsort(in_teacher)
            self.teacher_at, self.student_at = in_teacher[order].astype(np.int64), in_student[order].astype(np.int64)
        if left_out:
            kept = ~np.isin(teacher.labels[self.teacher_at], list(left_out))
            self.teacher_at, self.student_at = self.teacher_at[kept], self.student_at[kept]
        self.labels = teacher.labels[self.teacher_at]
        self.teacher_right = teacher.correct[self.teacher_at]
        self.student_right = student.correct[self.student_at]

    @property
    def n_classes(self) -> int:
        return max(self.dataset.n_classes, int(self.labels.max(initial=-1)) + 1)

    def class_names(self) -> list[str]:
        names = list(self.dataset.class_names)
        return names + [str(c) for c in range(len(names), self.n_classes)]

    def chosen(self, kind: str | None, class_index: int | None) -> Positions:
        """Positions among the compared samples."""
        right, wrong = self.teacher_right, ~self.teacher_right
        keep = {
            None: np.ones(len(right), dtype=np.bool_),
            "positive": right & ~self.student_right,
            "negative": wrong & self.student_right,
            "both_right": right & self.student_right,
            "both_wrong": wrong & ~self.student_right,
        }[kind]
        if class_index is not None:
            keep = keep & (self.labels == class_index)
        return np.flatnonzero(keep).astype(np.int64)


def compared(
    store: Store,
    settings: Settings,
    teacher: str,
    student: str,
    *,
    dataset: str | None = None,
    split: str | None = None,
) -> Compared:
    """The predictions of a pair, side by side.

    Raises:
        NotFound: unknown names, or one of the two was not scored there.
        BadInput: a model paired with itself, an ambiguous data set or split.
    """
    if teacher == student:
        raise BadInput("student", student, "another model than the teacher")
    with store.read() as connection:
        entry, split = pair_split(connection, dataset, split, teacher, student)
        both = [results.current_evaluation(connection, name, entry.name, split) for name in (teacher, student)]
    left_out: set[int] = set()
    for one in both:
        left_out |= set(one.evaluation.provenance.get("inexpressible", ()))
    files = [_predictions(one, settings.data_dir / "cache") for one in both]
    return Compared(entry, split, files[0], files[1], left_out)


def classes(
    store: Store,
    settings: Settings,
    teacher: str,
    student: str,
    *,
    dataset: str | None = None,
    split: str | None = None,
) -> list[ClassFlips]:
    """Flips per class, the largest share of positive flips first.

    Raises:
        NotFound, BadInput: as `compared`.
    """
    pair = compared(store, settings, teacher, student, dataset=dataset, split=split)
    counts = class_flips(pair.teacher_right, pair.student_right, pair.labels, max(1, pair.n_classes))
    return class_records(counts, pair.class_names())


def top_classes(
    store: Store,
    settings: Settings,
    teacher: str,
    student: str,
    ps: Sequence[float],
    *,
    embeddings: Path | None = None,
    dataset: str | None = None,
    split: str | None = None,
) -> list[TopClasses]:
    """The classes that hold p % of a pair's positive flips, for each p, and how alike they are.

    Args:
        embeddings: An embedding file; default: the one under the data directory, if there is one.

    Raises:
        NotFound, BadInput: as `compared`; a p outside (0, 100]; a file that is no embedding table.
    """
    pair = compared(store, settings, teacher, student, dataset=dataset, split=split)
    names = pair.class_names()
    table = read_embeddings(embeddings, names) if embeddings else of_dataset(settings, pair.dataset)
    counts = class_flips(pair.teacher_right, pair.student_right, pair.labels, max(1, pair.n_classes))
    return [top_class_record(counts.positive, names, p, table) for p in ps]


def samples(
    store: Store,
    settings: Settings,
    teacher: str,
    student: str,
    *,
    dataset: str | None = None,
    split: str | None = None,
    kind: str | None = None,
    class_index: int | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page[FlippedSample]:
    """Samples of a pair in the order of the teacher's file: those the teacher alone gets right (`positive`), and so on.

    Raises:
        NotFound: as `compared`.
        BadInput: as `compared`; unknown kind or class, limit out of range, foreign cursor.
    """
    limit = check_limit(limit)
    if kind is not None and kind not in KINDS:
        raise BadInput("kind", kind, f"one of {', '.join(KINDS)}")
    pair = compared(store, settings, teacher, student, dataset=dataset, split=split)
    if class_index is not None and not 0 <= class_index < pair.n_classes:
        raise BadInput("class", class_index, f"a class index from 0 to {pair.n_classes - 1}")
    query = ["samples", teacher, student, pair.dataset.name, pair.split, kind, class_index]
    last = decode_cursor(query, cursor, (int,))
    found = pair.chosen(kind, class_index)
    if last is not None:
        found = found[np.searchsorted(found, last[0], side="right") :]
    shown = found[:limit]
    pictured = _pictured(settings, pair)
    items = tuple(_sample(pair, int(i), pictured) for i in shown)
    return Page(items=items, next_cursor=encode_cursor(query, [int(shown[-1])]) if len(found) > limit else None)


def _sample(pair: Compared, i: int, pictured: frozenset[str]) -> FlippedSample:
    t, s = int(pair.teacher_at[i]), int(pair.student_at[i])
    teacher, student = pair.teacher, pair.student
    sample_id = str(teacher.sample_ids[t])
    return FlippedSample(
        sample_id=sample_id,
        label=int(pair.labels[i]),
        teacher_top1=int(teacher.top1[t]),
        student_top1=int(student.top1[s]),
        teacher_p_top1=_number(teacher.p_top1, t),
        student_p_top1=_number(student.p_top1, s),
        teacher_p_label=_number(teacher.p_label, t),
        student_p_label=_number(student.p_label, s),
        teacher_top5=_whole_numbers(teacher.top5, t),
        student_top5=_whole_numbers(student.top5, s),
        teacher_p_top5=_numbers(teacher.p_top5, t),
        student_p_top5=_numbers(student.p_top5, s),
        thumbnail=thumbnail_path(pair.dataset.name, pair.split, sample_id) if sample_id in pictured else None,
    )


def thumbnail_path(dataset: str, split: str, sample_id: str) -> str:
    """Where REST serves the picture of a sample."""
    return f"/api/v1/datasets/{dataset}/splits/{split}/thumbnails/{quote(sample_id)}"


def _pictured(settings: Settings, pair: Compared) -> frozenset[str]:
    from backend.thumbnails import packed_ids

    return packed_ids(settings, pair.dataset.splits[pair.split].fingerprint)


def _number(column: npt.NDArray[np.float32] | None, i: int) -> float | None:
    if column is None or not np.isfinite(column[i]):
        return None
    return float(column[i])


def _numbers(column: npt.NDArray[np.float32] | None, i: int) -> tuple[float, ...] | None:
    if column is None or not np.isfinite(column[i]).all():
        return None
    return tuple(float(value) for value in column[i])


def _whole_numbers(column: npt.NDArray[np.int64] | None, i: int) -> tuple[int, ...] | None:
    return None if column is None else tuple(int(value) for value in column[i])


def _predictions(stored: StoredEvaluation, cache: Path) -> Predictions:
    return _read(stored.evaluation.id, stored.predictions_sha256, _Handle(stored, cache))


class _Handle:
    """An evaluation that does not count in a cache's key (its id and checksum do)."""

    def __init__(self, stored: StoredEvaluation, cache: Path) -> None:
        self.stored, self.cache = stored, cache

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handle)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=32)
def _read(id: UUID, sha256: str | None, handle: _Handle) -> Predictions:
    from backend.prediction_files import load  # pyarrow takes a third of a second to import

    try:
        return load(handle.stored, cache=handle.cache)
    except FileNotFoundError:
        raise NotFound("predictions", handle.stored.model, "their file is gone; scan this model again") from None
