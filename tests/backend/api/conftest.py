from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from starlette.testclient import TestClient

from backend.api.app import create_app
from backend.settings import Settings
from backend.store.session import Store


def small_dashboard() -> Any:
    """A WSGI application with Dash's routes, so that the guard can be seen outside both frameworks."""
    server = flask.Flask("dashboard")

    @server.route("/", defaults={"path": ""})
    @server.route("/<path:path>", methods=["GET", "POST"])
    def page(path: str) -> str:
        principal = flask.request.environ["asgi.scope"]["state"]["principal"]
        return f"page {path} for {principal.owner}"

    return server


@pytest.fixture
def client_of(zoo: Store, settings: Settings) -> Iterator[Callable[..., TestClient]]:
    """A client of the application on the small zoo, with changed settings."""
    made: list[TestClient] = []

    def make(name: str = "localhost", listen: str = "127.0.0.1", **changes: Any) -> TestClient:
        app = create_app(settings.model_copy(update={"host": listen, **changes}), small_dashboard, store=zoo)
        made.append(TestClient(app, base_url=f"http://{name}", raise_server_exceptions=False))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(client_of: Callable[..., TestClient]) -> TestClient:
    """On loopback, without a token."""
    return client_of()
