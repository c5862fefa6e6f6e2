"""How earlier attempts of a job ended, and what attaching to a job has to work."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, select

from backend.domain.jobs import TERMINAL
from backend.store.tables import job_dependencies, job_events, jobs


def last_cause(connection: Connection, job_id: UUID) -> str | None:
    """The cause of the newest transition that had one, as `host_oom`."""
    query = select(job_events.c.data).where(job_events.c.job_id == job_id, job_events.c.type == "state")
    causes = [data.get("cause") for data in connection.scalars(query.order_by(job_events.c.id))]
    return next((str(cause) for cause in reversed(causes) if cause), None)


def to_work(connection: Connection, job_id: UUID) -> list[UUID]:
    """The unfinished jobs that must be worked for `job_id` to finish, in the order of submission: itself (or a study's
    children), and everything that these wait for, however far back.
    """
    found: dict[UUID, bool] = {}
    wave = {job_id}
    while wave:
        known = select(jobs.c.id, jobs.c.kind, jobs.c.state).where(jobs.c.id.in_(wave))
        rows = connection.execute(known).all()
        for row in rows:
            found[row.id] = row.kind != "study" and row.state not in TERMINAL
        open_ids = [row.id for row in rows if row.state not in TERMINAL]
        studies = [row.id for row in rows if row.kind == "study" and row.state not in TERMINAL]
        waits = select(job_dependencies.c.after_id).where(job_dependencies.c.job_id.in_(open_ids))
        children = select(jobs.c.id).where(jobs.c.parent.in_(studies))
        wave = {*connection.scalars(waits), *connection.scalars(children)} - found.keys()
    wanted = [one for one, work in found.items() if work]
    order = select(jobs.c.id).where(jobs.c.id.in_(wanted))
    return list(connection.scalars(order.order_by(jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)))
