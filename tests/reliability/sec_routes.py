"""T17: every route of a running server × {no token, wrong token, another owner's, foreign Host, foreign Origin} × methods.

The routes are those of the OpenAPI document and of the dashboard (Dash's own ones too); the answer is 401, 403 or 404.
"""

import re
import sys
from collections import Counter

from backend.store import tokens
from tests.reliability.harness import arguments, laboratory, verdict
from tests.reliability.web import web

TOKEN = "a token of the laboratory"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
PAGES = (
    "/",
    "/pairs",
    "/jobs",
    "/_dash-layout",
    "/_dash-dependencies",
    "/_dash-update-component",
    "/_dash-component-suites/dash/deps/polyfill.min.js",
    "/_favicon.ico",
    "/_reload-hash",
    "/assets/none.css",
    "/api",
    "/api/v1",
    "/api/v1/openapi.json",
    "/docs",
    "/redoc",
)


def main() -> int:
    options = arguments(__doc__, count=1)
    breaches: list[str] = []
    tried: Counter[str] = Counter()
    with laboratory(options.db, without=options.without, token=TOKEN) as lab, web(lab, timeout_s=90) as server:
        with lab.store.write() as connection:
            _, reader = tokens.create(connection, "ann", ["read"])
            _, submitter = tokens.create(connection, "bob", ["submit"])
        admin = {"Authorization": f"Bearer {TOKEN}"}
        schema = server.client.get("/api/v1/openapi.json", headers=admin).json()
        job = server.client.post("/api/v1/jobs", json={"kind": "sleep", "spec": {}}, headers=admin).json()["id"]
        paths = sorted({re.sub(r"\{[^}]+\}", job, path) for path in schema["paths"]} | set(PAGES))

        def expect(name: str, path: str, method: str, headers: dict[str, str], allowed: tuple[int, ...]) -> None:
            answer = server.client.request(method, path, headers=headers)
            tried[name] += 1
            if answer.status_code not in allowed:
                breaches.append(f"{name}: {method} {path} → {answer.status_code}")

        for path in paths:
            for method in METHODS:
                if path != "/healthz":
                    expect("no token", path, method, {}, (401,))
                    expect("wrong token", path, method, {"Authorization": "Bearer nonsense"}, (401,))
                    expect("wrong cookie", path, method, {"Cookie": "zoograft_token=nonsense"}, (401,))
                    expect("query token", f"{path}?token={TOKEN.replace(' ', '%20')}", method, {}, (401,))
                expect("foreign Host", path, method, {**admin, "Host": "evil.example"}, (403,))
                expect("foreign Origin", path, method, {**admin, "Origin": "http://evil.example"}, (403,))
                if method not in ("GET", "HEAD", "OPTIONS") and path.startswith("/api/"):
                    expect("read scope", path, method, {"Authorization": f"Bearer {reader}"}, (403,))
        for verb in ("cancel", "retry"):
            expect(
                "other owner", f"/api/v1/jobs/{job}/{verb}", "POST", {"Authorization": f"Bearer {submitter}"}, (403,)
            )
        state = server.client.get(f"/api/v1/jobs/{job}", headers=admin).json()["state"]
        if state != "queued":
            breaches.append(f"the job is {state}")
    return verdict("sec_routes", options, breaches, routes=len(paths), requests=sum(tried.values()), tried=dict(tried))


if __name__ == "__main__":
    sys.exit(main())
