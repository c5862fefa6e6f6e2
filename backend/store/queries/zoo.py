"""The zoo as a table: every model with its accuracy on one split, filtered and sorted in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from backend.domain.records import Record
from backend.store.catalog import moment
from backend.store.queries.catalog import dataset_id
from backend.store.queries.grid_filters import conditions, order
from backend.store.tables import evaluations as evaluation_table
from backend.store.tables import models as model_table

_e, _m = evaluation_table.c, model_table.c


class ZooRow(Record):
    """One model. `accuracy` is on the split that was asked for, from the evaluation with most samples."""

    name: str
    family: str
    source: str
    architecture: str | None
    param_count: int | None
    accuracy: float | None
    n_samples: int | None
    n_datasets: int
    n_failed: int
    student: str | None
    method: str | None
    teachers: tuple[str, ...]
    created_at: datetime


def zoo(
    connection: Connection,
    *,
    dataset: str | None = None,
    split: str | None = None,
    search: str | None = None,
    filters: Mapping[str, Any] | None = None,
    sort: Sequence[Mapping[str, Any]] | None = None,
    offset: int = 0,
    limit: int = 100,
) -> tuple[list[ZooRow], int]:
    """A window of rows, and how many there are in all.

    Args:
        search: words that must all stand in the name.
        filters, sort: as in `grid_filters`.

    Raises:
        NotFound: unknown data set.
        BadInput: unknown columns.
    """
    statement, columns = _joined(connection, dataset, split)
    wanted = conditions(filters, columns)
    for word in (search or "").lower().split():
        escaped = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        wanted.append(func.lower(_m.name).like(f"%{escaped}%", escape="\\"))
    statement = statement.where(*wanted)
    # How models scored need not be looked up to count them, unless that is what they are filtered by.
    own = set(filters or ()) <= {"name", "family", "source", "architecture", "param_count"}
    counted = select(_m.id).where(*wanted) if own else statement.order_by(None)
    total = connection.execute(select(func.count()).select_from(counted.subquery())).scalar_one()
    rows = connection.execute(statement.order_by(*order(sort, columns), _m.name).offset(offset).limit(limit))
    return [_row(row) for row in rows], int(total)


def is_empty(connection: Connection) -> bool:
    """Whether there is no model at all."""
    return connection.execute(select(_m.id).limit(1)).first() is None


def runnable(connection: Connection, dataset: str, split: str, n_classes: int) -> list[tuple[str, float]]:
    """Models with weights and this number of classes that were scored on a split: name and accuracy, the best first.

    Raises:
        NotFound: unknown data set.
    """
    statement, columns = _joined(connection, dataset, split)
    accuracy = columns["accuracy"]
    statement = statement.where(
        _m.source != "external", accuracy.is_not(None), or_(_m.num_classes.is_(None), _m.num_classes == n_classes)
    )
    rows = connection.execute(statement.order_by(accuracy.desc(), _m.name))
    return [(row.name, float(row.accuracy)) for row in rows]


def _joined(
    connection: Connection, dataset: str | None, split: str | None
) -> tuple[Select[Any], dict[str, ColumnElement[Any]]]:
    """Models beside their evaluation on a split, and the columns a grid may filter and sort."""
    place = (_e.dataset_id == (-1 if dataset is None else dataset_id(connection, dataset)), _e.split == (split or ""))
    newest = func.row_number().over(
        partition_by=_e.model_id, order_by=(_e.n_samples.desc(), _e.created_at.desc(), _e.id.desc())
    )
    ranked = (
        select(_e.model_id, _e.accuracy, _e.n_samples, newest.label("rank"))
        .where(*place, _e.state == "ready")
        .subquery()
    )
    ready = (
        select(_e.model_id, func.count(_e.dataset_id.distinct()).label("n"))
        .where(_e.state == "ready")
        .group_by(_e.model_id)
        .subquery()
    )
    failed = select(_e.model_id, func.count().label("n")).where(_e.state == "failed").group_by(_e.model_id).subquery()
    n_datasets, n_failed = func.coalesce(ready.c.n, 0), func.coalesce(failed.c.n, 0)
    statement = (
        select(
            _m.name,
            _m.family,
            _m.source,
            _m.architecture,
            _m.param_count,
            _m.lineage,
            _m.created_at,
            ranked.c.accuracy,
            ranked.c.n_samples,
            n_datasets.label("n_datasets"),
            n_failed.label("n_failed"),
        )
        .select_from(model_table)
        .outerjoin(ranked, and_(ranked.c.model_id == _m.id, ranked.c.rank == 1))
        .outerjoin(ready, ready.c.model_id == _m.id)
        .outerjoin(failed, failed.c.model_id == _m.id)
    )
    columns: dict[str, ColumnElement[Any]] = {
        "name": _m.name,
        "family": _m.family,
        "source": _m.source,
        "architecture": _m.architecture,
        "param_count": _m.param_count,
        "accuracy": ranked.c.accuracy,
        "n_samples": ranked.c.n_samples,
        "n_datasets": n_datasets,
        "student": _m.lineage["student"].as_string(),
        "method": _m.lineage["method"].as_string(),
        "created_at": _m.created_at,
    }
    return statement, columns


def _row(row: Any) -> ZooRow:
    lineage = row.lineage or {}
    return ZooRow(
        name=row.name,
        family=row.family,
        source=row.source,
        architecture=row.architecture,
        param_count=row.param_count,
        accuracy=row.accuracy,
        n_samples=row.n_samples,
        n_datasets=row.n_datasets,
        n_failed=row.n_failed,
        student=lineage.get("student"),
        method=lineage.get("method") or lineage.get("kind"),
        teachers=tuple(lineage.get("teachers", ())),
        created_at=moment(row.created_at),
    )
