"""Where models and data sets are kept. Names are unique; the same content under the same name is the same entry."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Table, insert, select, update

from backend.domain.catalog import Family, Lineage, Model, Preprocessing
from backend.domain.datasets import Dataset, Split
from backend.domain.errors import Conflict, NotFound
from backend.domain.records import canonical_json
from backend.store import tables
from backend.store.session import db_now

# What makes two entries of one name the same. Ids, times, reported accuracies and lineage say nothing about content.
_MODEL_CONTENT = (
    "source",
    "architecture",
    "kwargs",
    "pretrained",
    "checkpoint",
    "init_seed",
    "weights_hash",
    "preprocessing",
    "num_classes",
    "label_space",
    "family",
)
_DATASET_CONTENT = ("source", "location", "options", "label_space", "class_names", "splits")
_CHUNK = 500  # bound parameters of one statement stay below SQLite's limit


def add_model(connection: Connection, model: Model) -> Model:
    """Insert an entry, or return the old one of the same name and content. The database's clock dates it.

    A file that moved is the same content as long as the weights' hash is: the entry then points to the new place.

    Raises:
        Conflict: the name belongs to a different entry.
    """
    stored = _row(connection, tables.models, model.name)
    if stored is None:
        values = _model_values(model)
        connection.execute(insert(tables.models).values(**values, created_at=db_now()))
        return get_model(connection, model.name)
    old = _model(stored)
    ignored = {"checkpoint"} if old.weights_hash is not None else set()
    _same_or_conflict("model", old, model, [name for name in _MODEL_CONTENT if name not in ignored])
    if old.checkpoint != model.checkpoint:
        connection.execute(
            update(tables.models).where(tables.models.c.name == model.name).values(checkpoint=model.checkpoint)
        )
    return get_model(connection, model.name)


def get_model(connection: Connection, name: str) -> Model:
    """One entry by its name.

    Raises:
        NotFound: with the closest names.
    """
    row = _row(connection, tables.models, name)
    if row is None:
        raise NotFound("model", name, _closest(name, model_names(connection)))
    return _model(row)


def get_models(connection: Connection, names: Iterable[str]) -> list[Model]:
    """Entries by name, in the order asked for.

    Raises:
        NotFound: the first name that is unknown.
    """
    wanted = list(names)
    found: dict[str, Model] = {}
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        for row in connection.execute(select(tables.models).where(tables.models.c.name.in_(chunk))):
            found[row.name] = _model(row)
    for name in wanted:
        if name not in found:
            raise NotFound("model", name, _closest(name, model_names(connection)))
    return [found[name] for name in wanted]


def find_models(connection: Connection, patterns: Sequence[str]) -> list[Model]:
    """Entries whose names match any pattern (`*`, `?`, `[a-z]`; case counts), each once, by name.

    Raises:
        NotFound: a pattern that matches nothing.
    """
    names = model_names(connection)
    chosen: set[str] = set()
    for pattern in patterns:
        matching = {pattern} if pattern in names else set(fnmatch.filter(names, pattern))
        if not matching:
            raise NotFound("model", pattern, _closest(pattern, names))
        chosen |= matching
    return get_models(connection, sorted(chosen))


def model_names(connection: Connection) -> list[str]:
    return list(connection.execute(select(tables.models.c.name).order_by(tables.models.c.name)).scalars())


def set_weights_hash(connection: Connection, name: str, weights_hash: str, param_count: int) -> None:
    """Note what the weights of an entry are, once they were built for the first time (synced tags have none)."""
    connection.execute(
        update(tables.models)
        .where(tables.models.c.name == name, tables.models.c.weights_hash.is_(None))
        .values(weights_hash=weights_hash, param_count=param_count)
    )


def sync_models(connection: Connection, models: Sequence[Model]) -> tuple[int, int, int]:
    """Bulk-insert entries and refresh the metadata of those that are there, in one go: (added, updated, kept).

    An entry of the same name that is not a pretrained timm entry belongs to a user and is kept as it is, and so are
    known weights. Doing it twice changes nothing.
    """
    old = {row.name: row for row in connection.execute(select(tables.models))}
    fresh = [model for model in models if model.name not in old]
    added = _insert_all(connection, tables.models, [_model_values(model) for model in fresh])
    updated = kept = 0
    for model in models:
        if model.name not in old:
            continue
        before = _model(old[model.name])
        after = before.model_copy(
            update={
                "preprocessing": model.preprocessing,
                "num_classes": model.num_classes,
                "label_space": model.label_space,
                "family": model.family,
                "param_count": before.param_count if model.param_count is None else model.param_count,
                "reported_accuracy": {**before.reported_accuracy, **model.reported_accuracy},
            }
        )
        if before.source != "timm" or not before.pretrained or before.weights_hash is not None or after == before:
            kept += 1
            continue
        connection.execute(
            update(tables.models).where(tables.models.c.name == model.name).values(**_model_values(after))
        )
        updated += 1
    return added, updated, kept


def add_dataset(connection: Connection, dataset: Dataset) -> Dataset:
    """Insert a data set, or return the old one of the same name and content.

    Raises:
        Conflict: the name belongs to a different data set.
    """
    stored = _row(connection, tables.datasets, dataset.name)
    if stored is not None:
        old = _dataset(stored)
        _same_or_conflict("data set", old, dataset, _DATASET_CONTENT)
        return old
    connection.execute(insert(tables.datasets).values(**_dataset_values(dataset), created_at=db_now()))
    return get_dataset(connection, dataset.name)


def extend_external(connection: Connection, dataset: Dataset) -> None:
    """Note further classes and splits of an external data set, which an import brought."""
    connection.execute(
        update(tables.datasets)
        .where(tables.datasets.c.name == dataset.name, tables.datasets.c.source == "external")
        .values(
            class_names=list(dataset.class_names),
            splits={name: split.model_dump(mode="json") for name, split in dataset.splits.items()},
        )
    )


def get_dataset(connection: Connection, name: str) -> Dataset:
    """One data set by its name.

    Raises:
        NotFound: with the closest names.
    """
    row = _row(connection, tables.datasets, name)
    if row is None:
        raise NotFound("dataset", name, _closest(name, dataset_names(connection)))
    return _dataset(row)


def dataset_names(connection: Connection) -> list[str]:
    return list(connection.execute(select(tables.datasets.c.name).order_by(tables.datasets.c.name)).scalars())


def moment(seconds: float) -> datetime:
    """The database's seconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(seconds, tz=UTC)


