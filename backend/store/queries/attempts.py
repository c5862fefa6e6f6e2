"""How earlier attempts of a job ended, what attaching to a job has to work, and what a queued job waits for."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, select

from backend.domain.jobs import TERMINAL, JobState
from backend.store.job_records import moment
from backend.store.session import db_now
from backend.store.tables import job_dependencies, job_events, jobs
from backend.store.workers import Worker, list_workers

SEEN_WITHIN_S = 120.0


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


def waiting_for(connection: Connection, job_id: UUID, *, own: str | None = None) -> str | None:
    """What a queued job (or a study's queued children) waits for, in words: other jobs, the pause before its next try,
    a worker that may take it.

    None where nothing keeps it, or it waits no more. Which workers there are is what they announced of themselves in
    the last two minutes; `own` is one that is about to work the job, and nothing is said of workers before it is there.
    """
    about = (jobs.c.kind, jobs.c.state, jobs.c.queue, jobs.c.device, jobs.c.cause, jobs.c.not_before)
    row = connection.execute(select(*about, db_now().label("now")).where(jobs.c.id == job_id)).one_or_none()
    study = row is not None and row.kind == "study"
    if row is None or row.state in TERMINAL or (row.state != JobState.QUEUED.value and not study):
        return None
    if others := _unmet(connection, job_id):
        return f"waiting for job {others[0]}" + (f" and {len(others) - 1} more" if len(others) > 1 else "")
    if row.not_before > row.now:
        until = f"{moment(row.not_before):%H:%M:%S} UTC"
        return f"waiting until {until} for the next try" + (f" ({row.cause})" if row.cause else "")
    workers = list_workers(connection, seen_within_s=SEEN_WITHIN_S)
    if own is not None and all(worker.name != own for worker in workers):
        return None
    if not workers:
        return "waiting for a worker, and none is at work; start one: zoograft worker (or zoograft up)"
    which = jobs.c.parent == job_id if study else jobs.c.id == job_id
    wanted = connection.execute(select(jobs.c.queue, jobs.c.device).where(which, jobs.c.state == JobState.QUEUED.value))
    for queue, device in sorted({(row.queue, row.device) for row in wanted}):
        if device.startswith("cuda") and not could_take(workers, device):
            named = device if device.partition(":")[2].isdigit() else "CUDA"
            return (
                f"waiting for a worker with {named}, which none of the {len(workers)} at work has; "
                "start one where there is (zoograft worker), or cancel and ask for device auto"
            )
        if not any(queue in worker.queues for worker in workers):
            return f"waiting for a worker of the queue {queue}; start one: zoograft worker --queues {queue}"
    return None


def _unmet(connection: Connection, job_id: UUID) -> list[UUID]:
    first = jobs.alias("first")
    joined = job_dependencies.join(first, first.c.id == job_dependencies.c.after_id)
    query = select(first.c.id).select_from(joined).where(job_dependencies.c.job_id == job_id)
    return list(connection.scalars(query.where(first.c.state != JobState.SUCCEEDED.value).order_by(first.c.id)))


def stranded(connection: Connection) -> int:
    """How many queued jobs ask for a CUDA device that no worker has who was seen in the last two minutes."""
    query = select(jobs.c.device).where(jobs.c.state == JobState.QUEUED.value, jobs.c.device.like("cuda%"))
    wanted = list(connection.scalars(query))
    workers = list_workers(connection, seen_within_s=SEEN_WITHIN_S) if wanted else []
    return sum(not could_take(workers, device) for device in wanted)


def could_take(workers: Sequence[Worker], device: str) -> bool:
    """Whether one of the workers has the device and works its queue: `cuda:N` is number N of its machine, any other
    name of the family any GPU."""
    number = device.partition(":")[2]
    held = [one for worker in workers if "gpu" in worker.queues for one in worker.devices]
    return any(not number.isdigit() or one["index"] == int(number) for one in held)
