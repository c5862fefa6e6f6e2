"""Who gets in: every route × {no token, wrong token, too small a scope, foreign Host, foreign Origin} (RELIABILITY T17)."""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from backend.api.access import COOKIE, Door, is_loopback, required_scope
from backend.api.app import create_app
from backend.api.guard import BODY_LIMIT
from backend.domain.errors import BadInput
from backend.settings import Settings
from backend.store import tokens
from backend.store.session import Store

TOKEN = "correct horse battery staple"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
DASHBOARD_PATHS = (
    "/",
    "/pairs",
    "/_dash-layout",
    "/_dash-dependencies",
    "/_dash-update-component",
    "/_dash-component-suites/x.js",
    "/_reload-hash",
    "/_favicon.ico",
    "/assets/app.css",
    "/static/x",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/api",
    "/api/",
    "/api/v1",
    "/api/v2/jobs",
    "/ajax-api/3.0/jobs",
)


def routes(client: TestClient) -> list[str]:
    """Every path of REST with its parameters filled in, and the dashboard's."""
    schema = client.get("/api/v1/openapi.json", headers=bearer(TOKEN)).json()
    filled = [re.sub(r"\{[^}]+\}", "00000000-0000-0000-0000-000000000000", path) for path in schema["paths"]]
    assert len(filled) > 25
    return sorted({*filled, "/api/v1/openapi.json", *DASHBOARD_PATHS})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def guarded(client_of: Callable[..., TestClient]) -> TestClient:
    """Where others can reach it, with a token."""
    return client_of("10.1.2.3", listen="0.0.0.0", token=SecretStr(TOKEN))


def test_every_route_refuses_whoever_has_no_token(guarded: TestClient) -> None:
    for path in routes(guarded):
        for method in METHODS:
            if path == "/healthz":
                continue
            for headers in (
                {},
                bearer("wrong"),
                bearer(""),
                {"Authorization": "Basic Zm9vOmJhcg=="},
                {"Cookie": f"{COOKIE}=wrong"},
            ):
                answer = guarded.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path, headers)
                assert "WWW-Authenticate" in answer.headers
                assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_right_token_gets_in_everywhere(guarded: TestClient) -> None:
    for path in routes(guarded):
        answer = guarded.get(path, headers=bearer(TOKEN))
        assert answer.status_code not in (401, 403), path
    assert guarded.get("/pairs?x=1", headers=bearer(TOKEN)).text == "page pairs for local"


def test_health_needs_no_token_and_says_nothing(guarded: TestClient) -> None:
    assert guarded.get("/healthz").json() == {"status": "ok"}
    assert guarded.post("/healthz").status_code == 405


def test_foreign_hosts_are_refused_everywhere(client: TestClient) -> None:
    """DNS rebinding: the attacker's name, resolved to our address."""
    for path in (*DASHBOARD_PATHS, "/healthz", "/api/v1/jobs", "/api/v1/models"):
        for host in (
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "10.0.0.9",
            "",
            "a b",
            "localhost:x",
        ):
            for method in METHODS:
                assert client.request(method, path, headers={"Host": host}).status_code == 403, (method, path, host)
    for host in ("localhost", "localhost:8080", "127.0.0.1:9", "[::1]:8080", "LOCALHOST"):
        assert client.get("/healthz", headers={"Host": host}).status_code == 200, host


def test_two_hosts_are_refused() -> None:
    app = create_app_for_raw()
    assert raw(app, [(b"host", b"localhost"), (b"host", b"evil.example")]) == 403
    assert raw(app, []) == 403
    assert raw(app, [(b"host", b"localhost")]) == 200


def test_a_server_without_token_answers_on_loopback_only() -> None:
    """Whatever the settings say: what counts is the address that the request came in on."""
    app = create_app_for_raw()
    assert raw(app, [(b"host", b"localhost")], server=("192.168.1.5", 8080)) == 403
    assert raw(app, [(b"host", b"localhost")], server=("::1", 8080)) == 200


def create_app_for_raw() -> Any:
    from backend.api.guard import Guard

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return Guard(inner, Door(Settings()))


def raw(
    app: Any, headers: list[tuple[bytes, bytes]], server: tuple[str, int] = ("127.0.0.1", 8080), **scope: Any
) -> int:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    request = {
        "type": "http",
        "method": "GET",
        "path": "/api/v1/jobs",
        "raw_path": b"/",
        "query_string": b"",
        "scheme": "http",
        "headers": headers,
        "server": server,
        **scope,
    }
    with ThreadPoolExecutor(1) as thread:  # a browser of another test may have left its loop in this one
        thread.submit(asyncio.run, app(request, receive, send)).result(30)
    return int(sent[0]["status"])


def test_pages_of_other_sites_are_refused(client: TestClient) -> None:
    for method in METHODS:
        for origin in (
            "http://evil.example",
            "null",
            "http://localhost:1",
            "https://localhost.evil.example",
            "file://",
        ):
            answer = client.request(method, "/api/v1/jobs", headers={"Origin": origin})
            assert answer.status_code == 403, (method, origin)
        cross = client.request(method, "/_dash-update-component", headers={"Sec-Fetch-Site": "cross-site"})
        assert (cross.status_code == 403) == (method not in ("GET", "HEAD", "OPTIONS")), method
    body = {"kind": "sleep", "spec": {}}
    assert client.post("/api/v1/jobs", json=body, headers={"Origin": "http://localhost"}).status_code == 202
    assert client.get("/api/v1/jobs").headers.get("access-control-allow-origin") is None


