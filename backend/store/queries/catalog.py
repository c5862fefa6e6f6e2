"""Lists of models, data sets and evaluations."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

from backend.domain.catalog import Family, Model
from backend.domain.datasets import Dataset
from backend.domain.errors import BadInput, NotFound
from backend.domain.evaluations import Evaluation
from backend.store import catalog
from backend.store.catalog import moment
from backend.store.queries.paging import Page, after, check_limit, cut, decode_cursor, encode_cursor, parse_sort
from backend.store.tables import datasets as dataset_table
from backend.store.tables import evaluations as evaluation_table
from backend.store.tables import models as model_table

MODEL_SORTS: dict[str, ColumnElement[Any]] = {
    "name": model_table.c.name,
    # Unknown counts come first when ascending, on both databases.
    "param_count": func.coalesce(model_table.c.param_count, -1),
    "created_at": model_table.c.created_at,
}
MODEL_SOURCES = ("timm", "factory", "external")
EVALUATION_SORTS: dict[str, ColumnElement[Any]] = {
    "created_at": evaluation_table.c.created_at,
    "accuracy": func.coalesce(evaluation_table.c.accuracy, -1.0),
    "n_samples": evaluation_table.c.n_samples,
}
_NUMBERS = (int, float)


def models(
    connection: Connection,
    *,
    name: str | None = None,
    family: str | None = None,
    source: str | None = None,
    sort: str = "name",
    limit: int = 50,
    cursor: str | None = None,
) -> Page[Model]:
    """Zoo entries. `name` is a pattern (`resnet*`); without a wildcard it matches anywhere in the name.

    Raises:
        BadInput: unknown family, source or sort column, limit out of range, foreign cursor.
    """
    limit = check_limit(limit)
    column_name, direction = parse_sort(sort, MODEL_SORTS)
    _one_of("family", family, [member.value for member in Family])
    _one_of("source", source, MODEL_SOURCES)
    query = ["models", sort, name, family, source]
    c = model_table.c
    statement = select(c.name, MODEL_SORTS[column_name].label("key"))
    if name is not None:
        statement = statement.where(matches(c.name, name))
    if family is not None:
        statement = statement.where(c.family == family)
    if source is not None:
        statement = statement.where(c.source == source)
    kind = str if column_name == "name" else _NUMBERS
    rows, more = _page(
        connection, statement, (MODEL_SORTS[column_name], c.name), direction, query, cursor, (kind, str), limit
    )
    entries = catalog.get_models(connection, [row.name for row in rows])
    return Page(items=tuple(entries), next_cursor=encode_cursor(query, [rows[-1].key, rows[-1].name]) if more else None)


def datasets(connection: Connection, *, limit: int = 50, cursor: str | None = None) -> Page[Dataset]:
    """Data sets by name.

    Raises:
        BadInput: limit out of range, foreign cursor.
    """
    limit = check_limit(limit)
    c = dataset_table.c
    rows, more = _page(connection, select(c.name), (c.name,), "asc", ["datasets"], cursor, (str,), limit)
    items = tuple(catalog.get_dataset(connection, row.name) for row in rows)
    return Page(items=items, next_cursor=encode_cursor(["datasets"], [rows[-1].name]) if more else None)


def evaluations(
    connection: Connection,
    *,
    model: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    state: str | None = None,
    sort: str = "-created_at",
    limit: int = 50,
    cursor: str | None = None,
) -> Page[Evaluation]:
    """Accuracy rows, the newest first; failed models are among them, with their reasons.

    Raises:
        NotFound: unknown model or data set.
        BadInput: unknown state or sort column, limit out of range, foreign cursor.
    """
    limit = check_limit(limit)
    column_name, direction = parse_sort(sort, EVALUATION_SORTS)
    _one_of("state", state, ("ready", "failed"))
    query = ["evaluations", sort, model, dataset, split, state]
    e = evaluation_table.c
    key = EVALUATION_SORTS[column_name]
    statement = _evaluation_rows().add_columns(key.label("sort_key"))
    if model is not None:
        statement = statement.where(e.model_id == model_id(connection, model))
    if dataset is not None:
        statement = statement.where(e.dataset_id == dataset_id(connection, dataset))
    if split is not None:
        statement = statement.where(e.split == split)
    if state is not None:
        statement = statement.where(e.state == state)
    rows, more = _page(connection, statement, (key, e.id), direction, query, cursor, (_NUMBERS, int), limit)
    items = tuple(_evaluation(row) for row in rows)
    return Page(items=items, next_cursor=encode_cursor(query, [rows[-1].sort_key, rows[-1].id]) if more else None)


def evaluation(connection: Connection, uid: UUID) -> Evaluation:
    """One accuracy row.

    Raises:
        NotFound: no such id.
    """
    row = connection.execute(_evaluation_rows().where(evaluation_table.c.uid == uid)).one_or_none()
    if row is None:
        raise NotFound("evaluation", str(uid))
    return _evaluation(row)


def model_id(connection: Connection, name: str) -> int:
    """The small id behind a model's name, for joins; NotFound names the closest."""
    found = connection.execute(select(model_table.c.id).where(model_table.c.name == name)).scalar_one_or_none()
    if found is None:
        catalog.get_model(connection, name)
    return int(found)  # type: ignore[arg-type]


