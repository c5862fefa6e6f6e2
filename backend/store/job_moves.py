"""How a job's state changes, and what follows from it. Private to `backend.store.jobs`.

`move` is one UPDATE that names the state it leaves, and one event for each row that moved. `settle` follows the
consequences in the same transaction: jobs that wait for one that did not succeed are cancelled, and the state of a
study is derived from its children.

Locks on Postgres: whoever follows consequences takes the graph lock before any row, whoever only adds to the graph or
finishes a job shares it; rows of ordinary jobs come before the rows of studies. On SQLite the one writer's lock does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, func, insert, select, update
from sqlalchemy import text as sql

from backend.domain.errors import LostLease
from backend.domain.jobs import ACTIVE, TERMINAL, Cause, JobState
from backend.store.session import db_now, guarded
from backend.store.tables import job_dependencies, job_events, jobs

# Any number will do, as long as every process that moves jobs takes the same one.
GRAPH_LOCK = 7_304_221_902
ACTIVE_STATES = sorted(state.value for state in ACTIVE)


@dataclass(frozen=True)
class Moved:
    """A row after a transition."""

    id: UUID
    parent: UUID | None
    target: JobState


def lock_graph(connection: Connection) -> None:
    """Alone: for those who cancel dependents and children. Before any row is locked."""
    if connection.dialect.name == "postgresql":
        connection.execute(sql("SELECT pg_advisory_xact_lock(:key)"), {"key": GRAPH_LOCK})


def share_graph(connection: Connection) -> None:
    """With others: for those who add jobs, start them or finish them well. Before any row is locked."""
    if connection.dialect.name == "postgresql":
        connection.execute(sql("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": GRAPH_LOCK})


def fenced(connection: Connection, job_id: UUID, fence: int) -> list[ColumnElement[bool]]:
    """The conditions under which an attempt may still write: its own token, and a job that is active."""
    if not guarded(connection, "fence"):
        return [jobs.c.id == job_id]
    return [jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state.in_(ACTIVE_STATES)]


def lost(job_id: UUID, fence: int) -> LostLease:
    return LostLease(f"attempt {fence} of job {job_id} is no longer its own: its lease ran out or the job has ended")


def storable(message: str | None) -> str | None:
    """Text that both databases can hold: no NUL, no lone surrogates."""
    return message and message.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def move(
    connection: Connection,
    which: Sequence[ColumnElement[bool]],
    source: JobState,
    target: JobState,
    *,
    cause: Cause | None = None,
    shown: Cause | None = None,
    message: str | None = None,
    details: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    any_source: bool = False,
) -> list[Moved]:
    """Move the jobs `which` from `source` to `target`; returns those that moved.

    `cause` is why, in the event; `shown` is what the job's row then says, where that differs. `any_source` drops the
    check of the source, for the tests that take the fence away.
    """
    changes: dict[str, Any] = {"state": target.value}
    if target in TERMINAL or target is JobState.QUEUED:
        why = shown or cause
        changes |= {"lease_until": None, "cause": why and why.value, "message": storable(message)}
    if target is JobState.QUEUED:
        changes |= {"host": None, "gpu": None}  # the worker stays: it is who worked it last
    if target in TERMINAL:
        changes |= {"finished_at": db_now()}
    named = [] if any_source else [jobs.c.state == source.value]
    statement = update(jobs).where(*which, *named).values({**changes, **(values or {})})
    columns = (jobs.c.id, jobs.c.parent, jobs.c.attempt, jobs.c.fence, jobs.c.worker)
    rows = connection.execute(statement.returning(*columns)).mappings().all()
    record_moves(connection, rows, source, target, cause, message, details)
    return [Moved(row["id"], row["parent"], target) for row in rows]


def record_moves(
    connection: Connection,
    rows: Sequence[Mapping[Any, Any]],
    source: JobState | None,
    target: JobState,
    cause: Cause | None = None,
    message: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append the state event of each row that moved; `details` are exit code, signal, last log lines."""
    fixed = {"from": source and source.value, "to": target.value, "cause": cause and cause.value}
    fixed |= {"message": storable(message)} if message else {}
    events = [
        {
            "job_id": row["id"],
            "fence": row["fence"],
            "attempt": row["attempt"],
            "type": "state",
            "data": {**fixed, **(details or {}), **{name: row[name] for name in ("worker", "attempt", "fence")}},
        }
        for row in rows
    ]
    if events:
        connection.execute(insert(job_events).values(at=db_now()), events)


def settle(connection: Connection, moved: Sequence[Moved]) -> None:
    """Follow the consequences of transitions until there are none left: dependents, then studies."""
    failed = [one.id for one in moved if _unsuccessful(one)]
    parents = {one.parent for one in moved if one.parent is not None}
    while failed or parents:
        if failed:
            waiting = select(job_dependencies.c.job_id).where(job_dependencies.c.after_id.in_(failed))
            message = f"a job that this one waits for did not succeed: {failed[0]}"
            why: dict[str, Any] = {"cause": Cause.DEPENDENCY, "message": message}
            further = move(connection, [jobs.c.id.in_(waiting)], JobState.QUEUED, JobState.CANCELLED, **why)
        else:
            study = min(parents)
            parents.discard(study)
            further = _derive_study(connection, study)
        failed = [one.id for one in further if _unsuccessful(one)]
        parents |= {one.parent for one in further if one.parent is not None}


def _unsuccessful(one: Moved) -> bool:
    return one.target in (JobState.FAILED, JobState.CANCELLED)


def _derive_study(connection: Connection, study: UUID) -> list[Moved]:
    """Bring a study to the state that its children give it."""
    row = connection.execute(select(jobs).where(jobs.c.id == study).with_for_update()).mappings().one()
    state = JobState(row["state"])
    if state in TERMINAL:
        return []
    grouped = select(jobs.c.state, func.count()).where(jobs.c.parent == study).group_by(jobs.c.state)
    counts = {JobState(name): int(count) for name, count in connection.execute(grouped)}
    total = sum(counts.values())
    ended = {name: counts.get(name, 0) for name in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)}
    done = sum(ended.values())
    progress = {"step": done, "total": total}
    connection.execute(update(jobs).where(jobs.c.id == study).values(**progress))
    this, moved = [jobs.c.id == study], []
    started = ended[JobState.SUCCEEDED] + ended[JobState.FAILED] + counts.get(JobState.RUNNING, 0)
    if state is JobState.QUEUED and started + counts.get(JobState.CANCELLING, 0):
        values = {"started_at": db_now()}
        moved += move(connection, this, JobState.QUEUED, state := JobState.RUNNING, values=values)
    if done < total:
        return moved
    summary = ", ".join(f"{count} {name.value}" for name, count in ended.items() if count) + f" of {total}"
    if state is JobState.RUNNING and not ended[JobState.FAILED] and ended[JobState.CANCELLED]:
        moved += move(connection, this, JobState.RUNNING, state := JobState.CANCELLING)
    if state in (JobState.QUEUED, JobState.CANCELLING):
        moved += move(connection, this, state, JobState.CANCELLED, cause=Cause.CANCELLED, message=summary)
    elif ended[JobState.FAILED]:
        moved += move(connection, this, state, JobState.FAILED, cause=Cause.DEPENDENCY, message=summary)
    else:
        result = {"children": {name.value: count for name, count in ended.items()}}
        moved += move(connection, this, state, JobState.SUCCEEDED, message=summary, values={"result": result})
    return moved