def test_websockets_are_refused(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/_dash-ws"):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "example.org"])
def test_an_open_address_needs_a_token(host: str, sqlite_store: Store, settings: Settings) -> None:
    changed = settings.model_copy(update={"host": host})
    with pytest.raises(BadInput, match="needs a token"):
        create_app(changed, store=sqlite_store)
    with pytest.raises(BadInput, match="16 characters"):
        create_app(changed.model_copy(update={"token": SecretStr("short")}), store=sqlite_store)
    with sqlite_store.write() as connection:
        token_id, _ = tokens.create(connection, "ann", ["read"])
    create_app(changed, store=sqlite_store)
    with sqlite_store.write() as connection:
        tokens.revoke(connection, token_id)
    with pytest.raises(BadInput, match="needs a token"):
        create_app(changed, store=sqlite_store)


def test_scopes(guarded: TestClient, zoo: Store) -> None:
    with zoo.write() as connection:
        secrets = {scope: tokens.create(connection, f"{scope}er", [scope])[1] for scope in ("read", "submit", "admin")}
    body = {"kind": "sleep", "spec": {}}
    assert guarded.get("/api/v1/jobs", headers=bearer(secrets["read"])).status_code == 200
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = guarded.request(method, "/api/v1/jobs", json=body, headers=bearer(secrets["read"]))
        assert answer.status_code == 403
        assert answer.json()["type"] == "urn:zoograft:not_allowed"
    mine = guarded.post("/api/v1/jobs", json=body, headers=bearer(secrets["submit"])).json()["id"]
    other = guarded.post("/api/v1/jobs", json=body, headers=bearer(TOKEN)).json()["id"]
    # Another owner's job needs admin, one's own does not.
    for verb in ("cancel", "retry"):
        assert guarded.post(f"/api/v1/jobs/{other}/{verb}", headers=bearer(secrets["submit"])).status_code == 403
    assert guarded.post(f"/api/v1/jobs/{mine}/cancel", headers=bearer(secrets["submit"])).json()["state"] == "cancelled"
    assert guarded.post(f"/api/v1/jobs/{other}/cancel", headers=bearer(secrets["admin"])).json()["state"] == "cancelled"
    # Dash sends reads through POST; the dashboard's actions check `submit` themselves.
    assert guarded.post("/_dash-update-component", headers=bearer(secrets["read"])).text.endswith("for reader")


def test_a_revoked_token_is_forgotten(zoo: Store, settings: Settings) -> None:
    door = Door(settings, stored=lambda token: _verify(zoo, token), remember_s=0.0)
    with zoo.write() as connection:
        token_id, secret = tokens.create(connection, "ann", ["read"])
    assert door.principal(secret) is not None
    with zoo.write() as connection:
        tokens.revoke(connection, token_id)
    assert door.principal(secret) is None


def _verify(store: Store, token: str) -> tokens.Principal | None:
    with store.read() as connection:
        return tokens.verify(connection, token)


def test_signing_in_and_out(guarded: TestClient) -> None:
    page = guarded.get("/pairs?dataset=x", headers={"Accept": "text/html"})
    assert page.status_code == 401
    assert 'name="token"' in page.text
    assert 'value="/pairs?dataset=x"' in page.text
    wrong = guarded.post("/sign-in", data={"token": "no", "next": "/pairs"})
    assert wrong.status_code == 401
    assert "not known" in wrong.text
    right = guarded.post("/sign-in", data={"token": TOKEN, "next": "/pairs?a=1"}, follow_redirects=False)
    assert (right.status_code, right.headers["location"]) == (303, "/pairs?a=1")
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert guarded.get("/pairs").text == "page pairs for local"
    assert guarded.get("/api/v1/jobs").status_code == 200
    out = guarded.post("/sign-out", follow_redirects=False)
    assert out.status_code == 303
    guarded.cookies.clear()
    assert guarded.get("/pairs").status_code == 401


@pytest.mark.parametrize(
    "wanted",
    ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/a\r\nSet-Cookie: x", ""],
)
def test_signing_in_leads_nowhere_else(guarded: TestClient, wanted: str) -> None:
    answer = guarded.post("/sign-in", data={"token": TOKEN, "next": wanted}, follow_redirects=False)
    assert answer.headers["location"] == "/"


def test_what_the_page_shows_is_escaped(guarded: TestClient) -> None:
    page = guarded.get('/x"><script>alert(1)</script>', headers={"Accept": "text/html"})
    assert page.status_code == 401
    assert "<script>alert" not in page.text


def test_bodies_are_bounded(client: TestClient) -> None:
    huge = b"x" * (BODY_LIMIT + 1)
    for path in ("/api/v1/jobs", "/sign-in", "/_dash-update-component"):
        answer = client.post(path, content=huge)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"

        def drip() -> Any:
            for _ in range(20):
                yield b"x" * 60_000

        assert client.post(path, content=drip()).status_code == 413  # no Content-Length to believe
    assert client.post("/api/v1/jobs", content=b'{"kind": "sleep"').status_code == 422


def test_headers_of_every_answer(client: TestClient) -> None:
    for path, policy in (
        ("/api/v1/jobs", "default-src 'none'"),
        ("/pairs", "default-src 'self'"),
        ("/api/none", "default-src 'none'"),
    ):
        answer = client.get(path)
        assert answer.headers["content-security-policy"].startswith(policy)
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "http:" not in answer.headers["content-security-policy"]
    assert client.get("/api/v1/jobs").headers["cache-control"] == "no-store"


def test_what_loopback_is() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.8.8.8", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.evil"))


def test_which_scope() -> None:
    assert required_scope("GET", "/api/v1/jobs") == "read"
    assert required_scope("DELETE", "/api/v1/jobs") == "submit"
    assert required_scope("POST", "/_dash-update-component") == "read"
    assert required_scope("GET", "/healthz") is None
    assert required_scope("GET", "/healthz/") == "read"
