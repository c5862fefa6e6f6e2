"""Lists of jobs and their events; studies with the states of their children."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, get_args
from uuid import UUID

from pydantic import Field
from sqlalchemy import Connection, RowMapping, Select, func, select

from backend.domain.errors import BadInput, NotFound
from backend.domain.jobs import Artifact, Job, JobEvent, JobKind, JobState
from backend.domain.records import Record
from backend.store.job_records import after_of, to_artifact, to_event, to_job
from backend.store.queries.paging import Page, after, check_limit, cut, decode_cursor, encode_cursor, parse_sort
from backend.store.tables import artifacts as artifact_table
from backend.store.tables import job_events as event_table
from backend.store.tables import jobs as job_table

SORTS = {"created_at": job_table.c.created_at}
EVENT_TYPES = ("state", "progress", "metric", "log")
_COLUMNS = [
    "id",
    "kind",
    "state",
    "spec",
    "priority",
    "attempt",
    "step",
    "total",
    "cause",
    "message",
    "result",
    "created_at",
    "started_at",
    "finished_at",
    "retry_of",
    "parent",
    "worker",
]


class Study(Record):
    """A study: its own job, and how many of its children are in each state."""

    job: Job
    children: dict[JobState, int] = Field(description="children by state")
    children_total: int


def jobs(
    connection: Connection,
    *,
    state: Sequence[str] = (),
    kind: Sequence[str] = (),
    parent: UUID | None = None,
    owner: str | None = None,
    analysis: str | None = None,
    sort: str = "-created_at",
    limit: int = 50,
    cursor: str | None = None,
) -> Page[Job]:
    """Jobs, the newest first.

    `analysis` names what an analysis job computes (its spec's `analysis`).

    Raises:
        BadInput: unknown state, kind or sort column, limit out of range, foreign cursor.
    """
    limit = check_limit(limit)
    _, direction = parse_sort(sort, SORTS)
    _known("state", state, [member.value for member in JobState])
    _known("kind", kind, get_args(JobKind))
    query = ["jobs", sort, sorted(state), sorted(kind), parent and str(parent), owner, analysis]
    last = decode_cursor(query, cursor, ((int, float), str))
    c = job_table.c
    statement = _rows()
    if state:
        statement = statement.where(c.state.in_(state))
    if kind:
        statement = statement.where(c.kind.in_(kind))
    if parent is not None:
        statement = statement.where(c.parent == parent)
    if owner is not None:
        statement = statement.where(c.owner == owner)
    if analysis is not None:
        statement = statement.where(c.spec["analysis"].as_string() == analysis)
    if last is not None:
        statement = statement.where(after((c.created_at, c.id), (last[0], _uuid(cursor, last[1])), direction))
    ordered = [key.desc() if direction == "desc" else key.asc() for key in (c.created_at, c.id)]
    rows, more = cut(connection.execute(statement.order_by(*ordered).limit(limit + 1)).mappings().all(), limit)
    next_cursor = encode_cursor(query, [rows[-1]["created_at"], str(rows[-1]["id"])]) if more else None
    return Page(items=tuple(_records(connection, rows)), next_cursor=next_cursor)


def job(connection: Connection, id: UUID) -> Job:
    """One job.

    Raises:
        NotFound: no such id.
    """
    row = connection.execute(_rows().where(job_table.c.id == id)).mappings().one_or_none()
    if row is None:
        raise NotFound("job", str(id), "see the list of jobs")
    return _records(connection, [row])[0]


def owner_of(connection: Connection, id: UUID) -> str:
    """Who submitted a job.

    Raises:
        NotFound: no such id.
    """
    owner = connection.execute(select(job_table.c.owner).where(job_table.c.id == id)).scalar_one_or_none()
    if owner is None:
        raise NotFound("job", str(id), "see the list of jobs")
    return str(owner)


def events(
    connection: Connection, id: UUID, *, after_id: int = 0, types: Sequence[str] = (), count: int = 500
) -> list[JobEvent]:
    """At most `count` events of a job that follow event `after_id`, oldest first."""
    c = event_table.c
    statement = select(event_table).where(c.job_id == id, c.id > after_id).order_by(c.id).limit(count)
    if types:
        statement = statement.where(c.type.in_(types))
    return [to_event(row) for row in connection.execute(statement).mappings()]


def event_page(
    connection: Connection,
    id: UUID,
    *,
    types: Sequence[str] = (),
    limit: int = 200,
    cursor: str | None = None,
) -> Page[JobEvent]:
    """A job's events as pages.

    Raises:
        NotFound: no such job.
        BadInput: unknown type, limit out of range, foreign cursor.
    """
    limit = check_limit(limit)
    _known("type", types, EVENT_TYPES)
    owner_of(connection, id)
    query = ["events", str(id), sorted(types)]
    last = decode_cursor(query, cursor, (int,))
    rows, more = cut(events(connection, id, after_id=last[0] if last else 0, types=types, count=limit + 1), limit)
    return Page(items=tuple(rows), next_cursor=encode_cursor(query, [rows[-1].id]) if more else None)


def children(connection: Connection, parent: UUID) -> Counter[JobState]:
    """How many children of a job are in each state."""
    c = job_table.c
    rows = connection.execute(select(c.state, func.count()).where(c.parent == parent).group_by(c.state))
    return Counter({JobState(state): int(number) for state, number in rows})


def studies(connection: Connection, *, limit: int = 50, cursor: str | None = None) -> Page[Study]:
    """Studies, the newest first.

    Raises:
        BadInput: limit out of range, foreign cursor.
    """
    page = jobs(connection, kind=("study",), limit=limit, cursor=cursor)
    return Page(items=tuple(_study(connection, job) for job in page.items), next_cursor=page.next_cursor)


def study(connection: Connection, id: UUID) -> Study:
    """One study.

    Raises:
        NotFound: no such id, or a job of another kind.
    """
    found = job(connection, id)
    if found.kind != "study":
        raise NotFound("study", str(id), f"this job is of the kind {found.kind}")
    return _study(connection, found)


def analysis(connection: Connection, id: UUID) -> Job:
    """One analysis.

    Raises:
        NotFound: no such id, or a job of another kind.
    """
    found = job(connection, id)
    if found.kind != "analysis":
        raise NotFound("analysis", str(id), f"this job is of the kind {found.kind}")
    return found


def artifacts(
    connection: Connection, *, job_id: UUID | None = None, limit: int = 50, cursor: str | None = None
) -> Page[Artifact]:
    """Published files, the newest first.

    Raises:
        BadInput: limit out of range, foreign cursor.
    """
    limit = check_limit(limit)
    query = ["artifacts", job_id and str(job_id)]
    last = decode_cursor(query, cursor, ((int, float), str))
    c = artifact_table.c
    statement = select(artifact_table).order_by(c.created_at.desc(), c.id.desc()).limit(limit + 1)
    if job_id is not None:
        statement = statement.where(c.job_id == job_id)
    if last is not None:
        statement = statement.where(after((c.created_at, c.id), (last[0], _uuid(cursor, last[1])), "desc"))
    rows, more = cut(connection.execute(statement).mappings().all(), limit)
    next_cursor = encode_cursor(query, [rows[-1]["created_at"], str(rows[-1]["id"])]) if more else None
    return Page(items=tuple(to_artifact(row) for row in rows), next_cursor=next_cursor)


def artifact(connection: Connection, id: UUID) -> Artifact:
    """One published file.

    Raises:
        NotFound: no such id.
    """
    row = connection.execute(select(artifact_table).where(artifact_table.c.id == id)).mappings().one_or_none()
    if row is None:
        raise NotFound("artifact", str(id), "see the list of artifacts")
    return to_artifact(row)


def _rows() -> Select[Any]:
    return select(*(job_table.c[name] for name in _COLUMNS))


def _records(connection: Connection, rows: Sequence[RowMapping]) -> list[Job]:
    waits = after_of(connection, [row["id"] for row in rows]) if rows else {}
    return [to_job(row, waits[row["id"]]) for row in rows]


def _study(connection: Connection, job: Job) -> Study:
    states = children(connection, job.id)
    return Study(job=job, children=dict(states), children_total=sum(states.values()))


def _known(field: str, values: Iterable[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise BadInput(field, value, f"one of {', '.join(known)}")


def _uuid(cursor: str | None, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise BadInput("cursor", cursor, "a next_cursor of an earlier page") from None
