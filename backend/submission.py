"""How work enters: check the references, insert the row, commit. The queued row is the outbox; nothing is published.

`submit` for one job, `submit_study` for a parent with children in one transaction, `cancel`, and `retry` (also as
`resume`), which never touch a finished row but insert a new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from backend import studies
from backend.domain.errors import BadInput, Conflict, KeyReused
from backend.domain.jobs import TERMINAL, Job, JobState
from backend.domain.kdep_studies import is_kdep_study
from backend.domain.records import canonical_json, content_hash
from backend.domain.specs import dump_spec, parse_spec
from backend.domain.studies import StudySpec
from backend.queue import device_for, queue_for
from backend.references import check_references, promised_by
from backend.settings import Settings
from backend.store import job_reads, jobs
from backend.store.job_moves import share_graph
from backend.store.job_records import new_ids
from backend.store.session import Store

MAX_PRIORITY = 1000
MAX_AFTER = 1000
MAX_CHILDREN = 20_000


@dataclass(frozen=True)
class Submitted:
    """The job that stands for a request; `replayed` when an earlier request with the same key had made it. `children`
    are a new study's jobs by their local keys."""

    job: Job
    replayed: bool = False
    children: Mapping[str, UUID] = field(default_factory=dict)


@dataclass(frozen=True)
class Child:
    """One job of a study. `key` names it within the study, `after` are keys of others that must succeed first."""

    key: str
    kind: str
    spec: Mapping[str, Any] | BaseModel
    after: tuple[str, ...] = ()
    retry_of: UUID | None = None


@dataclass(frozen=True)
class _Request:
    """What two submissions must agree on to be the same one."""

    owner: str
    key: str | None
    body_sha256: str


def submit(
    store: Store,
    settings: Settings,
    kind: str,
    spec: Mapping[str, Any] | BaseModel,
    *,
    priority: int = 0,
    after: Sequence[UUID] = (),
    owner: str = "local",
    idempotency_key: str | None = None,
    parent: UUID | None = None,
    retry_of: UUID | None = None,
    resume_from: UUID | None = None,
) -> Submitted:
    """Queue one job, or a study with its children. When this returns, the rows are committed.

    Args:
        spec: What `backend.domain.specs` has for `kind`, as a record or as its JSON.
        priority: Higher first, -1000 to 1000.
        after: Jobs that must succeed first; if one does not, this one is cancelled.
        idempotency_key: The same key with the same body gives the same job, however often and however concurrently.
        parent: An unfinished study that this job joins.
        resume_from: The job whose last checkpoint this one goes on from.

    Raises:
        BadInput, NotFound: Names the field (`spec.student`) and what would be right.
        KeyReused: The key was used for another body.
        StoreUnavailable: Nothing is queued, or (rarely) it is, and the answer was lost; repeat with the same key.
    """
    if kind == "study" and is_kdep_study(spec):
        from backend.kdep_studies import parse_kdep_study, submit_kdep_study

        options = {"priority": priority, "after": after, "owner": owner, "idempotency_key": idempotency_key}
        return submit_kdep_study(store, settings, parse_kdep_study(dict(spec)), **options)
    if kind == "study":
        if not isinstance(spec, (StudySpec, Mapping)):
            raise BadInput("spec", spec, "an object")
        study = spec if isinstance(spec, StudySpec) else studies.parse(dict(spec))
        with store.read() as connection:
            children = [
                Child(one.key, one.kind, one.spec, one.after) for one in studies.children_to_run(connection, study)
            ]
        return submit_study(
            store,
            settings,
            study,
            children,
            priority=priority,
            after=after,
            owner=owner,
            idempotency_key=idempotency_key,
            derived=True,
        )
    stored = _parsed(kind, spec)
    _check_plain(priority, after, idempotency_key)
    body = content_hash(kind, stored, priority, sorted(str(one) for one in after), str(parent))
    request = _Request(owner, idempotency_key, body)
    [job_id] = new_ids(1)

    def insert(connection: Connection) -> None:
        if after or parent:
            share_graph(connection)
        waits = job_reads.require_promising(connection, after)
        if parent is not None:
            job_reads.require_open_study(connection, parent)
        check_references(connection, kind, parse_spec(kind, stored), promised_by((one.kind, one.spec) for one in waits))
        checkpoint = job_reads.checkpoints_of(connection, resume_from) if resume_from else ()
        if resume_from and not checkpoint:
            raise Conflict(f"job {resume_from} left no checkpoint to resume from; retry it from the start instead")
        new = jobs.NewJob(
            kind,
            queue_for(kind, stored),
            stored,
            job_id,
            device=device_for(stored),
            priority=priority,
            owner=owner,
            idempotency_key=idempotency_key,
            body_sha256=body,
            after=tuple(after),
            parent=parent,
            retry_of=retry_of,
            resume_from=resume_from,
            checkpoint=[vars(one) for one in checkpoint],
        )
        jobs.add(connection, [new])

    return _once(store, request, job_id, insert)


