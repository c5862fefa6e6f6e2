"""Jobs as a table: without their specs' and results' bulk, filtered and sorted in SQL; and what a job's page tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, func, or_, select

from backend.domain.jobs import ACTIVE, Job, JobEvent, JobState
from backend.domain.records import Record
from backend.store.catalog import moment
from backend.store.job_records import to_event
from backend.store.queries import jobs as queries
from backend.store.queries.grid_filters import conditions, order
from backend.store.session import db_now
from backend.store.tables import job_events as event_table
from backend.store.tables import jobs as job_table

_c, _v = job_table.c, event_table.c
IDS_AT_ONCE = 500
OPEN = tuple(state.value for state in (JobState.QUEUED, *ACTIVE))


class JobRow(Record):
    """One job as lists show it. `seconds_left` is a straight line through its steps so far."""

    id: UUID
    kind: str
    state: str
    subject: str
    step: int
    total: int
    attempt: int
    priority: int
    cause: str | None
    message: str | None
    worker: str | None
    parent: UUID | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    seconds_left: float | None


COLUMNS: dict[str, ColumnElement[Any]] = {
    "kind": _c.kind,
    "state": _c.state,
    "attempt": _c.attempt,
    "priority": _c.priority,
    "cause": _c.cause,
    "worker": _c.worker,
    "created_at": _c.created_at,
    "started_at": _c.started_at,
    "finished_at": _c.finished_at,
}


def job_rows(
    connection: Connection,
    *,
    states: Sequence[str] = (),
    kinds: Sequence[str] = (),
    parent: UUID | None = None,
    children: bool = True,
    filters: Mapping[str, Any] | None = None,
    sort: Sequence[Mapping[str, Any]] | None = None,
    offset: int = 0,
    limit: int = 100,
) -> tuple[list[JobRow], int]:
    """A window of jobs, the newest first unless sorted, and how many there are in all.

    Args:
        children: False leaves out the children of studies.

    Raises:
        BadInput: unknown columns.
    """
    where = [*conditions(filters, COLUMNS)]
    if states:
        where.append(_c.state.in_(states))
    if kinds:
        where.append(_c.kind.in_(kinds))
    if parent is not None:
        where.append(_c.parent == parent)
    elif not children:
        where.append(_c.parent.is_(None))
    total = connection.execute(select(func.count()).select_from(job_table).where(*where)).scalar_one()
    names = ("id", "kind", "state", "spec", "step", "total", "attempt", "priority", "cause", "message", "worker")
    wanted = [_c[name] for name in (*names, "parent", "created_at", "started_at", "finished_at")]
    keys = [*order(sort, COLUMNS), _c.id] if sort else [_c.created_at.desc(), _c.id.desc()]
    statement = select(*wanted, db_now().label("now")).where(*where).order_by(*keys).offset(offset).limit(limit)
    return [_row(row) for row in connection.execute(statement)], int(total)


def kinds(connection: Connection) -> list[str]:
    """Kinds of jobs that there are."""
    return list(connection.execute(select(_c.kind).distinct().order_by(_c.kind)).scalars())


def any_open(connection: Connection) -> bool:
    """Whether any job is queued or running."""
    return connection.execute(select(_c.id).where(_c.state.in_(OPEN)).limit(1)).first() is not None


def transfers(
    connection: Connection,
    *,
    teacher: str | None = None,
    student: str | None = None,
    dataset: str | None = None,
    state: str | None = None,
    limit: int = 200,
) -> list[Job]:
    """Transfer jobs, the newest first."""
    statement = select(_c.id).where(_c.kind == "transfer")
    if student is not None:
        statement = statement.where(_c.spec["student"].as_string() == student)
    if dataset is not None:
        statement = statement.where(_c.spec["dataset"].as_string() == dataset)
    if state is not None:
        statement = statement.where(_c.state == state)
    ids = connection.execute(statement.order_by(_c.created_at.desc(), _c.id)).scalars()
    found: list[Job] = []
    for id in ids:
        job = queries.job(connection, id)
        if teacher is None or teacher in job.spec.get("teachers", ()):
            found.append(job)
            if len(found) == limit:
                break
    return found


def finished_transfers(connection: Connection, limit: int = 2000) -> list[UUID]:
    """Transfers that succeeded, the newest first, whoever asked for them."""
    statement = select(_c.id).where(_c.kind == "transfer", _c.state == JobState.SUCCEEDED.value)
    return list(connection.execute(statement.order_by(_c.created_at.desc(), _c.id).limit(limit)).scalars())


def outcomes(connection: Connection, ids: Sequence[UUID]) -> list[tuple[UUID, Mapping[str, Any], Mapping[str, Any]]]:
    """Id, spec and result of these jobs, in no order; those without a result are left out."""
    found: list[tuple[UUID, Mapping[str, Any], Mapping[str, Any]]] = []
    for start in range(0, len(ids), IDS_AT_ONCE):
        part = ids[start : start + IDS_AT_ONCE]
        rows = connection.execute(select(_c.id, _c.spec, _c.result).where(_c.id.in_(part)))
        found += [(row.id, row.spec, row.result) for row in rows if row.result is not None]
    return found


def made_models(connection: Connection, job_id: UUID) -> list[str]:
    """Names of the catalog entries that a job made."""
    from backend.store.tables import models as model_table

    m = model_table.c
    lineage = func.replace(m.lineage["job_id"].as_string(), "-", "")
    return list(connection.execute(select(m.name).where(lineage == job_id.hex).order_by(m.name)).scalars())


def retries_of(connection: Connection, job_id: UUID) -> list[UUID]:
    """Jobs that tried this one again, the oldest first."""
    return list(connection.execute(select(_c.id).where(_c.retry_of == job_id).order_by(_c.created_at)).scalars())


def has_checkpoint(connection: Connection, job_id: UUID) -> bool:
    """Whether a job left something to resume from."""
    found = connection.execute(select(_c.checkpoint).where(_c.id == job_id)).scalar_one_or_none()
    return bool(found)


def log_tail(connection: Connection, job_id: UUID, count: int = 300) -> list[JobEvent]:
    """The last log lines and changes of state, oldest first."""
    statement = select(event_table).where(_v.job_id == job_id, or_(_v.type == "log", _v.type == "state"))
    rows = connection.execute(statement.order_by(_v.id.desc()).limit(count)).mappings().all()
    return [to_event(row) for row in reversed(rows)]


def last_event(connection: Connection, job_id: UUID) -> int:
    """The number of a job's last event; 0 where there is none."""
    return int(connection.execute(select(func.max(_v.id)).where(_v.job_id == job_id)).scalar() or 0)