def model_ids(connection: Connection, pattern: str) -> list[int] | None:
    """The ids of the models a filter names: one name, or a pattern with wildcards. None where every model is meant.

    Raises:
        NotFound: a name without wildcard that is unknown.
    """
    if not any(sign in pattern for sign in "*?["):
        return [model_id(connection, pattern)]
    if pattern == "*":
        return None
    rows = connection.execute(select(model_table.c.id, model_table.c.name))
    return [row.id for row in rows if fnmatch.fnmatchcase(row.name, pattern)]


def dataset_id(connection: Connection, name: str) -> int:
    """The small id behind a data set's name, for joins; NotFound names the closest."""
    found = connection.execute(select(dataset_table.c.id).where(dataset_table.c.name == name)).scalar_one_or_none()
    if found is None:
        catalog.get_dataset(connection, name)
    return int(found)  # type: ignore[arg-type]


def matches(column: ColumnElement[str], pattern: str) -> ColumnElement[bool]:
    """A name filter: `*` and `?` are wildcards; without one the text may stand anywhere. Case does not count."""
    escaped = pattern.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    wild = escaped.replace("*", "%").replace("?", "_")
    return func.lower(column).like(wild if wild != escaped else f"%{escaped}%", escape="\\")


def _page(
    connection: Connection,
    statement: Select[Any],
    keys: Sequence[ColumnElement[Any]],
    direction: str,
    query: Any,
    cursor: str | None,
    kinds: Sequence[type | tuple[type, ...]],
    limit: int,
) -> tuple[Sequence[Row[Any]], bool]:
    last = decode_cursor(query, cursor, kinds)
    if last is not None:
        statement = statement.where(after(keys, last, direction))
    ordered = [key.desc() if direction == "desc" else key.asc() for key in keys]
    return cut(connection.execute(statement.order_by(*ordered).limit(limit + 1)).all(), limit)


def _one_of(field: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise BadInput(field, value, f"one of {', '.join(known)}")


def _evaluation_rows() -> Select[Any]:
    return (
        select(evaluation_table, model_table.c.name.label("model"), dataset_table.c.name.label("dataset"))
        .join(model_table, model_table.c.id == evaluation_table.c.model_id)
        .join(dataset_table, dataset_table.c.id == evaluation_table.c.dataset_id)
    )


def _evaluation(row: Row[Any]) -> Evaluation:
    return Evaluation(
        id=row.uid,
        model=row.model,
        dataset=row.dataset,
        split=row.split,
        subset=row.subset,
        dtype=row.dtype,
        state=row.state,
        reason=row.reason,
        accuracy=row.accuracy,
        n_samples=row.n_samples,
        n_classes=row.n_classes,
        inexpressible_classes=row.inexpressible_classes,
        bad_samples=tuple(row.bad_samples),
        images_per_s=row.images_per_s,
        has_logits=row.logits_uri is not None,
        provenance=row.provenance,
        created_at=moment(row.created_at),
    )
