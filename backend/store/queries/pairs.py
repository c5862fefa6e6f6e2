"""Ordered pairs of models on a split: the list that sorts and filters 1.7 million of them, and one pair.

Within one split the rates, the difference and the entropy are indices, so a page reads the rows it shows. Without a
named split the pages of all splits are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Column, ColumnElement, Connection, Row, Select, UnaryExpression, select, tuple_
from sqlalchemy.sql.operators import custom_op

from backend.domain.datasets import Dataset
from backend.domain.errors import BadInput, NotFound
from backend.domain.intervals import newcombe_paired_interval, wilson_interval
from backend.domain.pairs import Pair, PairDetail, pair_detail
from backend.store import catalog
from backend.store.queries.catalog import dataset_id, model_id, model_ids
from backend.store.queries.paging import Page, after, check_limit, decode_cursor, encode_cursor, parse_sort
from backend.store.tables import datasets as dataset_table
from backend.store.tables import evaluations as evaluation_table
from backend.store.tables import models as model_table
from backend.store.tables import pairs as pair_table

_c = pair_table.c
SORTS = {
    "positive_flip_rate": _c.positive_flip_rate,
    "negative_flip_rate": _c.negative_flip_rate,
    "accuracy_difference": _c.accuracy_difference,
    "flip_entropy_nats": _c.flip_entropy_nats,
    "teacher_accuracy": _c.teacher_accuracy,
    "student_accuracy": _c.student_accuracy,
    "mcnemar_p_value": _c.mcnemar_p_value,
    "n_samples": _c.n_samples,
}
RANGES = SORTS
"""Columns that `ranges` may bound."""
INDEXED = frozenset({"positive_flip_rate", "negative_flip_rate", "accuracy_difference", "flip_entropy_nats"})
NEAR = 4096
"""Rows in order that are looked through for a page of matches before the whole board is read."""

AT_ONCE = 200
"""Pairs asked for by name in one statement."""

Ranges = Mapping[str, tuple[float | None, float | None]]
_How = Callable[[ColumnElement[Any]], ColumnElement[Any]]


@dataclass(frozen=True)
class Board:
    """One split of one data set: all pairs of the models scored on it."""

    dataset_id: int
    dataset: str
    split: str


def boards(connection: Connection, *, dataset: str | None = None, split: str | None = None) -> list[Board]:
    """The splits on which models were scored.

    Raises:
        NotFound: unknown data set.
    """
    statement = (
        select(evaluation_table.c.dataset_id, dataset_table.c.name, evaluation_table.c.split)
        .join(dataset_table, dataset_table.c.id == evaluation_table.c.dataset_id)
        .distinct()
        .order_by(evaluation_table.c.dataset_id, evaluation_table.c.split)
    )
    if dataset is not None:
        statement = statement.where(evaluation_table.c.dataset_id == dataset_id(connection, dataset))
    if split is not None:
        statement = statement.where(evaluation_table.c.split == split)
    return [Board(row.dataset_id, row.name, row.split) for row in connection.execute(statement)]


def pairs(
    connection: Connection,
    *,
    dataset: str | None = None,
    split: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    ranges: Ranges | None = None,
    sort: str = "-positive_flip_rate",
    limit: int = 50,
    cursor: str | None = None,
) -> Page[Pair]:
    """Pairs with closed-form intervals. `teacher` and `student` are names or patterns (`resnet*`).

    Raises:
        NotFound: unknown data set, teacher or student.
        BadInput: unknown split, sort or range column, limit out of range, foreign cursor.
    """
    limit = check_limit(limit)
    name, direction = parse_sort(sort, SORTS)
    bounds = check_ranges(ranges or {})
    query = ["pairs", sort, dataset, split, teacher, student, sorted(bounds.items())]
    last = decode_cursor(query, cursor, ((int, float), int, str, int, int))
    if dataset is not None and split is not None:
        catalog.get_dataset(connection, dataset).evaluation_split(split)
    teachers = model_ids(connection, teacher) if teacher is not None else None
    students = model_ids(connection, student) if student is not None else None
    if teachers == [] or students == []:
        return Page(items=())

    order, wanted = _Order(name, direction), _Filter(teachers, students, bounds)
    found: list[tuple[tuple[Any, ...], Row[Any], Board]] = []
    for board in boards(connection, dataset=dataset, split=split):
        rows = _board_rows(connection, board, order, last, wanted, limit + 1)
        found += [
            ((getattr(row, name), board.dataset_id, board.split, row.teacher_id, row.student_id), row, board)
            for row in rows
        ]
    found.sort(key=lambda entry: entry[0], reverse=direction == "desc")
    shown = found[:limit]
    names = _names(connection, {i for _, row, _ in shown for i in (row.teacher_id, row.student_id)})
    items = _pairs([(row, board) for _, row, board in shown], names)
    return Page(items=tuple(items), next_cursor=encode_cursor(query, shown[-1][0]) if len(found) > limit else None)


def check_ranges(ranges: Ranges) -> dict[str, tuple[float | None, float | None]]:
    """Bounds of known columns, or BadInput."""
    bounds = {}
    for name, (low, high) in ranges.items():
        if name not in RANGES:
            raise BadInput("range", name, f"one of {', '.join(RANGES)}")
        for end in (low, high):
            if end is not None and not np.isfinite(end):
                raise BadInput(name, str(end), "a finite number")
        if low is not None and high is not None and low > high:
            raise BadInput(name, [low, high], "a lower bound that is not above the upper one")
        if low is not None or high is not None:
            bounds[name] = (low, high)
    return bounds


def pair_split(connection: Connection, dataset: str | None, split: str | None, *names: str) -> tuple[Dataset, str]:
    """The data set and split to look at for these models: what was named, else the only one they share.

    Raises:
        NotFound: unknown data set or model, or nothing they were both scored on.
        BadInput: the models share several, or no such split.
    """
    ids = [model_id(connection, name) for name in names]
    if dataset is None:
        shared: set[int] | None = None
        for number in ids:
            scored = set(
                connection.execute(
                    select(evaluation_table.c.dataset_id).where(
                        evaluation_table.c.model_id == number, evaluation_table.c.state == "ready"
                    )
                ).scalars()
            )
            shared = scored if shared is None else shared & scored
        known = (
            connection.execute(select(dataset_table.c.name).where(dataset_table.c.id.in_(shared or ()))).scalars().all()
        )
        if not known:
            raise NotFound("pair", " → ".join(names), "they were not scored on a common data set; scan both")
        if len(known) > 1:
            raise BadInput("dataset", None, f"name one of {', '.join(sorted(known))}")
        dataset = known[0]
    entry = catalog.get_dataset(connection, dataset)
    return entry, entry.evaluation_split(split)


def pair(
    connection: Connection, teacher: str, student: str, *, dataset: str | None = None, split: str | None = None
) -> PairDetail:
    """One pair with intervals from 10,000 multinomial draws.

    Raises:
        NotFound: unknown names, or the two were not both scored there.
        BadInput: a model paired with itself, an ambiguous data set or split.
    """
    if teacher == student:
        raise BadInput("student", student, "another model than the teacher")
    entry, split = pair_split(connection, dataset, split, teacher, student)
    row = connection.execute(
        select(pair_table).where(
            _c.dataset_id == dataset_id(connection, entry.name),
            _c.split == split,
            _c.teacher_id == model_id(connection, teacher),
            _c.student_id == model_id(connection, student),
        )
    ).one_or_none()
    if row is None:
        raise NotFound("pair", f"{teacher} → {student} on {entry.name}/{split}", "scan both models on this split")
    return pair_detail(
        teacher=teacher,
        student=student,
        dataset=entry.name,
        split=split,
        right_both=row.both_right,
        positive_flips=row.positive_flips,
        negative_flips=row.negative_flips,
        wrong_both=row.n_samples - row.both_right - row.positive_flips - row.negative_flips,
        n_classes=row.n_classes,
        flip_entropy_nats=row.flip_entropy_nats,
    )


def chosen_pairs(connection: Connection, dataset: str, split: str, wanted: Sequence[tuple[str, str]]) -> list[Pair]:
    """The named (teacher, student) pairs of one split that have been counted, in the order asked for.

    Raises:
        NotFound: unknown data set.
    """
    board = Board(dataset_id(connection, dataset), dataset, split)
    named = {name for pair in wanted for name in pair}
    found = connection.execute(select(model_table.c.id, model_table.c.name).where(model_table.c.name.in_(named)))
    ids = {row.name: row.id for row in found}
    keys = [(ids[teacher], ids[student]) for teacher, student in wanted if teacher in ids and student in ids]
    rows: dict[tuple[int, int], Row[Any]] = {}
    for start in range(0, len(keys), AT_ONCE):
        chosen = tuple_(_c.teacher_id, _c.student_id).in_(keys[start : start + AT_ONCE])
        statement = select(pair_table).where(_c.dataset_id == board.dataset_id, _c.split == split, chosen)
        rows |= {(row.teacher_id, row.student_id): row for row in connection.execute(statement)}
    return _pairs([(rows[key], board) for key in keys if key in rows], {id: name for name, id in ids.items()})


@dataclass(frozen=True)
class _Filter:
    """What a page asks of one board, apart from its place in the order."""

    teachers: Sequence[int] | None
    students: Sequence[int] | None
    bounds: Ranges


def _board_rows(
    connection: Connection, board: Board, sort: _Order, last: Sequence[Any] | None, wanted: _Filter, count: int
) -> Sequence[Row[Any]]:
    """The first `count` rows of a board after `last`, by the road that is cheap for this question.

    1. One teacher or one student: its row or column of the table, sorted.
    2. Nothing to filter by but the sort column: the index gives the rows in order.
    3. Other filters: the first few thousand rows in order usually hold a page of matches; where they do not, one
       reading of the whole board in its stored order costs less than visiting it in the order of an index.
    """
    few = [ids for ids in (wanted.teachers, wanted.students) if ids is not None and len(ids) == 1]
    free = wanted.teachers is None and wanted.students is None and set(wanted.bounds) <= {sort.name}
    indexed = sort.name in INDEXED and not few
    if indexed and free:
        return connection.execute(_select(board, sort, last, wanted, _as_is).limit(count)).all()
    if indexed:
        near = _select(board, sort, last, _Filter(None, None, {}), _as_is).limit(NEAR).subquery()
        keys = [near.c[key.name] for key in sort.columns]
        statement = select(near).where(*_conditions(near.c, wanted, _as_is)).order_by(*sort.ordered(keys))
        rows = connection.execute(statement.limit(count)).all()
        if len(rows) == count:
            return rows
    return connection.execute(_select(board, sort, last, wanted, _unindexed).limit(count)).all()


@dataclass(frozen=True)
class _Order:
    """A sort column and a direction; ties go by teacher, then student, in the same direction."""

    name: str
    direction: str

    @property
    def columns(self) -> tuple[Column[Any], ...]:
        return (SORTS[self.name], _c.teacher_id, _c.student_id)

    def ordered(self, keys: Iterable[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
        return [key.desc() if self.direction == "desc" else key.asc() for key in keys]


def _select(board: Board, sort: _Order, last: Sequence[Any] | None, wanted: _Filter, how: _How) -> Select[Any]:
    keys = tuple(how(key) for key in sort.columns)
    statement = select(pair_table).where(
        _c.dataset_id == board.dataset_id, _c.split == board.split, *_conditions(_c, wanted, how)
    )
    if last is not None:
        value, last_dataset, last_split, *ids = last
        here, there = (board.dataset_id, board.split), (last_dataset, last_split)
        ascending = sort.direction == "asc"
        if here == there:
            statement = statement.where(after(keys, (value, *ids), sort.direction))
        elif (here > there) == ascending:
            # Equal values on a split that is sorted behind the cursor's are still to come.
            statement = statement.where(keys[0] >= value if ascending else keys[0] <= value)
        else:
            statement = statement.where(keys[0] > value if ascending else keys[0] < value)
    return statement.order_by(*sort.ordered(keys))


def _conditions(columns: Any, wanted: _Filter, how: _How) -> Iterator[ColumnElement[bool]]:
    for column, ids in ((columns.teacher_id, wanted.teachers), (columns.student_id, wanted.students)):
        if ids is not None:
            yield column == ids[0] if len(ids) == 1 else column.in_(ids)
    if wanted.students is not None and wanted.teachers is None and how is _unindexed:
        # Says nothing, but leads SQLite down the primary key, row by row, instead of through the whole board.
        yield columns.teacher_id.in_(select(model_table.c.id))
    for name, (low, high) in wanted.bounds.items():
        if low is not None:
            yield how(columns[name]) >= low
        if high is not None:
            yield how(columns[name]) <= high


def _as_is(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return column


def _unindexed(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """`+column`: the same value, for which no planner takes the column's index."""
    return UnaryExpression(column, operator=custom_op("+"), type_=column.type)


