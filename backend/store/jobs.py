"""The only writer of job state. Every transition is one UPDATE that names the state it leaves, with an append-only
event in the same transaction; every write of an attempt carries that attempt's fencing token.

queued → running → succeeded | failed; queued → cancelled; running → cancelling → cancelled | failed; a lost or drained
attempt goes from running back to queued, from cancelling to cancelled. `backend.store.job_graph` then follows the
consequences: dependents of a job that did not succeed, and the study that a job belongs to.

Every function takes a connection inside `Store.write()`. Those that act for an attempt take `(job_id, fence)` and raise
LostLease when the attempt is no longer its own; the surrounding transaction then rolls back, whatever else it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, case, exists, insert, literal_column, null, or_, select, update
from sqlalchemy import text as sql
from sqlalchemy.exc import IntegrityError

from backend.domain.errors import CancelRequested, NotFound
from backend.domain.jobs import Cause, Job, JobState
from backend.domain.records import canonical_json
from backend.store.job_moves import (
    ACTIVE_STATES,
    Moved,
    fenced,
    lock_graph,
    lost,
    move,
    record_moves,
    settle,
    share_graph,
)
from backend.store.job_records import Checkpoint, Claim, FileRecord, after_of, new_id, to_checkpoints, to_job
from backend.store.job_retries import RetryPolicy, give_up
from backend.store.session import db_now, guarded
from backend.store.tables import artifacts, job_dependencies, job_events, jobs

if TYPE_CHECKING:
    pass

KEPT_CHECKPOINTS = 2
QUEUED: ColumnElement[str] = literal_column("'queued'")  # spelled out, so that both databases can use the partial index
IN_LINE = (jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)


@dataclass(frozen=True)
class NewJob:
    """A row to insert. `device` is what the spec asks for (auto, cpu, cuda, cuda:N), `cuda:set` for several GPUs."""

    kind: str
    queue: str
    spec: Mapping[str, Any]
    id: UUID
    device: str = "auto"
    priority: int = 0
    owner: str = "local"
    idempotency_key: str | None = None
    body_sha256: str | None = None
    after: tuple[UUID, ...] = ()
    parent: UUID | None = None
    retry_of: UUID | None = None
    resume_from: UUID | None = None
    checkpoint: Sequence[Mapping[str, Any]] | None = None
    total: int = 0


# --- reading -------------------------------------------------------------------------------------------------------


def get(connection: Connection, job_id: UUID) -> Job:
    """One job.

    Raises:
        NotFound: No such job.
    """
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()
    if row is None:
        raise NotFound("job", str(job_id), "list them with: zoograft jobs ls")
    return to_job(row, after_of(connection, [job_id])[job_id])


def standing(connection: Connection, job_id: UUID, fence: int) -> Literal["running", "cancelling"] | None:
    """How an attempt stands, without writing: None when it is no longer its own. Cheap enough for every second."""
    state = connection.scalar(select(jobs.c.state).where(*fenced(connection, job_id, fence)))
    return state if state in ("running", "cancelling") else None


SEVERAL_GPUS = "cuda:set"


def wanting_several(connection: Connection) -> list[tuple[UUID, str]]:
    """The jobs of several GPUs that could be claimed now, with the device they ask for, the first in line first."""
    query = select(jobs.c.id, jobs.c.spec).where(*_claimable(), jobs.c.device == SEVERAL_GPUS).order_by(*IN_LINE)
    return [(row.id, str(row.spec["device"])) for row in connection.execute(query.limit(100))]


def claimable(connection: Connection, limit: int, *, cuda: bool = True) -> list[tuple[UUID, str]]:
    """The jobs that could be claimed now, with their queues, the first in line first; without `cuda` only those that do
    not insist on it."""
    query = select(jobs.c.id, jobs.c.queue).where(*_claimable()).order_by(*IN_LINE).limit(limit)
    if not cuda:
        query = query.where(jobs.c.device.not_like("cuda%"))
    return [(row.id, row.queue) for row in connection.execute(query)]


# --- submission ----------------------------------------------------------------------------------------------------


def add(connection: Connection, new: Sequence[NewJob]) -> None:
    """Insert queued jobs, each with its first event. References must exist; the caller has checked the specs.

    Raises:
        IntegrityError: The owner has used this idempotency key before, or a referenced job does not exist.
    """
    rows = [
        {
            **{name: getattr(job, name) for name in _COPIED},
            "spec": dict(job.spec),
            "checkpoint": list(job.checkpoint) if job.checkpoint else None,
            "idempotency_key": job.idempotency_key if guarded(connection, "idempotency") else None,
            "state": JobState.QUEUED.value,
        }
        for job in new
    ]
    zeros = dict.fromkeys(("attempt", "fence", "losses", "step"), 0)
    connection.execute(insert(jobs).values(created_at=db_now(), not_before=0.0, **zeros), rows)
    waits = [{"job_id": job.id, "after_id": after} for job in new for after in dict.fromkeys(job.after)]
    if waits:
        connection.execute(insert(job_dependencies), waits)
    state_event = {"from": None, "to": "queued", "cause": None, "worker": None, "attempt": 0, "fence": 0}
    add_rows = [{"job_id": job.id, "fence": 0, "attempt": 0, "type": "state", "data": state_event} for job in new]
    connection.execute(insert(job_events).values(at=db_now()), add_rows)


_COPIED = (
    *("id", "kind", "queue", "device", "priority", "owner", "body_sha256"),
    *("parent", "retry_of", "resume_from", "total"),
)


# --- claiming and holding ------------------------------------------------------------------------------------------


def claim(
    connection: Connection,
    *,
    worker: str,
    host: str,
    lease_s: float,
    queues: Sequence[str] = ("gpu", "cpu"),
    cuda: bool = False,
    gpu: int | None = None,
    several: bool = False,
    job_id: UUID | None = None,
    parent: UUID | None = None,
) -> Claim | None:
    """Take the next job, or None: one UPDATE that no other process can win for the same row.

    Highest priority first, then oldest; only jobs whose time has come and whose dependencies all succeeded.

    Args:
        worker, host: Who works it, shown to users; `host` and `gpu` make a device exclusive.
        queues: The queues to look at.
        cuda: Whether this worker has CUDA; without, jobs that ask for it are left alone.
        gpu: The device that a job of the gpu queue will hold alone; None to work without one.
        several: The job asks for several GPUs; `gpu` is the first, and the caller keeps the others free by itself.
        job_id: Only this job.
        parent: Only children of this study.
    """
    wanted = [*_claimable(), jobs.c.queue.in_(list(queues))]
    if not cuda:
        wanted.append(jobs.c.device.not_like("cuda%"))
    elif gpu is not None:
        wanted.append(jobs.c.device.in_([SEVERAL_GPUS] if several else ["auto", "cpu", "cuda", f"cuda:{gpu}"]))
    if gpu is not None:
        other = jobs.alias("other")
        held = exists().where(other.c.host == host, other.c.gpu == gpu, other.c.state.in_(ACTIVE_STATES))
        wanted.append(or_(jobs.c.queue != "gpu", ~held))
    if job_id is not None:
        wanted.append(jobs.c.id == job_id)
    if parent is not None:
        wanted.append(jobs.c.parent == parent)
    share_graph(connection)
    found = (
        select(jobs.c.id).where(*wanted).order_by(*IN_LINE).limit(1).with_for_update(skip_locked=True).scalar_subquery()
    )
    taken = (
        update(jobs)
        .where(jobs.c.id == found, jobs.c.state == QUEUED)
        .values(
            state=JobState.RUNNING.value,
            worker=worker,
            host=host,
            gpu=case((jobs.c.queue == "gpu", gpu), else_=null()) if gpu is not None else None,
            fence=jobs.c.fence + 1,
            attempt=jobs.c.attempt + 1,
            lease_until=db_now() + lease_s,
            started_at=case((jobs.c.started_at.is_(None), db_now()), else_=jobs.c.started_at),
            cause=None,
            message=None,
        )
        .returning(*jobs.c)
    )
    try:
        with connection.begin_nested():
            row = connection.execute(taken).mappings().one_or_none()
    except IntegrityError:  # another process took this GPU between our look and our write
        return None
    if row is None:
        return None
    record_moves(connection, [row], JobState.QUEUED, JobState.RUNNING)
    if row["parent"] is not None:
        settle(connection, [Moved(row["id"], row["parent"], JobState.RUNNING)])
    job = to_job(row, after_of(connection, [row["id"]])[row["id"]])
    return Claim(job, row["fence"], to_checkpoints(row["checkpoint"]), row["losses"], row["gpu"])


@dataclass(frozen=True)
class Beat:
    """A lease was renewed; `cancel_requested` says whether the job should stop."""

    cancel_requested: bool


def heartbeat(connection: Connection, job_id: UUID, fence: int, lease_s: float) -> Beat | None:
    """Renew the lease. None means lost: kill the child at once."""
    renewed = (
        update(jobs)
        .where(*fenced(connection, job_id, fence))
        .values(lease_until=case((jobs.c.state.in_(ACTIVE_STATES), db_now() + lease_s), else_=null()))
        .returning(jobs.c.cancel_requested_at)
    )
    row = connection.execute(renewed).one_or_none()
    return None if row is None else Beat(row[0] is not None)


def hold(connection: Connection, job_id: UUID, fence: int) -> None:
    """Lock the row of an attempt until the transaction ends, so that whatever else it writes is fenced too.

    A publishing transaction begins with this.

    Raises:
        LostLease: The attempt is no longer its own.
    """
    share_graph(connection)
    _locked(connection, job_id, fence)


def record_progress(connection: Connection, job_id: UUID, fence: int, step: int, total: int) -> None:
    """Where the attempt is now.

    Raises:
        LostLease: The attempt is no longer its own.
    """
    _fenced_update(connection, job_id, fence, step=step, total=total)


def add_events(
    connection: Connection,
    job_id: UUID,
    fence: int,
    attempt: int,
    events: Sequence[tuple[Literal["progress", "metric", "log"], Mapping[str, Any]]],
) -> None:
    """Append what an attempt reports, in one insert.

    Raises:
        LostLease: The attempt is no longer its own.
    """
    _locked(connection, job_id, fence)
    rows = [
        {"job_id": job_id, "fence": fence, "attempt": attempt, "type": kind, "data": dict(data)}
        for kind, data in events
    ]
    if rows:
        connection.execute(insert(job_events).values(at=db_now()), rows)


def unsent(
    connection: Connection, job_id: UUID, fence: int, events: Sequence[tuple[str, Mapping[str, Any]]], resent: int
) -> list[tuple[str, Mapping[str, Any]]]:
    """`events` without those that an earlier try has stored after all: its commit went through, the answer got lost.

    The first `resent` of them were sent before, in this order; whatever of them was stored is the newest that this
    attempt has stored. Reports of progress are left in: only the last one counts.

    Raises:
        LostLease: The attempt is no longer its own.
    """
    _locked(connection, job_id, fence)
    before = [(kind, canonical_json(data)) for kind, data in events[:resent] if kind != "progress"]
    query = select(job_events.c.type, job_events.c.data).where(
        job_events.c.job_id == job_id, job_events.c.fence == fence, job_events.c.type.in_(["metric", "log"])
    )
    newest = connection.execute(query.order_by(job_events.c.id.desc()).limit(len(before))).all()
    stored = [(row.type, canonical_json(row.data)) for row in reversed(newest)]
    known = next((k for k in range(len(stored), 0, -1) if stored[-k:] == before[:k]), 0)
    kept = []
    for kind, data in events:
        if kind == "progress" or known == 0:
            kept.append((kind, data))
        else:
            known -= 1
    return kept


def point_to_checkpoint(connection: Connection, job_id: UUID, fence: int, new: Checkpoint) -> tuple[Checkpoint, ...]:
    """Make `new` the checkpoint to go on from, keep the one before it, and return those that nothing points to now.

    A step beyond the last checkpoint's is progress: it forgives the losses so far.

    Raises:
        LostLease: The attempt is no longer its own.
    """
    before = to_checkpoints(_locked(connection, job_id, fence)["checkpoint"])
    kept = (new, *(one for one in before if one.uri != new.uri))
    forgiven = {"losses": 0} if not before or new.step > before[0].step else {}
    pointer = [{"uri": one.uri, "sha256": one.sha256, "step": one.step} for one in kept[:KEPT_CHECKPOINTS]]
    _fenced_update(connection, job_id, fence, checkpoint=pointer, **forgiven)
    return kept[KEPT_CHECKPOINTS:]


# --- ending an attempt ---------------------------------------------------------------------------------------------


def succeed(
    connection: Connection, job_id: UUID, fence: int, result: Mapping[str, Any], files: Sequence[FileRecord] = ()
) -> None:
    """Publish: the result, the rows of its files and `succeeded`, in the caller's transaction.

    Harmless when the same attempt has succeeded before (its commit went through, the answer got lost).

    Raises:
        LostLease: The attempt is no longer its own.
        CancelRequested: It is, but the job is being cancelled; nothing is published.
    """
    share_graph(connection)
    done = {"result": dict(result), "step": case((jobs.c.total > jobs.c.step, jobs.c.total), else_=jobs.c.step)}
    moved = _end(connection, job_id, fence, JobState.RUNNING, JobState.SUCCEEDED, values=done)
    if not moved:
        row = connection.execute(select(jobs.c.state, jobs.c.fence).where(jobs.c.id == job_id)).one_or_none()
        if row is not None and row.fence == fence and row.state == "succeeded":
            return
        if row is not None and row.fence == fence and row.state == "cancelling":
            raise CancelRequested(f"job {job_id} is being cancelled")
        raise lost(job_id, fence)
    if files:
        rows = [{**vars(file), "id": new_id(), "job_id": job_id, "fence": fence} for file in files]
        connection.execute(insert(artifacts).values(created_at=db_now()), rows)
    settle(connection, moved)


def fail(
    connection: Connection,
    job_id: UUID,
    fence: int,
    cause: Cause,
    message: str,
    *,
    retry: RetryPolicy,
    details: Mapping[str, Any] | None = None,
) -> JobState:
    """End an attempt without a result, and say where the job went: back to `queued` where its cause deserves another
    try (after a pause), else to `failed`; to `cancelled` when it was being cancelled and its end was not its own fault.

    `details` are kept with the event: exit code, signal, the last lines of the log.

    Raises:
        LostLease: The attempt is no longer its own.
    """
    lock_graph(connection)
    return give_up(connection, _locked(connection, job_id, fence), cause, message, retry, details)


def release(connection: Connection, job_id: UUID, fence: int, message: str = "drained") -> JobState:
    """Hand the job back because the worker is going away: `queued`, and the attempt is not charged.

    Raises:
        LostLease: The attempt is no longer its own.
    """
    lock_graph(connection)
    back = {"attempt": jobs.c.attempt - 1, "not_before": db_now()}
    why: dict[str, Any] = {"cause": Cause.DRAINED, "message": message}
    moved = _end(connection, job_id, fence, JobState.RUNNING, JobState.QUEUED, values=back, **why)
    if not moved:
        moved = _end(connection, job_id, fence, JobState.CANCELLING, JobState.CANCELLED, **why, shown=Cause.CANCELLED)
    if not moved:
        raise lost(job_id, fence)
    settle(connection, moved)
    return moved[0].target


def finish_cancelled(connection: Connection, job_id: UUID, fence: int, message: str = "cancelled on request") -> None:
    """The attempt has stopped because it was asked to; its last checkpoint stands.

    Raises:
        LostLease: The attempt is no longer its own, or nobody asked.
    """
    lock_graph(connection)
    moved = _end(
        connection, job_id, fence, JobState.CANCELLING, JobState.CANCELLED, cause=Cause.CANCELLED, message=message
    )
    if not moved:
        raise lost(job_id, fence)
    settle(connection, moved)


# --- what others may do to a job -----------------------------------------------------------------------------------


def cancel(connection: Connection, job_id: UUID, message: str = "cancelled on request") -> Job:
    """Ask for the end: a queued job is cancelled at once, a running one is flagged and stops at its next step, a study
    passes it on to its children. A job that has ended stays as it is: a success that was committed first wins.

    Raises:
        NotFound: No such job.
    """
    lock_graph(connection)
    get(connection, job_id)
    asked = {"cancel_requested_at": db_now()}
    why: dict[str, Any] = {"cause": Cause.CANCELLED, "message": message}
    moved: list[Moved] = []
    for which in (jobs.c.parent == job_id, jobs.c.id == job_id):
        moved += move(connection, [which], JobState.QUEUED, JobState.CANCELLED, values=asked, **why)
        moved += move(connection, [which], JobState.RUNNING, JobState.CANCELLING, values=asked)
    settle(connection, moved)
    return get(connection, job_id)


def reap(connection: Connection, *, retry: RetryPolicy, guard_s: float, reachable_s: float) -> list[UUID]:
    """Take jobs away from workers that stopped renewing their leases; returns them.

    Args:
        guard_s: Do nothing until the database was reachable this long without a break (two leases): after an outage
            every lease has run out, though every worker lives.
        reachable_s: How long the caller has seen it so. On Postgres the server's own age is asked too.
    """
    if guarded(connection, "reaper_guard"):
        if reachable_s < guard_s:
            return []
        if connection.dialect.name == "postgresql":
            age = sql("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())")
            if float(connection.scalar(age) or 0.0) < guard_s:
                return []
    expired = [jobs.c.state.in_(ACTIVE_STATES), jobs.c.kind != "study", jobs.c.lease_until < db_now()]
    if connection.scalar(select(jobs.c.id).where(*expired).limit(1)) is None:
        return []
    lock_graph(connection)
    query = select(jobs).where(*expired).order_by(jobs.c.id).with_for_update(skip_locked=True)
    rows = connection.execute(query).mappings().all()
    for row in rows:
        message = f"worker {row['worker']} stopped renewing its lease"
        give_up(connection, row, Cause.WORKER_LOST, message, retry, None)
    return [row["id"] for row in rows]


# --- behind the doors ----------------------------------------------------------------------------------------------


def _claimable() -> list[ColumnElement[bool]]:
    """Queued, its time has come, and everything it waits for succeeded. A study is worked through its children."""
    first = jobs.alias("first")
    joined = job_dependencies.join(first, first.c.id == job_dependencies.c.after_id)
    waits = select(first.c.id).select_from(joined).where(job_dependencies.c.job_id == jobs.c.id)
    unmet = exists(waits.where(first.c.state != JobState.SUCCEEDED.value).correlate(jobs))
    return [jobs.c.state == QUEUED, jobs.c.kind != "study", jobs.c.not_before <= db_now(), ~unmet]


def _locked(connection: Connection, job_id: UUID, fence: int) -> Mapping[Any, Any]:
    row = connection.execute(select(jobs).where(*fenced(connection, job_id, fence)).with_for_update())
    found = row.mappings().one_or_none()
    if found is None:
        raise lost(job_id, fence)
    return found


def _fenced_update(connection: Connection, job_id: UUID, fence: int, **values: Any) -> None:
    statement = update(jobs).where(*fenced(connection, job_id, fence)).values(**values).returning(jobs.c.id)
    if connection.execute(statement).one_or_none() is None:
        raise lost(job_id, fence)


def _end(
    connection: Connection, job_id: UUID, fence: int, source: JobState, target: JobState, **why: Any
) -> list[Moved]:
    which = fenced(connection, job_id, fence)
    any_source = target is JobState.SUCCEEDED and not guarded(connection, "fence")
    return move(connection, which, source, target, any_source=any_source, **why)