def _row(connection: Connection, table: Table, name: str) -> Row[Any] | None:
    return connection.execute(select(table).where(table.c.name == name)).one_or_none()


def _insert_all(connection: Connection, table: Table, values: list[dict[str, Any]]) -> int:
    now = connection.execute(select(db_now())).scalar_one()
    if values:
        connection.execute(insert(table), [{**value, "created_at": now} for value in values])
    return len(values)


def _same_or_conflict(kind: str, old: Model | Dataset, new: Model | Dataset, fields: Iterable[str]) -> None:
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    for field in fields:
        if canonical_json(before[field]) != canonical_json(after[field]):
            raise Conflict(
                f"there is another {kind} named {new.name!r} (its {field} differs: "
                f"{_short(before[field])}, not {_short(after[field])}); choose another name"
            )


def _short(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _closest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    if not names:
        return "there are none yet"
    return f"there are {', '.join(names)}" if len(names) <= 10 else f"{len(names)} are there, none with a similar name"


def _model_values(model: Model) -> dict[str, Any]:
    values = model.model_dump(mode="json", exclude={"id", "created_at"})
    return {**values, "uid": model.id}


def _dataset_values(dataset: Dataset) -> dict[str, Any]:
    values = dataset.model_dump(mode="json", exclude={"id", "created_at"})
    return {**values, "uid": dataset.id}


def _model(row: Row[Any]) -> Model:
    return Model(
        id=row.uid,
        name=row.name,
        source=row.source,
        architecture=row.architecture,
        kwargs=row.kwargs,
        pretrained=row.pretrained,
        checkpoint=row.checkpoint,
        init_seed=row.init_seed,
        weights_hash=row.weights_hash,
        preprocessing=None if row.preprocessing is None else Preprocessing.model_validate(row.preprocessing),
        num_classes=row.num_classes,
        label_space=row.label_space,
        family=Family(row.family),
        param_count=row.param_count,
        reported_accuracy=row.reported_accuracy,
        lineage=None if row.lineage is None else Lineage.model_validate(row.lineage),
        created_at=moment(row.created_at),
    )


def _dataset(row: Row[Any]) -> Dataset:
    return Dataset(
        id=row.uid,
        name=row.name,
        source=row.source,
        location=row.location,
        options=row.options,
        label_space=row.label_space,
        class_names=tuple(row.class_names),
        splits={name: Split.model_validate(split) for name, split in row.splits.items()},
        created_at=moment(row.created_at),
    )