def _names(connection: Connection, ids: set[int]) -> dict[int, str]:
    rows = connection.execute(select(model_table.c.id, model_table.c.name).where(model_table.c.id.in_(ids)))
    return {row.id: row.name for row in rows}


def _pairs(rows: Sequence[tuple[Row[Any], Board]], names: Mapping[int, str]) -> list[Pair]:
    """Records of rows, with Wilson's and Newcombe's intervals for all of them at once."""
    if not rows:
        return []
    counts = np.array(
        [(r.both_right, r.positive_flips, r.negative_flips, r.n_samples) for r, _ in rows], dtype=np.int64
    )
    both, positive, negative, n = counts.T
    positive_low, positive_high = wilson_interval(positive, n)
    negative_low, negative_high = wilson_interval(negative, n)
    low, high = newcombe_paired_interval(both, positive, negative, n)
    ends = np.stack([positive_low, positive_high, negative_low, negative_high, low, high], axis=1).tolist()
    return [
        Pair(
            teacher=names[row.teacher_id],
            student=names[row.student_id],
            dataset=board.dataset,
            split=board.split,
            n_samples=row.n_samples,
            n_classes=row.n_classes,
            teacher_accuracy=row.teacher_accuracy,
            student_accuracy=row.student_accuracy,
            accuracy_difference=row.accuracy_difference,
            accuracy_difference_low=end[4],
            accuracy_difference_high=end[5],
            positive_flip_rate=row.positive_flip_rate,
            positive_flip_rate_low=end[0],
            positive_flip_rate_high=end[1],
            negative_flip_rate=row.negative_flip_rate,
            negative_flip_rate_low=end[2],
            negative_flip_rate_high=end[3],
            flip_entropy_nats=row.flip_entropy_nats,
            mcnemar_p_value=row.mcnemar_p_value,
        )
        for (row, board), end in zip(rows, ends, strict=True)
    ]