def metric_events(connection: Connection, job_id: UUID, *, most: int = 4000) -> list[JobEvent]:
    """Metric events of a job, oldest first; of more than `most` every k-th, and always those that end an epoch."""
    where = (_v.job_id == job_id, _v.type == "metric")
    count = connection.execute(select(func.count()).select_from(event_table).where(*where)).scalar_one()
    every = max(1, -(-int(count) // most))
    statement = select(event_table).where(*where).order_by(_v.id)
    if every > 1:
        statement = statement.where(
            or_(_v.id % every == 0, _v.data["values"]["transfer_delta"].as_float().is_not(None))
        )
    return [to_event(row) for row in connection.execute(statement).mappings()]


def subject(kind: str, spec: Mapping[str, Any]) -> str:
    """What a job is about, in a few words."""
    data = spec.get("dataset")
    if kind == "transfer":
        teachers = ", ".join(spec.get("teachers") or ()) or "no teacher"
        return f"{teachers} → {spec.get('student')} ({(spec.get('method') or {}).get('method')})"
    if kind == "study":
        return str(spec.get("name", ""))
    if kind == "scan":
        return f"{_some(spec.get('models') or ())} on {data}"
    if kind == "register":
        return str(((spec.get("model") or spec.get("dataset")) or {}).get("name", ""))
    if kind == "analysis":
        named = f"{spec.get('analysis')} of {_some(spec.get('models') or ())}"
    else:
        learner = spec.get("student")
        named = " → ".join(str(one) for one in (spec.get("teacher") or spec.get("model"), learner) if one)
    return " on ".join(part for part in (named, data if isinstance(data, str) else "") if part)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def seconds_left(state: str, step: int, total: int, started_at: float | None, now: float) -> float | None:
    if state != JobState.RUNNING.value or started_at is None or not 0 < step < total:
        return None
    return max(0.0, (now - started_at) * (total - step) / step)


def _row(row: Any) -> JobRow:
    return JobRow(
        id=row.id,
        kind=row.kind,
        state=row.state,
        subject=subject(row.kind, row.spec),
        step=row.step,
        total=row.total,
        attempt=row.attempt,
        priority=row.priority,
        cause=row.cause,
        message=row.message,
        worker=row.worker,
        parent=row.parent,
        created_at=moment(row.created_at),
        started_at=None if row.started_at is None else moment(row.started_at),
        finished_at=None if row.finished_at is None else moment(row.finished_at),
        seconds_left=seconds_left(row.state, row.step, row.total, row.started_at, row.now),
    )
