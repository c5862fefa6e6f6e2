"""Who works: a row per supervisor, refreshed while it lives. For people and `doctor`; leases decide, not this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, case, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from backend.domain.records import Record
from backend.store.job_records import moment
from backend.store.session import db_now
from backend.store.tables import workers


class Worker(Record):
    """A supervisor as it announced itself. `seen_s_ago` is by the database's clock."""

    name: str
    host: str
    pid: int
    queues: tuple[str, ...]
    devices: tuple[Any, ...]
    versions: dict[str, Any]
    started_at: datetime | None
    seen_at: datetime | None
    seen_s_ago: float


def announce(
    connection: Connection,
    name: str,
    *,
    host: str,
    pid: int,
    queues: Sequence[str],
    devices: Sequence[Any] = (),
    versions: Mapping[str, Any] | None = None,
) -> None:
    """Insert or refresh a supervisor's row: one statement, safe when two do it at once."""
    row = {"host": host, "pid": pid, "queues": list(queues), "devices": list(devices), "versions": dict(versions or {})}
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(workers).values(name=name, **row, started_at=db_now(), seen_at=db_now())
    same = statement.excluded.pid == workers.c.pid
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[workers.c.name],
            set_={
                **row,
                "seen_at": db_now(),
                "started_at": case((same, workers.c.started_at), else_=statement.excluded.started_at),
            },
        )
    )


def leave(connection: Connection, name: str) -> None:
    """A supervisor went away in good order."""
    connection.execute(delete(workers).where(workers.c.name == name))


def list_workers(connection: Connection, *, seen_within_s: float | None = None) -> list[Worker]:
    """Supervisors by name; only those seen lately where asked."""
    ago = (db_now() - workers.c.seen_at).label("ago")
    query = select(workers, ago).order_by(workers.c.name)
    if seen_within_s is not None:
        query = query.where(db_now() - workers.c.seen_at <= seen_within_s)
    return [
        Worker(
            name=row.name,
            host=row.host,
            pid=row.pid,
            queues=tuple(row.queues),
            devices=tuple(row.devices),
            versions=row.versions,
            started_at=moment(row.started_at),
            seen_at=moment(row.seen_at),
            seen_s_ago=max(0.0, float(row.ago)),
        )
        for row in connection.execute(query)
    ]
