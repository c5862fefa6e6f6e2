"""Pairs: all of a board at once, and one down to its samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from backend import embeddings, thumbnails
from backend.domain.errors import NotFound
from backend.domain.flips import class_flips
from backend.domain.pairs import ClassFlips, FlippedSample, Pair, PairDetail, class_q_values, class_records
from backend.store.queries import board_columns, density, flipped
from backend.store.queries import catalog as catalog_queries
from backend.store.queries import pairs as pair_queries
from backend.store.queries.board_columns import Columns
from backend.store.queries.density import Density, HeatMap, PairFilter, Positions
from backend.store.queries.paging import Page
from backend.store.queries.pairs import Board
from dashboard.reads.catalog import CatalogReads


class ClassTable:
    """Flips of one pair per class: the records, largest share first; q-values and counts by class index."""

    def __init__(self, pair: flipped.Compared) -> None:
        counts = class_flips(pair.teacher_right, pair.student_right, pair.labels, max(1, pair.n_classes))
        self.records: list[ClassFlips] = class_records(counts, pair.class_names())
        self.q_values = class_q_values(counts)
        self.positive = counts.positive
        self.names = pair.class_names()


class PairReads(CatalogReads):
    """Questions about pairs of models."""

    def columns(self, board: Board, *, wait: bool = False) -> Columns | None:
        """All pairs of a board in memory; None while a big one is read for the first time."""
        return self.boards_cache.columns(board, wait=wait)

    def chosen(self, columns: Columns, wanted: PairFilter, sort: tuple[str, bool] | None = None) -> Positions:
        return self.boards_cache.chosen(columns, wanted, sort)

    def pair_records(self, columns: Columns, positions: Positions) -> list[Pair]:
        return board_columns.pair_records(columns, positions)

    def first_pairs(self, board: Board, wanted: PairFilter, sort: str, count: int) -> list[Pair]:
        """The first pairs straight from SQL, for the time in which a big board is being read."""
        with self.store.read() as connection:
            try:
                page = pair_queries.pairs(
                    connection,
                    dataset=board.dataset,
                    split=board.split,
                    teacher=wanted.teacher or None,
                    student=wanted.student or None,
                    ranges=wanted.ranges,
                    sort=sort,
                    limit=min(count, 200),
                )
            except NotFound:
                return []
        return list(page.items)

    def density(self, columns: Columns, chosen: Positions, x: str, y: str, view: density.View) -> Density:
        return density.density(columns, chosen, x, y, view)

    def inside(self, columns: Columns, chosen: Positions, x: str, y: str, view: density.View) -> Positions:
        return density.inside(columns, chosen, x, y, view)

    def extent(self, columns: Columns, chosen: Positions, x: str, y: str) -> density.View:
        return density.extent(columns, chosen, x, y)

    def sample(self, positions: Positions, most: int) -> Positions:
        return density.sample(positions, most)

    def heat_map(self, columns: Columns, chosen: Positions, value: str) -> HeatMap:
        return density.heat_map(columns, chosen, value)

    def pair(self, teacher: str, student: str, dataset: str, split: str) -> PairDetail:
        with self.store.read() as connection:
            return pair_queries.pair(connection, teacher, student, dataset=dataset or None, split=split or None)

    def pair_boards(self, teacher: str, student: str) -> list[Board]:
        """Boards on which both were scored.

        Raises:
            NotFound: an unknown name.
        """
        with self.store.read() as connection:
            scored = []
            for name in (teacher, student):
                found = catalog_queries.evaluations(connection, model=name, state="ready", limit=200)
                scored.append({(one.dataset, one.split) for one in found.items})
            return [one for one in pair_queries.boards(connection) if (one.dataset, one.split) in scored[0] & scored[1]]

    def class_table(self, detail: PairDetail) -> ClassTable:
        """Flips per class of one pair."""
        return ClassTable(self._compared(detail))

    def samples(
        self, detail: PairDetail, *, kind: str, class_index: int | None, limit: int, cursor: str | None = None
    ) -> Page[FlippedSample]:
        """A page of a pair's samples of one kind.

        Raises:
            BadInput: a class that the data set does not have, or a cursor of another question.
        """
        return flipped.samples(
            self.store,
            self.settings,
            detail.teacher,
            detail.student,
            dataset=detail.dataset,
            split=detail.split,
            kind=kind,
            class_index=class_index,
            limit=limit,
            cursor=cursor,
        )

    def class_names(self, dataset: str) -> list[str]:
        return list(self.dataset(dataset).class_names)

    def has_thumbnails(self, dataset: str, split: str) -> bool:
        found = self.dataset(dataset).splits.get(split)
        return found is not None and bool(thumbnails.packed_ids(self.settings, found.fingerprint))

    def embedding(self, dataset: str) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """The embedding table [C, E] of a data set's classes, where somebody put one; NaN rows have none.

        Looked for under `<data directory>/embeddings/`: `<data set>.npz`, else `<label space>.npz`, as
        `backend.embeddings` reads them.

        Raises:
            BadInput: a file of another shape.
        """
        return embeddings.of_dataset(self.settings, self.dataset(dataset))

    def _compared(self, detail: PairDetail) -> flipped.Compared:
        return flipped.compared(
            self.store, self.settings, detail.teacher, detail.student, dataset=detail.dataset, split=detail.split
        )
