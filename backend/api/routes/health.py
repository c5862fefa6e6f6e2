"""Is the process alive, can it serve, and what does it count?"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from backend.api.deps import Serving, json_of
from backend.api.problems import FieldError, problem
from backend.domain.errors import StoreUnavailable
from backend.settings import Settings

router = APIRouter(tags=["health"])

BROKER_S = 1.0


class Health(BaseModel):
    status: Annotated[str, Field(description="ok")] = "ok"


class Readiness(BaseModel):
    """What a web process needs; each `ok`, or why not. The broker is `none` where the supervisor polls instead."""

    status: str
    database: str
    migration: str
    broker: str


@router.get("/healthz", response_model=Health)
async def healthz() -> Response:
    """The process answers. Needs no token and touches nothing."""
    return json_of(Health())


@router.get("/readyz", response_model=Readiness)
def readyz(serving: Serving) -> Response:
    """Database, its migration and the broker answer; 503 while one does not."""
    from backend.store.migrate import require_head

    database = migration = "ok"
    try:
        with serving.store.read():
            pass
        try:
            require_head(serving.store)
        except StoreUnavailable as error:
            migration = error.message
    except StoreUnavailable:
        database, migration = "unreachable", "unknown"
    readiness = Readiness(status="ok", database=database, migration=migration, broker=_broker(serving.settings))
    wrong = [
        FieldError(field=name, value=value, expected="ok")
        for name, value in readiness.model_dump(exclude={"status"}).items()
        if value not in ("ok", "none")
    ]
    if wrong:
        detail = "; ".join(f"{error.field}: {error.value}" for error in wrong)
        return problem(503, detail, cause="not_ready", title="Not ready", errors=wrong, headers={"Retry-After": "5"})
    return json_of(readiness)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(serving: Serving) -> Response:
    """Queue depth, running jobs, heartbeats, attempts and images/s for Prometheus."""
    from prometheus_client import CONTENT_TYPE_LATEST

    from backend.api.exposition import exposition

    return Response(exposition(serving.store), media_type=CONTENT_TYPE_LATEST)


def _broker(settings: Settings) -> str:
    if settings.broker_url is None:
        return "none"
    from kombu import Connection

    options = {"socket_connect_timeout": BROKER_S, "socket_timeout": BROKER_S, "max_retries": 0}
    try:
        with Connection(settings.broker_url, connect_timeout=BROKER_S, transport_options=options) as broker:
            broker.default_channel.close()  # opening it has asked the broker
    except Exception:  # the rim towards the broker: whatever it does, we are asked whether it answers
        return "unreachable"
    return "ok"
