"""What submission has to know of jobs that are there already: by key, by study, by lineage. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, select

from backend.domain.errors import BadInput, NotFound
from backend.domain.jobs import Job, JobState
from backend.store.job_records import Checkpoint, after_of, to_checkpoints, to_job
from backend.store.jobs import get
from backend.store.tables import jobs


def by_idempotency_key(connection: Connection, owner: str, key: str) -> tuple[Job, str] | None:
    """The job that an owner's key stands for, and the hash of the body it came with."""
    which = [jobs.c.owner == owner, jobs.c.idempotency_key == key]
    row = connection.execute(select(jobs.c.id, jobs.c.body_sha256).where(*which)).one_or_none()
    return None if row is None else (get(connection, row.id), str(row.body_sha256))


def owner_of(connection: Connection, job_id: UUID) -> str:
    return str(connection.scalar(select(jobs.c.owner).where(jobs.c.id == job_id)))


def children_of(connection: Connection, study: UUID) -> list[Job]:
    """A study's jobs in the order they were given."""
    rows = connection.execute(select(jobs).where(jobs.c.parent == study).order_by(jobs.c.id)).mappings().all()
    waits = after_of(connection, [row["id"] for row in rows])
    return [to_job(row, waits[row["id"]]) for row in rows]


def checkpoints_of(connection: Connection, job_id: UUID) -> tuple[Checkpoint, ...]:
    """The last two checkpoints of a job, newest first."""
    return to_checkpoints(connection.scalar(select(jobs.c.checkpoint).where(jobs.c.id == job_id)))


def latest_try(connection: Connection, job_id: UUID) -> UUID | None:
    """The job itself, or the newest retry of it (or of that), that has not failed; None when all have."""
    found: UUID | None = None
    line = [job_id]
    while line:
        one = line.pop()
        state = connection.scalar(select(jobs.c.state).where(jobs.c.id == one))
        if state not in ("failed", "cancelled") and (found is None or one > found):
            found = one
        line += connection.scalars(select(jobs.c.id).where(jobs.c.retry_of == one))
    return found


def require_promising(connection: Connection, after: Sequence[UUID]) -> list[Job]:
    """The jobs that a new one will wait for, held as they are until it is committed (`share_graph` comes first).

    Raises:
        BadInput: One does not exist, or did not succeed and never will.
    """
    found = []
    for job_id in dict.fromkeys(after):
        try:
            job = get(connection, job_id)
        except NotFound:
            raise BadInput("after", str(job_id), "the id of a job that exists") from None
        if job.state in (JobState.FAILED, JobState.CANCELLED):
            raise BadInput("after", str(job_id), f"a job that may still succeed; this one {job.state.value}")
        found.append(job)
    return found


def require_open_study(connection: Connection, study: UUID) -> None:
    """Raises BadInput unless a study exists and has not ended; it stays so until the transaction ends."""
    query = select(jobs.c.kind, jobs.c.state).where(jobs.c.id == study).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None or row.kind != "study" or row.state not in ("queued", "running"):
        raise BadInput("parent", str(study), "a study that has not ended")
