"""Jobs: submit, watch, cancel, retry; studies and analyses, which are jobs too."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from backend import submission
from backend.api import events as event_stream
from backend.api.deps import Caller, Cursor, PageLimit, PathId, Services, Serving, json_of, own_job
from backend.domain.jobs import Job, JobEvent, JobState
from backend.domain.study_summary import StudyTable
from backend.store.queries import jobs as queries
from backend.store.queries.jobs import Study
from backend.store.queries.paging import Page
from backend.store.tokens import Principal
from backend.studies import study_table

router = APIRouter(tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="same key and body: the same job (200, Idempotent-Replayed); same key, other body: 422",
    ),
]
EventType = Literal["state", "progress", "metric", "log"]
JobSort = Literal["created_at", "-created_at"]
ACCEPTED: dict[int | str, dict[str, Any]] = {
    200: {"model": Job, "description": "The job that the same Idempotency-Key started before"},
    202: {"model": Job, "description": "Accepted; Location says where to watch it"},
}


class Submission(BaseModel):
    """What to do: a job kind, its spec, and when."""

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(max_length=32, examples=["scan"])
    spec: dict[str, Any] = Field(examples=[{"models": ["resnet18.a1_in1k"], "dataset": "digits"}])
    priority: int = Field(default=0, strict=True, ge=-1000, le=1000, description="higher first")
    after: list[UUID] = Field(default_factory=list, max_length=1000, description="jobs that must succeed before")


class Retry(BaseModel):
    """How to try again: from the start, or from the last checkpoint."""

    model_config = ConfigDict(extra="forbid")

    resume: bool = Field(default=False, strict=True)


@router.post("/jobs", response_model=Job, status_code=202, responses=ACCEPTED)
def submit_job(serving: Serving, caller: Caller, body: Submission, idempotency_key: IdempotencyKey = None) -> Response:
    """Queue a job. It is stored before this answers, whether or not a broker or a worker is up."""
    return submitted(
        serving,
        caller,
        body.kind,
        body.spec,
        priority=body.priority,
        after=tuple(body.after),
        idempotency_key=idempotency_key,
    )


def submitted(
    serving: Services,
    caller: Principal,
    kind: str,
    spec: dict[str, Any],
    *,
    priority: int = 0,
    after: tuple[UUID, ...] = (),
    idempotency_key: str | None = None,
) -> Response:
    """Submit, and the answer to it: 202, or 200 where the key was seen before."""
    done = submission.submit(
        serving.store,
        serving.settings,
        kind,
        spec,
        priority=priority,
        after=after,
        owner=caller.owner,
        idempotency_key=idempotency_key,
    )
    serving.dispatcher.wake()
    headers = {"Location": f"/api/v1/jobs/{done.job.id}"}
    if done.replayed:
        return json_of(done.job, 200, headers | {"Idempotent-Replayed": "true"})
    return json_of(done.job, 202, headers)


@router.get("/jobs", response_model=Page[Job])
def list_jobs(
    serving: Serving,
    state: Annotated[list[JobState], Query(max_length=6)] = [],  # noqa: B006 (FastAPI copies it)
    kind: Annotated[list[str], Query(max_length=20)] = [],  # noqa: B006
    parent: UUID | None = None,
    sort: JobSort = "-created_at",
    limit: PageLimit = 50,
    cursor: Cursor = None,
) -> Response:
    """Jobs, the newest first; `state` and `kind` may be given several times."""
    with serving.store.read() as connection:
        page = queries.jobs(connection, state=state, kind=kind, parent=parent, sort=sort, limit=limit, cursor=cursor)
    return json_of(page)


@router.get("/jobs/{id}", response_model=Job)
def show_job(serving: Serving, id: PathId) -> Response:
    """One job with its progress, and its result once it succeeded."""
    with serving.store.read() as connection:
        return json_of(queries.job(connection, id))


@router.get(
    "/jobs/{id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "state, progress, metric and log events"}},
)
def stream_events(
    serving: Serving,
    id: PathId,
    last_event_id: Annotated[str | None, Header(max_length=32, description="go on after this event")] = None,
    after: Annotated[int | None, Query(ge=0, le=2**62, description="as Last-Event-ID, for clients without it")] = None,
) -> Response:
    """Server-sent events, from the first or from the one after Last-Event-ID, until the job has ended."""
    start = event_stream.last_event_id(last_event_id, after)
    with serving.store.read() as connection:
        queries.job(connection, id)
    return StreamingResponse(
        event_stream.follow(serving.store, id, start),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/jobs/{id}/logs", response_model=Page[JobEvent])
def job_logs(
    serving: Serving,
    id: PathId,
    type: Annotated[list[EventType], Query(max_length=4)] = ["log", "state"],  # noqa: B006
    limit: PageLimit = 200,
    cursor: Cursor = None,
) -> Response:
    """The history of a job as pages: log lines and changes of state, or any other events."""
    with serving.store.read() as connection:
        return json_of(queries.event_page(connection, id, types=type, limit=limit, cursor=cursor))


@router.post("/jobs/{id}/cancel", response_model=Job)
def cancel_job(serving: Serving, caller: Caller, id: PathId) -> Response:
    """Ask a job to stop. A job that has ended stays as it is and is returned."""
    own_job(serving, caller, id)
    return json_of(submission.cancel(serving.store, serving.settings, id))


@router.post("/jobs/{id}/retry", response_model=Job, status_code=202, responses={202: ACCEPTED[202]})
def retry_job(serving: Serving, caller: Caller, id: PathId, body: Retry | None = None) -> Response:
    """A new job with the same spec; with `resume` it starts from the last checkpoint of the old one."""
    own_job(serving, caller, id)
    job = submission.retry(serving.store, serving.settings, id, resume=(body or Retry()).resume, owner=caller.owner)
    serving.dispatcher.wake()
    return json_of(job, 202, {"Location": f"/api/v1/jobs/{job.id}"})


@router.get("/studies", response_model=Page[Study])
def list_studies(serving: Serving, limit: PageLimit = 50, cursor: Cursor = None) -> Response:
    """Studies, the newest first, with the states of their children."""
    with serving.store.read() as connection:
        return json_of(queries.studies(connection, limit=limit, cursor=cursor))


@router.get("/studies/{id}", response_model=Study)
def show_study(serving: Serving, id: PathId) -> Response:
    """One study; its children are `GET /jobs?parent=ID`."""
    with serving.store.read() as connection:
        return json_of(queries.study(connection, id))


@router.get("/studies/{id}/table", response_model=StudyTable)
def show_study_table(serving: Serving, id: PathId) -> Response:
    """What a study found so far: a row a transfer, a summary a method, paired differences with intervals."""
    with serving.store.read() as connection:
        return json_of(study_table(connection, id))


@router.get("/analyses", response_model=Page[Job])
def list_analyses(
    serving: Serving,
    analysis: Annotated[str | None, Query(max_length=40, description="such as expertness, information, logme")] = None,
    state: Annotated[list[JobState], Query(max_length=6)] = [],  # noqa: B006
    limit: PageLimit = 50,
    cursor: Cursor = None,
) -> Response:
    """Analyses, the newest first; `result` holds what was measured."""
    with serving.store.read() as connection:
        page = queries.jobs(connection, kind=("analysis",), analysis=analysis, state=state, limit=limit, cursor=cursor)
    return json_of(page)


@router.get("/analyses/{id}", response_model=Job)
def show_analysis(serving: Serving, id: PathId) -> Response:
    """One analysis."""
    with serving.store.read() as connection:
        return json_of(queries.analysis(connection, id))
