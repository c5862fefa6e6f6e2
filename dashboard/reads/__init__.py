"""The one door from pages to what is stored: every question a page asks, answered with records.

Nothing here writes. Pages and figures import the records' types from here or from `backend.domain`.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from backend.domain.errors import NotFound
from backend.store.queries.analyses import CandidateTeacher, Measured, Plane, PlaneModel, Run
from backend.store.queries.board_columns import Columns
from backend.store.queries.density import Density, HeatMap, PairFilter, Positions
from backend.store.queries.job_table import JobRow
from backend.store.queries.jobs import Study
from backend.store.queries.pairs import Board
from backend.store.queries.zoo import ZooRow
from backend.store.workers import Worker
from dashboard.reads.jobs import JobReads
from dashboard.reads.measured import MeasuredReads
from dashboard.reads.pairs import ClassTable, PairReads

__all__ = [
    "Board",
    "CandidateTeacher",
    "ClassTable",
    "Columns",
    "Density",
    "HeatMap",
    "JobRow",
    "Measured",
    "PairFilter",
    "Plane",
    "PlaneModel",
    "Positions",
    "Reads",
    "Run",
    "Study",
    "Worker",
    "ZooRow",
    "as_id",
    "to_json",
]


class Reads(PairReads, JobReads, MeasuredReads):
    """Questions to one store."""


def as_id(text: str, kind: str = "job") -> UUID:
    """A UUID from an address.

    Raises:
        NotFound: no id at all.
    """
    try:
        return UUID(text)
    except ValueError:
        raise NotFound(kind, text, "an id looks like 0b3c1f0e-…; see the list") from None


def to_json(record: Any) -> str:
    """Indented JSON of a stored value."""
    return json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)