def submit_study(
    store: Store,
    settings: Settings,
    spec: Mapping[str, Any] | BaseModel,
    children: Sequence[Child],
    *,
    priority: int = 0,
    after: Sequence[UUID] = (),
    owner: str = "local",
    idempotency_key: str | None = None,
    retry_of: UUID | None = None,
    derived: bool = False,
) -> Submitted:
    """Queue a study: a parent, whose state is derived from its children, and the children, in one transaction.

    Args:
        spec: Whatever describes the study; stored as it is.
        children: In the order in which they should run; names that one child saves (`save_as`) count as known to the
            others.
        after: Jobs that must succeed before any child starts.
        derived: The children follow from `spec` and the catalog as it is now, so that only `spec` decides whether two
            requests of one key are the same.

    Raises:
        BadInput: Also for two children of one key, an unknown key in `after`, and a circle.
    """
    stored = dict(dump_spec(spec) if isinstance(spec, BaseModel) else spec)
    canonical_json(stored)
    _check_plain(priority, after, idempotency_key)
    parsed = _checked_children(children)
    shape = [] if derived else [(one.key, one.kind, parsed[one.key], list(one.after)) for one in children]
    body = content_hash("study", stored, shape, priority, sorted(str(one) for one in after))
    study_id, *ids = new_ids(len(children) + 1)
    by_key = dict(zip((child.key for child in children), ids, strict=True))

    def insert(connection: Connection) -> None:
        if after:
            share_graph(connection)
        waits = job_reads.require_promising(connection, after)
        promised = promised_by((child.kind, parsed[child.key]) for child in children)
        promised |= promised_by((one.kind, one.spec) for one in waits)
        for child in children:
            record = parse_spec(child.kind, parsed[child.key])
            try:
                check_references(connection, child.kind, record, promised)
            except BadInput as error:
                error.field = f"children.{child.key}.{error.field}"
                raise
        parent = jobs.NewJob(
            "study",
            "cpu",
            stored,
            study_id,
            priority=priority,
            owner=owner,
            idempotency_key=idempotency_key,
            body_sha256=body,
            retry_of=retry_of,
            total=len(children),
        )
        rows = [
            jobs.NewJob(
                child.kind,
                queue_for(child.kind, parsed[child.key]),
                parsed[child.key],
                by_key[child.key],
                device=device_for(parsed[child.key]),
                priority=priority,
                owner=owner,
                after=(*after, *(by_key[key] for key in child.after)),
                parent=study_id,
                retry_of=child.retry_of,
            )
            for child in children
        ]
        jobs.add(connection, [parent, *rows])

    submitted = _once(store, _Request(owner, idempotency_key, body), study_id, insert)
    return submitted if submitted.replayed else Submitted(submitted.job, False, by_key)


def cancel(store: Store, settings: Settings, job_id: UUID) -> Job:
    """Ask for a job's end; returns how it stands now. A job that has ended stays as it is.

    Raises:
        NotFound: No such job.
    """
    with store.write() as connection:
        return jobs.cancel(connection, job_id)


