"""What routes ask for: the store, the settings, who is asking; and the parameters that many of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from backend.domain.errors import NotAllowed
from backend.domain.records import NAME_PATTERN
from backend.queue import Dispatcher
from backend.settings import Settings
from backend.store.queries import jobs as job_queries
from backend.store.queries.paging import LIMIT
from backend.store.session import Store
from backend.store.tokens import Principal


@dataclass(frozen=True)
class Services:
    """What one web process holds."""

    settings: Settings
    store: Store
    dispatcher: Dispatcher


def services(request: Request) -> Services:
    return request.app.state.services  # type: ignore[no-any-return]


def principal(request: Request) -> Principal:
    return request.state.principal  # type: ignore[no-any-return]


Serving = Annotated[Services, Depends(services)]
Caller = Annotated[Principal, Depends(principal)]

PageLimit = Annotated[int, Query(ge=1, le=LIMIT, description="items on this page")]
Cursor = Annotated[str | None, Query(max_length=2000, description="`next_cursor` of the page before")]
NameFilter = Annotated[str | None, Query(min_length=1, max_length=200)]
PathName = Annotated[str, Path(min_length=1, max_length=200, pattern=NAME_PATTERN)]
SplitName = Annotated[str | None, Query(min_length=1, max_length=200, pattern=NAME_PATTERN)]
DatasetName = Annotated[str | None, Query(min_length=1, max_length=200, pattern=NAME_PATTERN)]
PathId = Annotated[UUID, Path(description="a UUID")]


def json_of(record: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A record as JSON: times in UTC with a Z, never NaN; written once, not checked again on the way out."""
    return Response(record.model_dump_json(), status, headers, media_type="application/json")


def own_job(serving: Services, caller: Principal, id: UUID) -> None:
    """Only who submitted a job, or an admin, may change it.

    Raises:
        NotFound: no such job.
        NotAllowed: it is another owner's.
    """
    if caller.may("admin"):
        return
    with serving.store.read() as connection:
        if job_queries.owner_of(connection, id) != caller.owner:
            raise NotAllowed("this job was submitted by another owner; that needs the scope admin")
