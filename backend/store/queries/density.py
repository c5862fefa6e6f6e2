"""Which pairs are meant, how they lie, and how often: selection, 2-D counts and the heat map, on columns in memory.

P pairs of a board, of which a selection S is looked at. Pure: columns in, arrays out.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from backend.domain.errors import BadInput
from backend.store.queries.board_columns import NUMBERS, Columns

Positions = npt.NDArray[np.int64]
View = tuple[float, float, float, float]
"""x from, x to, y from, y to."""


@dataclass(frozen=True)
class PairFilter:
    """Which pairs: names or patterns (several by commas) on either side, families, ranges of columns."""

    teacher: str = ""
    student: str = ""
    teacher_family: str = ""
    student_family: str = ""
    ranges: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        return (
            self.teacher,
            self.student,
            self.teacher_family,
            self.student_family,
            tuple(sorted(self.ranges.items())),
        )


@dataclass(frozen=True)
class Density:
    """How many pairs fall into each cell: `counts` [rows, columns], cell edges evenly spaced over the view."""

    counts: npt.NDArray[np.int64]
    view: View

    @property
    def x(self) -> npt.NDArray[np.float64]:
        """Middles of the cells along x."""
        return _middles(self.view[0], self.view[1], self.counts.shape[1])

    @property
    def y(self) -> npt.NDArray[np.float64]:
        return _middles(self.view[2], self.view[3], self.counts.shape[0])


@dataclass(frozen=True)
class HeatMap:
    """Means over groups of neighbouring models: `values` [student groups, teacher groups], NaN where no pair is."""

    values: npt.NDArray[np.float32]
    teachers: tuple[str, ...]
    students: tuple[str, ...]
    models_a_cell: int


def select(columns: Columns, wanted: PairFilter) -> Positions:
    """Positions of the pairs that pass, in the order of the columns.

    Raises:
        BadInput: a column that cannot be bounded.
    """
    keep = np.ones(len(columns), dtype=np.bool_)
    for side, pattern, family in (
        (columns.teacher, wanted.teacher, wanted.teacher_family),
        (columns.student, wanted.student, wanted.student_family),
    ):
        allowed = _named(columns, pattern)
        if family:
            allowed &= np.array([one == family for one in columns.families], dtype=np.bool_)
        if not allowed.all():
            keep &= allowed[side]
    for name, (low, high) in wanted.ranges.items():
        if name not in NUMBERS:
            raise BadInput("range", name, f"one of {', '.join(NUMBERS)}")
        values = getattr(columns, name)
        if low is not None:
            keep &= values >= low
        if high is not None:
            keep &= values <= high
    return np.flatnonzero(keep)


def _named(columns: Columns, pattern: str) -> npt.NDArray[np.bool_]:
    """Which models a filter names: patterns by commas; a word without a wildcard that is no name stands anywhere."""
    parts = [part.strip() for part in pattern.split(",") if part.strip()]
    if not parts:
        return np.ones(len(columns.names), dtype=np.bool_)
    known = set(columns.names)
    allowed = np.zeros(len(columns.names), dtype=np.bool_)
    for part in parts:
        exact = part in known
        lowered = part.lower() if any(sign in part for sign in "*?[") else f"*{part.lower()}*"
        for i, name in enumerate(columns.names):
            allowed[i] |= name == part if exact else fnmatch.fnmatchcase(name.lower(), lowered)
    return allowed


def extent(columns: Columns, chosen: Positions, x: str, y: str) -> View:
    """The smallest view that holds all chosen pairs, with a margin; a view of its own where there is none."""
    if not len(chosen):
        return (-1.0, 1.0, 0.0, 1.0)
    ends: list[float] = []
    for name in (x, y):
        values = getattr(columns, name)[chosen]
        low, high = float(values.min()), float(values.max())
        margin = 0.04 * (high - low) or 0.01
        ends += [low - margin, high + margin]
    return (ends[0], ends[1], ends[2], ends[3])


def inside(columns: Columns, chosen: Positions, x: str, y: str, view: View) -> Positions:
    """The chosen pairs that lie in the view."""
    xs, ys = getattr(columns, x)[chosen], getattr(columns, y)[chosen]
    seen: Positions = chosen[(xs >= view[0]) & (xs <= view[1]) & (ys >= view[2]) & (ys <= view[3])]
    return seen


def density(
    columns: Columns, chosen: Positions, x: str, y: str, view: View, shape: tuple[int, int] = (90, 150)
) -> Density:
    """How many of the chosen pairs lie in each cell of the view; every pair in the view is counted once.

    Args:
        shape: rows (y) and columns (x) of cells.
    """
    rows, cells = shape
    left, right, bottom, top = view
    seen = inside(columns, chosen, x, y, view)
    across = _cells(getattr(columns, x)[seen], left, right, cells)
    up = _cells(getattr(columns, y)[seen], bottom, top, rows)
    counts = np.bincount(up * cells + across, minlength=rows * cells).reshape(rows, cells)
    return Density(counts.astype(np.int64), view)


def sample(positions: Positions, most: int, seed: int = 0) -> Positions:
    """At most `most` positions, drawn with a seed: the same picture for the same selection."""
    if len(positions) <= most:
        return positions
    drawn = np.random.default_rng(seed).choice(len(positions), most, replace=False)
    return positions[np.sort(drawn)]


def heat_map(columns: Columns, chosen: Positions, value: str, most: int = 160) -> HeatMap:
    """Means of a column over the chosen pairs, models in the order of their accuracy on both sides.

    Sides with more than `most` models are cut into groups of neighbours.
    """
    present = np.zeros(len(columns.names), dtype=np.bool_)
    present[columns.teacher[chosen]] = True
    present[columns.student[chosen]] = True
    kept = np.flatnonzero(present)
    place = np.zeros(len(columns.names), dtype=np.int64)
    place[kept] = np.arange(len(kept))
    group = max(1, -(-len(kept) // most))
    cells = -(-len(kept) // group) if len(kept) else 0
    where = (place[columns.student[chosen]] // group) * cells + place[columns.teacher[chosen]] // group
    sums = np.bincount(where, weights=getattr(columns, value)[chosen], minlength=cells * cells)
    counts = np.bincount(where, minlength=cells * cells)
    means = np.divide(sums, counts, out=np.full(cells * cells, np.nan), where=counts > 0)
    labels = tuple(_group_name(columns, kept[i * group : (i + 1) * group]) for i in range(cells))
    return HeatMap(means.reshape(cells, cells).astype(np.float32), labels, labels, group)


def _group_name(columns: Columns, members: Positions) -> str:
    first = columns.names[members[0]]
    return first if len(members) == 1 else f"{first} … {columns.names[members[-1]]}"


def _cells(values: npt.NDArray[np.float32], low: float, high: float, count: int) -> npt.NDArray[np.int64]:
    scaled = (values.astype(np.float64) - low) * (count / (high - low))
    return np.clip(scaled, 0, count - 1).astype(np.int64)


def _middles(low: float, high: float, count: int) -> npt.NDArray[np.float64]:
    return low + (np.arange(count) + 0.5) * (high - low) / count