def retry(store: Store, settings: Settings, job_id: UUID, *, resume: bool = False, owner: str | None = None) -> Job:
    """Try a failed or cancelled job again as a new job (`retry_of`), from its last checkpoint with `resume`.

    Of a study, a new study with those children that did not succeed.

    Raises:
        NotFound: No such job.
        Conflict: It has not ended, it succeeded, it has no checkpoint, or what it waits for failed and was not retried.
    """
    with store.read() as connection:
        old = jobs.get(connection, job_id)
        if old.state not in TERMINAL:
            raise Conflict(f"job {job_id} is {old.state.value}; only a job that has ended can be tried again")
        if old.state is JobState.SUCCEEDED:
            raise Conflict(f"job {job_id} succeeded; there is nothing to try again")
        children = job_reads.children_of(connection, job_id) if old.kind == "study" else []
        owner = owner or job_reads.owner_of(connection, job_id)
        inside = {child.id for child in children if child.state is not JobState.SUCCEEDED}
        waits = {one.id: _still_promising(connection, one.after, inside) for one in (old, *children)}
    if old.kind != "study":
        return submit(
            store,
            settings,
            old.kind,
            old.spec,
            priority=old.priority,
            after=waits[old.id],
            owner=owner,
            retry_of=old.id,
            resume_from=old.id if resume else None,
        ).job
    if resume:
        raise Conflict("a study has no checkpoint; retry it, or resume its children one by one")
    again = [
        Child(str(child.id), child.kind, child.spec, tuple(str(one) for one in child.after if one in inside), child.id)
        for child in children
        if child.id in inside
    ]
    outside = sorted({one for child_id in inside for one in waits[child_id] if one not in inside})
    return submit_study(
        store, settings, old.spec, again, priority=old.priority, after=outside, owner=owner, retry_of=old.id
    ).job


def _once(store: Store, request: _Request, job_id: UUID, insert: Any) -> Submitted:
    """Insert, unless this key has done so before; whoever comes second, however close, gets the first one's job."""
    guard = request.key is not None
    try:
        with store.write() as connection:
            if guard and (known := _replay(connection, request)):
                return known
            insert(connection)
            return Submitted(jobs.get(connection, job_id))
    except IntegrityError:
        if not guard:
            raise
    with store.read() as connection:
        if known := _replay(connection, request):
            return known
    raise Conflict("the request contradicts one that was made at the same time; repeat it")


def _replay(connection: Connection, request: _Request) -> Submitted | None:
    found = job_reads.by_idempotency_key(connection, request.owner, str(request.key))
    if found is None:
        return None
    job, body_sha256 = found
    if body_sha256 != request.body_sha256:
        raise KeyReused(f"Idempotency-Key {request.key!r} was used for another request; choose a new key")
    return Submitted(job, replayed=True)


def _parsed(kind: str, spec: Mapping[str, Any] | BaseModel) -> dict[str, Any]:
    if isinstance(spec, BaseModel):
        return dump_spec(spec)
    return dump_spec(parse_spec(kind, dict(spec) if isinstance(spec, Mapping) else spec))


def _check_plain(priority: int, after: Sequence[UUID], key: str | None) -> None:
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > MAX_PRIORITY:
        raise BadInput("priority", priority, f"a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}, higher first")
    if len(after) > MAX_AFTER:
        raise BadInput("after", len(after), f"at most {MAX_AFTER} jobs")
    if key is not None and not (0 < len(key) <= 255 and key.isprintable() and key.strip()):
        raise BadInput("Idempotency-Key", key, "1 to 255 printable characters")


def _checked_children(children: Sequence[Child]) -> dict[str, dict[str, Any]]:
    """The children's specs by key; their keys are distinct and their order has no circle."""
    if not 0 < len(children) <= MAX_CHILDREN:
        raise BadInput("children", len(children), f"1 to {MAX_CHILDREN} jobs")
    parsed: dict[str, dict[str, Any]] = {}
    for child in children:
        if child.key in parsed:
            raise BadInput("children", child.key, "a different key for every job of the study")
        try:
            parsed[child.key] = _parsed(child.kind, child.spec)
        except BadInput as error:
            error.field = f"children.{child.key}.{error.field}"
            raise
    waiting = {child.key: set(child.after) for child in children}
    for key, needs in waiting.items():
        if unknown := needs - parsed.keys():
            raise BadInput(f"children.{key}.after", sorted(unknown)[0], "the key of another job of the study")
    while waiting:
        ready = [key for key, needs in waiting.items() if not needs & waiting.keys()]
        if not ready:
            raise BadInput("children", sorted(waiting)[0], "an order without a circle: these jobs wait for each other")
        for key in ready:
            del waiting[key]
    return parsed


def _still_promising(connection: Connection, after: Sequence[UUID], inside: set[UUID]) -> list[UUID]:
    """What a new try has to wait for: where a job failed, its latest try that did not."""
    wanted = []
    for one in after:
        found = one if one in inside else job_reads.latest_try(connection, one)
        if found is None:
            raise Conflict(f"it waits for job {one}, which did not succeed; retry that one first")
        wanted.append(found)
    return wanted
