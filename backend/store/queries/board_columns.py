"""All pairs of one split as numpy columns, for pictures of 1.7 million of them: read once, then counted in memory.

P pairs, M models on the board.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, func, select

from backend.domain.intervals import newcombe_paired_interval, wilson_interval
from backend.domain.pairs import Pair
from backend.store.queries.pairs import Board
from backend.store.tables import evaluations as evaluation_table
from backend.store.tables import jobs as job_table
from backend.store.tables import models as model_table
from backend.store.tables import pairs as pair_table

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

_STORED = np.dtype(
    [
        ("teacher", "i4"),
        ("student", "i4"),
        ("n_samples", "i4"),
        ("n_classes", "i4"),
        ("both_right", "i4"),
        ("positive_flips", "i4"),
        ("negative_flips", "i4"),
        ("flip_entropy_nats", "f4"),
        ("mcnemar_p_value", "f8"),
    ]
)


@dataclass(frozen=True)
class Columns:
    """Columns [P]; `teacher` and `student` count in `names` [M], which are sorted by accuracy, the worst first."""

    dataset: str
    split: str
    names: tuple[str, ...]
    families: tuple[str, ...]
    teacher: Ints
    student: Ints
    n_samples: Ints
    n_classes: Ints
    both_right: Ints
    positive_flips: Ints
    negative_flips: Ints
    teacher_accuracy: Floats
    student_accuracy: Floats
    accuracy_difference: Floats
    positive_flip_rate: Floats
    negative_flip_rate: Floats
    flip_entropy_nats: Floats
    mcnemar_p_value: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.teacher)


NUMBERS = tuple(one.name for one in fields(Columns) if one.name not in ("dataset", "split", "names", "families"))


def size(connection: Connection, board: Board) -> int:
    """How many pairs the board has."""
    c = pair_table.c
    query = select(func.count()).where(c.dataset_id == board.dataset_id, c.split == board.split)
    return int(connection.execute(query).scalar_one())


def version(connection: Connection, board: Board) -> tuple[int, float, float]:
    """Changes whenever the pairs may have: count and newest of the evaluations, end of the last job that counts."""
    e, j = evaluation_table.c, job_table.c
    count, newest = connection.execute(
        select(func.count(), func.max(e.created_at)).where(e.dataset_id == board.dataset_id, e.split == board.split)
    ).one()
    counted = connection.execute(
        select(func.max(j.finished_at)).where(j.kind.in_(("scan", "flips")), j.state == "succeeded")
    ).scalar()
    return int(count), float(newest or 0.0), float(counted or 0.0)


def load(connection: Connection, board: Board) -> Columns:
    """Read every pair of a board."""
    c = pair_table.c
    names = ("teacher_id", "student_id", "n_samples", "n_classes", "both_right", "positive_flips", "negative_flips")
    statement = select(*(c[name] for name in (*names, "flip_entropy_nats", "mcnemar_p_value"))).where(
        c.dataset_id == board.dataset_id, c.split == board.split
    )
    # The driver's own tuples: records of 1.7 million rows would take minutes.
    text = str(statement.compile(connection, compile_kwargs={"literal_binds": True}))
    cursor = connection.connection.cursor()
    try:
        cursor.execute(text)
        stored = np.fromiter(_tuples(cursor), dtype=_STORED)
    finally:
        cursor.close()
    ids = np.unique(np.concatenate([stored["teacher"], stored["student"]]))
    rows = connection.execute(select(model_table.c.id, model_table.c.name, model_table.c.family))
    known = {row.id: (row.name, row.family) for row in rows}
    teacher, student = np.searchsorted(ids, stored["teacher"]), np.searchsorted(ids, stored["student"])
    return arrange(
        board.dataset,
        board.split,
        [known[int(i)] for i in ids],
        stored,
        teacher.astype(np.int32),
        student.astype(np.int32),
    )


def arrange(
    dataset: str, split: str, models: Sequence[tuple[str, str]], stored: npt.NDArray[Any], teacher: Ints, student: Ints
) -> Columns:
    """Columns from stored counts; models are put in the order of their accuracy."""
    n = np.maximum(stored["n_samples"], 1).astype(np.float64)
    positive, negative = stored["positive_flips"] / n, stored["negative_flips"] / n
    teacher_accuracy = (stored["both_right"] + stored["positive_flips"]) / n
    best = np.zeros(len(models))
    np.maximum.at(best, teacher, teacher_accuracy)
    order = np.lexsort((np.array([name for name, _ in models]), best)) if models else np.empty(0, dtype=np.intp)
    place = np.empty(len(models), dtype=np.int32)
    place[order] = np.arange(len(models), dtype=np.int32)
    return Columns(
        dataset=dataset,
        split=split,
        names=tuple(models[i][0] for i in order),
        families=tuple(models[i][1] for i in order),
        teacher=place[teacher],
        student=place[student],
        n_samples=stored["n_samples"].copy(),
        n_classes=stored["n_classes"].copy(),
        both_right=stored["both_right"].copy(),
        positive_flips=stored["positive_flips"].copy(),
        negative_flips=stored["negative_flips"].copy(),
        teacher_accuracy=teacher_accuracy.astype(np.float32),
        student_accuracy=((stored["both_right"] + stored["negative_flips"]) / n).astype(np.float32),
        accuracy_difference=(positive - negative).astype(np.float32),
        positive_flip_rate=positive.astype(np.float32),
        negative_flip_rate=negative.astype(np.float32),
        flip_entropy_nats=stored["flip_entropy_nats"].copy(),
        mcnemar_p_value=stored["mcnemar_p_value"].copy(),
    )


def pair_records(columns: Columns, positions: npt.NDArray[np.int64]) -> list[Pair]:
    """The pairs at these positions, with the intervals that lists have."""
    if not len(positions):
        return []
    both, positive, negative, n = (
        getattr(columns, name)[positions].astype(np.int64)
        for name in ("both_right", "positive_flips", "negative_flips", "n_samples")
    )
    ends = [
        *wilson_interval(positive, n),
        *wilson_interval(negative, n),
        *newcombe_paired_interval(both, positive, negative, n),
    ]
    return [
        Pair(
            teacher=columns.names[columns.teacher[at]],
            student=columns.names[columns.student[at]],
            dataset=columns.dataset,
            split=columns.split,
            n_samples=int(n[i]),
            n_classes=int(columns.n_classes[at]),
            teacher_accuracy=float((both[i] + positive[i]) / n[i]),
            student_accuracy=float((both[i] + negative[i]) / n[i]),
            accuracy_difference=float((positive[i] - negative[i]) / n[i]),
            accuracy_difference_low=float(ends[4][i]),
            accuracy_difference_high=float(ends[5][i]),
            positive_flip_rate=float(positive[i] / n[i]),
            positive_flip_rate_low=float(ends[0][i]),
            positive_flip_rate_high=float(ends[1][i]),
            negative_flip_rate=float(negative[i] / n[i]),
            negative_flip_rate_low=float(ends[2][i]),
            negative_flip_rate_high=float(ends[3][i]),
            flip_entropy_nats=max(0.0, float(columns.flip_entropy_nats[at])),
            mcnemar_p_value=float(columns.mcnemar_p_value[at]),
        )
        for i, at in enumerate(positions)
    ]


def _tuples(cursor: Any) -> Any:
    while rows := cursor.fetchmany(50_000):
        yield from (tuple(row) for row in rows)
