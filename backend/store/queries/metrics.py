"""Numbers about the running system, for /metrics: counts by state, waiting work, ages by the database's clock."""

from __future__ import annotations

from pydantic import Field
from sqlalchemy import Column, Connection, Select, func, select

from backend.domain.jobs import ACTIVE, JobState
from backend.domain.records import Record
from backend.store.session import db_now
from backend.store.tables import evaluations, job_events, jobs, workers

SEEN_WITHIN_S = 120.0


class Metrics(Record):
    """What an operator watches. Ages are None where there is nothing to be old."""

    jobs: dict[str, int] = Field(description="jobs by state")
    queue_depth: dict[str, int] = Field(description="queued jobs by queue")
    running: dict[str, int] = Field(description="active jobs by kind")
    oldest_queued_s: float | None = Field(description="age of the oldest queued job")
    oldest_heartbeat_s: float | None = Field(description="age of the stalest worker's announcement")
    expired_leases: int = Field(description="active jobs whose lease has run out")
    attempts: int = Field(description="attempts begun, ever")
    losses: dict[str, int] = Field(description="attempts that ended without a result, by cause")
    workers: int = Field(description="supervisors seen in the last two minutes")
    images_per_s: float | None = Field(description="of the newest evaluation that measured it")


def read_metrics(connection: Connection) -> Metrics:
    """One consistent look; every part is a scan of jobs or an index, and none grows with predictions."""
    by_state = dict.fromkeys((state.value for state in JobState), 0)
    by_state |= {row[0]: row[1] for row in connection.execute(_counts(jobs.c.state))}
    queued = jobs.c.state == JobState.QUEUED.value
    work = jobs.c.kind != "study"
    active = jobs.c.state.in_([state.value for state in ACTIVE])
    depth = {"gpu": 0, "cpu": 0}
    depth |= {row[0]: row[1] for row in connection.execute(_counts(jobs.c.queue).where(queued, work))}
    running = {row[0]: row[1] for row in connection.execute(_counts(jobs.c.kind).where(active, work))}
    oldest = connection.scalar(select(db_now() - func.min(jobs.c.created_at)).where(queued, work))
    stalest = select(db_now() - func.min(workers.c.seen_at)).where(workers.c.seen_at > db_now() - SEEN_WITHIN_S)
    expired = select(func.count()).select_from(jobs).where(active, jobs.c.lease_until < db_now())
    alive = select(func.count()).select_from(workers).where(workers.c.seen_at > db_now() - SEEN_WITHIN_S)
    newest = select(evaluations.c.images_per_s).where(evaluations.c.images_per_s.is_not(None))
    return Metrics(
        jobs=by_state,
        queue_depth=depth,
        running=running,
        oldest_queued_s=_age(oldest),
        oldest_heartbeat_s=_age(connection.scalar(stalest)),
        expired_leases=int(connection.scalar(expired) or 0),
        attempts=int(connection.scalar(select(func.coalesce(func.sum(jobs.c.fence), 0))) or 0),
        losses=_losses(connection),
        workers=int(connection.scalar(alive) or 0),
        images_per_s=connection.scalar(newest.order_by(evaluations.c.id.desc()).limit(1)),
    )


def _counts(column: Column[str]) -> Select[str, int]:
    return select(column, func.count()).group_by(column)


def _losses(connection: Connection) -> dict[str, int]:
    cause = job_events.c.data["cause"].as_string()
    query = select(cause, func.count()).where(job_events.c.type == "state", cause.is_not(None)).group_by(cause)
    return {str(name): int(count) for name, count in connection.execute(query) if name}


def _age(seconds: float | None) -> float | None:
    return None if seconds is None else max(0.0, float(seconds))
