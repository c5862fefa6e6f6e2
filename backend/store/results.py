"""Where results are kept: one row per evaluation, and the flips of every ordered pair on a split."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from backend.domain.errors import NotFound
from backend.domain.evaluations import Evaluation
from backend.domain.flips import PairTable
from backend.store import tables
from backend.store.catalog import get_dataset, get_model, moment
from backend.store.session import db_now

_CHUNK = 20_000
_IDS = 500


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation, its key by content, and where its predictions lie."""

    evaluation: Evaluation
    key: str
    predictions_uri: str | None = None
    predictions_sha256: str | None = None
    logits_uri: str | None = None

    @property
    def model(self) -> str:
        return self.evaluation.model


def record_evaluation(
    connection: Connection,
    evaluation: Evaluation,
    *,
    key: str,
    predictions_uri: str | None = None,
    predictions_sha256: str | None = None,
    logits_uri: str | None = None,
    job_id: UUID | None = None,
) -> Evaluation:
    """Store an evaluation under its key by content; one of the same key is replaced and keeps its id.

    A failure never replaces a result: the row that is there stays, and is returned.

    Raises:
        NotFound: the model or the data set is unknown.
    """
    e = tables.evaluations.c
    values = {
        "key": key,
        "model_id": _id(connection, tables.models, "model", evaluation.model),
        "dataset_id": _id(connection, tables.datasets, "dataset", evaluation.dataset),
        "predictions_uri": predictions_uri,
        "predictions_sha256": predictions_sha256,
        "logits_uri": logits_uri,
        "job_id": job_id,
        **evaluation.model_dump(mode="json", exclude={"id", "model", "dataset", "has_logits", "created_at"}),
    }
    old = connection.execute(select(e.id, e.state).where(e.key == key)).one_or_none()
    if old is None:
        connection.execute(insert(tables.evaluations).values(**values, uid=evaluation.id, created_at=db_now()))
    elif not (old.state == "ready" and evaluation.state == "failed"):
        connection.execute(update(tables.evaluations).where(e.id == old.id).values(**values, created_at=db_now()))
    stored = find_evaluation(connection, key)
    assert stored is not None
    return stored.evaluation


def forget_evaluation(connection: Connection, key: str) -> None:
    """Remove the row of a failure that a success has made obsolete; results are never removed."""
    e = tables.evaluations.c
    connection.execute(delete(tables.evaluations).where(e.key == key, e.state == "failed"))


def find_evaluation(connection: Connection, key: str) -> StoredEvaluation | None:
    """The evaluation of a key by content."""
    row = connection.execute(_evaluations().where(tables.evaluations.c.key == key)).one_or_none()
    return None if row is None else _stored(row)


def get_evaluation(connection: Connection, uid: UUID) -> StoredEvaluation:
    """One evaluation by its id.

    Raises:
        NotFound: there is none.
    """
    row = connection.execute(_evaluations().where(tables.evaluations.c.uid == uid)).one_or_none()
    if row is None:
        raise NotFound("evaluation", str(uid))
    return _stored(row)


def current_evaluations(connection: Connection, dataset: str, split: str) -> list[StoredEvaluation]:
    """For each model the evaluation that counts on a split: of those that are ready, the one with most samples, then
    the newest; by model name."""
    e = tables.evaluations.c
    rows = connection.execute(
        _evaluations()
        .where(tables.datasets.c.name == dataset, e.split == split, e.state == "ready")
        .order_by(tables.models.c.name, e.n_samples.desc(), e.created_at.desc(), e.id.desc())
    )
    best: dict[str, StoredEvaluation] = {}
    for row in rows:
        if row.model not in best:
            best[row.model] = _stored(row)
    return list(best.values())


