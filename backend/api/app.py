"""The web process: one guard, REST under /api, health and metrics, and the dashboard for every other path."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.api import problems
from backend.api.access import Door, is_api
from backend.api.deps import Services
from backend.api.guard import Guard
from backend.api.routes import ROUTERS
from backend.domain.errors import StoreUnavailable
from backend.queue import Dispatcher
from backend.settings import Settings
from backend.store import tokens
from backend.store.session import Store

API = "/api/v1"
DESCRIPTION = (
    "What one pretrained image model knows that another does not, and the jobs that graft it over. "
    "Rates are fractions, times ISO 8601 UTC, ids UUIDs; lists are `{items, next_cursor}`."
)

WARM_AFTER_S = 0.5
THREADS = 5

DashboardFactory = Callable[[], Any]
"""Makes the dashboard's WSGI callable; called once, after the server listens."""


def create_app(settings: Settings, dashboard: DashboardFactory | None = None, *, store: Store | None = None) -> FastAPI:
    """The ASGI application of one web process.

    Args:
        dashboard: makes the dashboard's WSGI callable (a Flask server); None: every other path is 404.
        store: an open store to use; None: the settings' own, closed with the application.

    Raises:
        BadInput: an address that others can reach without any token.
    """
    held = store or Store.open(settings.database, settings=settings)
    door = Door(settings, stored=lambda token: _stored(held, token))
    door.check_address(lambda: _any_token(held))
    pages = LazyWSGI(dashboard) if dashboard is not None else None

    dispatcher = Dispatcher(held, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if pages is not None:
            pages.warm()
        dispatcher.start()
        # More threads than this only take the interpreter's lock from each other: the slowest answers double.
        current_default_thread_limiter().total_tokens = THREADS
        yield
        dispatcher.stop()
        if store is None:
            held.close()

    app = FastAPI(
        title="Zoograft",
        version="1",
        description=DESCRIPTION,
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        responses=problems.RESPONSES,
    )
    app.state.services = Services(settings, held, dispatcher)
    app.state.door = door
    for prefix, router in ROUTERS:
        app.include_router(router, prefix=prefix)
    problems.install(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    # The last one added is the outermost: guard → compression → REST or dashboard.
    app.add_middleware(Switch, pages=pages)
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=4)
    app.add_middleware(Guard, door=door)
    return app


class Switch:
    """REST's paths go to REST, which answers 404 and 405 for itself; all others are the dashboard's."""

    def __init__(self, app: ASGIApp, pages: ASGIApp | None) -> None:
        self.app, self.pages = app, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.pages is not None and scope["type"] == "http" and not is_api(scope["path"]):
            await self.pages(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class LazyWSGI:
    """A WSGI application that is imported and built after the server listens, in a thread, once."""

    def __init__(self, factory: DashboardFactory) -> None:
        self.factory = factory
        self._lock = threading.Lock()
        self._wsgi: Any = None
        self._asgi: Any = None

    def warm(self) -> None:
        """Build it in the background, a moment after the first requests were answered."""
        timer = threading.Timer(WARM_AFTER_S, self._warm)
        timer.daemon = True
        timer.start()

    def _warm(self) -> None:
        try:
            self._build()
        except Exception as error:  # the rim of a thread; the pages answer 500 with the same reason in the log
            structlog.get_logger("zoograft.dashboard").error("the dashboard does not start", reason=repr(error))

    def _build(self) -> Any:
        with self._lock:
            if self._wsgi is None:
                self._wsgi = self.factory()
            return self._wsgi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._asgi is None:
            from a2wsgi import WSGIMiddleware
            from starlette.concurrency import run_in_threadpool

            self._asgi = WSGIMiddleware(await run_in_threadpool(self._build), workers=16)
        await self._asgi(scope, receive, send)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = schema.setdefault("components", {})
        problem = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        definitions = problem.pop("$defs", {})
        components.setdefault("schemas", {}).update({"Problem": problem, **definitions})
        for unused in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(unused, None)
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}, {}]
        app.openapi_schema = schema
    return app.openapi_schema


def _stored(store: Store, token: str) -> tokens.Principal | None:
    with store.read() as connection:
        return tokens.verify(connection, token)


def _any_token(store: Store) -> bool:
    try:
        with store.read() as connection:
            return any(token.revoked_at is None for token in tokens.list_tokens(connection))
    except StoreUnavailable:
        return False
