"""Rows of the jobs' tables as the records that everyone sees."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select

from backend.domain.jobs import Artifact, Job, JobEvent, JobProgress, JobState
from backend.store.tables import job_dependencies


@dataclass(frozen=True)
class Checkpoint:
    """Where a job can go on from: a file, what it must hash to, and the step it was written at."""

    uri: str
    sha256: str
    step: int


@dataclass(frozen=True)
class Claim:
    """An attempt: the job, the fencing token that every write of this attempt must carry, and where to go on from.

    `checkpoints` are the last two, newest first; `losses` counts the attempts lost in a row without a new checkpoint.
    """

    job: Job
    fence: int
    checkpoints: tuple[Checkpoint, ...]
    losses: int
    gpu: int | None


@dataclass(frozen=True)
class FileRecord:
    """A file to publish with a result."""

    name: str
    uri: str
    size: int
    sha256: str
    media_type: str = "application/octet-stream"


def new_id() -> UUID:
    """A UUID whose order is the order of creation (version 7), so that ties in time keep the order of submission."""
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    high = (milliseconds & (2**48 - 1)) << 80 | 7 << 76 | fraction << 64
    return UUID(int=high | 0b10 << 62 | secrets.randbits(62))


def new_ids(count: int) -> list[UUID]:
    """As many ids, in ascending order."""
    return sorted(new_id() for _ in range(count))


def moment(seconds: float | None) -> datetime | None:
    """Seconds since 1970 as a time in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def to_job(row: Mapping[Any, Any], after: Iterable[UUID] = ()) -> Job:
    """A row of `jobs`, and the jobs it waits for (`after_of`)."""
    created = moment(row["created_at"])
    assert created is not None
    return Job(
        id=row["id"],
        kind=row["kind"],
        state=JobState(row["state"]),
        spec=row["spec"],
        priority=row["priority"],
        attempt=row["attempt"],
        progress=JobProgress(step=row["step"], total=row["total"]),
        cause=row["cause"],
        message=row["message"],
        result=row["result"],
        created_at=created,
        started_at=moment(row["started_at"]),
        finished_at=moment(row["finished_at"]),
        retry_of=row["retry_of"],
        parent=row["parent"],
        after=tuple(after),
        worker=row["worker"],
    )


def to_event(row: Mapping[Any, Any]) -> JobEvent:
    """A row of `job_events`."""
    at = moment(row["at"])
    assert at is not None
    return JobEvent(
        id=row["id"], job_id=row["job_id"], type=row["type"], attempt=row["attempt"], at=at, data=row["data"]
    )


def to_artifact(row: Mapping[Any, Any]) -> Artifact:
    """A row of `artifacts`."""
    created = moment(row["created_at"])
    assert created is not None
    fields = ("id", "job_id", "name", "uri", "size", "sha256", "media_type")
    return Artifact(**{name: row[name] for name in fields}, created_at=created)


def to_checkpoints(value: Any) -> tuple[Checkpoint, ...]:
    """The stored pointer: the last two checkpoints, newest first."""
    return tuple(Checkpoint(**item) for item in value or ())


def after_of(connection: Connection, ids: Iterable[UUID]) -> dict[UUID, list[UUID]]:
    """For each job, the jobs it waits for."""
    waits: dict[UUID, list[UUID]] = {job_id: [] for job_id in ids}
    columns = job_dependencies.c
    query = select(columns.job_id, columns.after_id).where(columns.job_id.in_(list(waits)))
    for job_id, after_id in connection.execute(query.order_by(columns.after_id)):
        waits[job_id].append(after_id)
    return waits
