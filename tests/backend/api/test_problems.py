from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from backend.api import problems
from backend.domain import errors
from backend.domain.errors import BadInput, Conflict, KeyReused, NotAllowed, NotFound, StoreUnavailable, ZoograftError
from backend.settings import Settings
from backend.store.session import Store


def all_errors(base: type[ZoograftError] = ZoograftError) -> list[type[ZoograftError]]:
    return [base, *(found for child in base.__subclasses__() for found in all_errors(child))]


def test_every_error_has_a_status() -> None:
    for error in all_errors():
        if error.__module__ == errors.__name__:
            assert any(cls in problems.STATUS for cls in error.__mro__)


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (BadInput("lr", -1, "a number > 0"), 422, "bad_input"),
        (NotFound("model", "resnet"), 404, "not_found"),
        (Conflict("taken"), 409, "conflict"),
        (KeyReused("again"), 422, None),
        (NotAllowed("no"), 403, "not_allowed"),
        (errors.MissingExtra("scan", "workers"), 501, "missing_extra"),
        (StoreUnavailable("secret-host does not answer"), 503, "store_unavailable"),
        (ZoograftError("oh"), 500, "error"),
    ],
)
def test_status_and_type(error: ZoograftError, status: int, cause: str | None) -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    def fail() -> None:
        raise error

    answer = TestClient(app).get("/")
    document = answer.json()
    assert answer.status_code == status == document["status"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(document) == {"type", "title", "status", "detail", "errors"}
    if cause:
        assert document["type"] == f"urn:zoograft:{cause}"
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "secret-host" not in answer.text


def test_a_bad_input_names_field_value_and_what_is_right() -> None:
    body = problems.problem_of(BadInput("lr", -1, "a number > 0")).body
    assert b'"errors":[{"field":"lr","value":-1,"expected":"a number > 0"}]' in body


def test_something_unknown_in_a_body_is_bad_input_not_a_missing_page() -> None:
    error = NotFound("model", "x")
    error.field = "spec.student"
    assert problems.problem_of(error).status_code == 422
    assert problems.problem_of(NotFound("model", "x")).status_code == 404


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("lr", float("nan"), "nan"),
        ("lr", float("inf"), "inf"),
        ("token", "canary", "***"),
        ("spec.api_key", "canary", "***"),
        ("spec", {"password": "canary"}, "***"),
        ("name", "x" * 5000, None),
        ("name", "ok", "ok"),
        ("ids", [1, 2], [1, 2]),
        ("object", object(), None),
    ],
)
def test_refused_values_are_shown_safely(field: str, value: Any, shown: Any) -> None:
    found = problems.presentable(field, value)
    if shown is None:
        assert isinstance(found, str)
        assert len(found) <= 200
    else:
        assert found == shown


def test_an_unexpected_error_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    def fail() -> None:
        raise RuntimeError("postgresql://user:canary@host/db")

    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert answer.status_code == 500
    assert "canary" not in answer.text
    output = capsys.readouterr()
    assert "RuntimeError" in output.out + output.err  # but the log has it
    assert "canary" not in output.out + output.err


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api", 404),
        ("DELETE", "/api/v1/jobs", 405),
        ("PUT", "/api/v1/pairs", 405),
        ("GET", "/api/v1/jobs/7", 422),
        ("GET", "/api/v1/jobs/00000000-0000-0000-0000-000000000000", 404),
        ("GET", "/api/v1/jobs?limit=0", 422),
        ("GET", "/api/v1/jobs?limit=201", 422),
        ("GET", "/api/v1/jobs?limit=99999999999999999999999", 422),
        ("GET", "/api/v1/jobs?state=done", 422),
        ("GET", "/api/v1/jobs?cursor=AAAA", 422),
        ("GET", "/api/v1/pairs?positive_flip_rate_min=nan", 422),
        ("GET", "/api/v1/pairs?sort=drop%20table", 422),
        ("GET", "/api/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/api/v1/models/a%00b", 404),
        ("GET", "/api/v1/models/naïve", 422),
        ("POST", "/api/v1/jobs", 422),
    ],
)
def test_every_refusal_is_a_problem(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    if status == 405:
        assert answer.headers["allow"] == ("GET, POST" if path.endswith("jobs") else "GET")
    if status == 422:
        assert answer.json()["errors"][0]["field"]


def test_a_database_that_is_away_is_503(settings: Settings, client_of: Callable[..., TestClient], zoo: Store) -> None:
    from backend.api.app import create_app

    away = settings.model_copy(
        update={"database_url": "postgresql+psycopg://user:canary@127.0.0.1:1/none", "disabled_guards": ""}
    )
    away.__dict__.pop("database", None)
    with TestClient(create_app(away), base_url="http://localhost") as client:
        for path in ("/api/v1/jobs", "/api/v1/pairs", "/api/v1/models/x", "/readyz"):
            answer = client.get(path)
            assert answer.status_code == 503, path
            assert int(answer.headers["retry-after"]) > 0
            assert "canary" not in answer.text
            assert "127.0.0.1" not in answer.text
        assert client.post("/api/v1/jobs", json={"kind": "sleep", "spec": {}}).status_code == 503
        assert client.get("/healthz").status_code == 200