def current_evaluation(connection: Connection, model: str, dataset: str, split: str) -> StoredEvaluation:
    """The evaluation of one model that counts on a split.

    Raises:
        NotFound: the model was not scored there (or is unknown, or the data set is).
    """
    e = tables.evaluations.c
    row = connection.execute(
        _evaluations()
        .where(
            tables.models.c.name == model,
            tables.datasets.c.name == dataset,
            e.split == split,
            e.state == "ready",
        )
        .order_by(e.n_samples.desc(), e.created_at.desc(), e.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        get_model(connection, model)
        get_dataset(connection, dataset)
        raise NotFound("evaluation", f"{model} on {dataset}/{split}", "scan the model there, or import its predictions")
    return _stored(row)


def paired_models(connection: Connection, dataset: str, split: str) -> set[str]:
    """The models that have rows in the pair table of a split."""
    p = tables.pairs.c
    board = (p.dataset_id == _id(connection, tables.datasets, "dataset", dataset), p.split == split)
    ids = set(connection.execute(select(p.student_id).where(*board).distinct()).scalars())
    return {name for name, number in _model_ids(connection).items() if number in ids}


def replace_pairs(
    connection: Connection,
    dataset: str,
    split: str,
    table: PairTable,
    models: Sequence[str],
    *,
    only: Collection[str] | None = None,
) -> int:
    """Put the pairs of a split in place of those that are there; returns how many rows were written.

    Args:
        models: Names in the order of the correctness matrix that `table` was counted from.
        only: Replace just the pairs that have one of these models on either side; default all pairs.
    """
    p = tables.pairs.c
    dataset_id = _id(connection, tables.datasets, "dataset", dataset)
    ids = _model_ids(connection)
    board = (p.dataset_id == dataset_id, p.split == split)
    if only is None:
        connection.execute(delete(tables.pairs).where(*board))
    else:
        touched = sorted(ids[name] for name in only)
        for start in range(0, len(touched), _IDS):
            part = touched[start : start + _IDS]
            connection.execute(delete(tables.pairs).where(*board, or_(p.teacher_id.in_(part), p.student_id.in_(part))))
    rows = _pair_rows(table, [ids[name] for name in models], dataset_id, split, None if only is None else set(touched))
    return _bulk_insert(connection, rows)


_PAIR_COLUMNS = (
    "n_samples",
    "n_classes",
    "right_both",
    "positive_flips",
    "negative_flips",
    "teacher_accuracy",
    "student_accuracy",
    "accuracy_difference",
    "positive_flip_rate",
    "negative_flip_rate",
    "flip_entropy_nats",
    "mcnemar_p_value",
)


def _pair_rows(
    table: PairTable, ids: Sequence[int], dataset_id: int, split: str, only: set[int] | None
) -> Iterable[tuple[Any, ...]]:
    columns = table.columns()
    values = zip(*(columns[name].tolist() for name in _PAIR_COLUMNS), strict=True)
    for teacher, student, numbers in zip(table.teacher.tolist(), table.student.tolist(), values, strict=True):
        teacher_id, student_id = ids[teacher], ids[student]
        if only is None or teacher_id in only or student_id in only:
            yield (dataset_id, split, teacher_id, student_id, *numbers)


def _bulk_insert(connection: Connection, rows: Iterable[tuple[Any, ...]]) -> int:
    """Rows of `pairs` by the driver's fastest way: 1.7 million of them take seconds, not minutes."""
    stored = ("both_right" if name == "right_both" else name for name in _PAIR_COLUMNS)
    names = ("dataset_id", "split", "teacher_id", "student_id", *stored)
    columns = ", ".join(names)
    written = 0
    if connection.dialect.name == "postgresql":
        cursor = connection.connection.cursor()
        with cursor.copy(f"COPY pairs ({columns}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
                written += 1
        cursor.close()
        return written
    statement = f"INSERT INTO pairs ({columns}) VALUES ({', '.join('?' for _ in names)})"
    chunk: list[tuple[Any, ...]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            connection.exec_driver_sql(statement, chunk)
            written += len(chunk)
            chunk = []
    if chunk:
        connection.exec_driver_sql(statement, chunk)
    return written + len(chunk)


def _model_ids(connection: Connection) -> dict[str, int]:
    m = tables.models.c
    return {row.name: row.id for row in connection.execute(select(m.name, m.id))}


def _id(connection: Connection, table: Any, kind: str, name: str) -> int:
    found = connection.execute(select(table.c.id).where(table.c.name == name)).scalar_one_or_none()
    if found is None:
        raise NotFound(kind, name)
    return int(found)


def _evaluations() -> Any:
    return (
        select(tables.evaluations, tables.models.c.name.label("model"), tables.datasets.c.name.label("dataset"))
        .join(tables.models, tables.models.c.id == tables.evaluations.c.model_id)
        .join(tables.datasets, tables.datasets.c.id == tables.evaluations.c.dataset_id)
    )


def _stored(row: Row[Any]) -> StoredEvaluation:
    evaluation = Evaluation(
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
    return StoredEvaluation(evaluation, row.key, row.predictions_uri, row.predictions_sha256, row.logits_uri)
