"""T18: what attackers type: paths that climb, addresses inside, markup in names, secrets that must not be repeated.

None may read a file outside the store, reach an address, be rendered, or find its way into logs, database or artifacts.
"""

import itertools
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import quote

from tests.reliability.harness import arguments, laboratory, verdict
from tests.reliability.web import web

CANARY = "canary-7f3a9c-do-not-repeat"
CLIMBS = (
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "%252e%252e%252f%252e%252e%252fetc%252fpasswd",
    "..\\..\\..\\etc\\passwd",
    "..%5c..%5cetc%5cpasswd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "....//....//etc/passwd",
    "..%c0%af..%c0%afetc/passwd",
    "x%00.png",
    "link",
)
PLACES = (
    "/api/v1/artifacts/{}",
    "/api/v1/models/{}",
    "/api/v1/datasets/{}",
    "/api/v1/jobs/{}",
    "/api/v1/jobs/{}/logs",
    "/api/v1/evaluations/{}",
    "/api/v1/pairs/{}/x",
    "/api/v1/pairs/x/{}/samples",
    "/api/v1/datasets/d/splits/val/thumbnails/{}",
    "/api/v1/datasets/d/splits/{}/thumbnails/x",
    "/{}",
    "/assets/{}",
)
INSIDE = (
    "http://169.254.169.254/latest/meta-data/",
    "http://[::]/",
    "http://127.0.0.1:1/x",
    "http://0x7f000001/",
    "http://localhost@evil.example/",
    "ftp://10.0.0.1/x",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "file:///etc/passwd",
)
MARKUP = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "'; drop table jobs; --",
    "a\r\nSet-Cookie: x=1",
    "\u202egnp.exe",
    "x" * 10_000,
    "\x00",
)


def main() -> int:
    options = arguments(__doc__, count=1)
    breaches: list[str] = []
    tried: Counter[str] = Counter()
    with laboratory(options.db, without=options.without) as lab, web(lab) as server:
        client = server.client
        secret = lab.folder.parent / f"{lab.folder.name}.secret"
        secret.write_text(CANARY)
        artifacts = Path(lab.settings.artifacts)
        artifacts.mkdir(parents=True, exist_ok=True)
        (artifacts / "link").symlink_to(secret)
        try:
            for place, climb in itertools.product(PLACES, (*CLIMBS, quote(str(secret), safe=""))):
                answer = client.get(place.format(climb))
                tried["climb"] += 1
                if answer.status_code >= 500 or CANARY in answer.text or "root:" in answer.text:
                    breaches.append(f"GET {place.format(climb)} → {answer.status_code}")
            jobs_before = _jobs(client)
            bodies: list[tuple[str, dict[str, object]]] = []
            for url in INSIDE:
                bodies += [
                    ("models", {"name": url, "architecture": "resnet18"}),
                    ("datasets", {"name": "d", "source": url}),
                    ("jobs", {"kind": "scan", "spec": {"models": [url], "dataset": url}}),
                ]
            for text in (*MARKUP, *CLIMBS[:-1]):  # "link" is a good name
                bodies += [
                    ("models", {"name": text, "architecture": "resnet18"}),
                    ("datasets", {"name": text, "source": "digits"}),
                    ("jobs", {"kind": text, "spec": {}}),
                    ("jobs", {"kind": "sleep", "spec": {text: 1}}),
                    ("jobs", {"kind": "flips", "spec": {"dataset": text}}),
                ]
            for noun, body in bodies:
                answer = client.post(f"/api/v1/{noun}", json=body)
                tried["body"] += 1
                if answer.status_code != 422 or not answer.headers["content-type"].startswith("application/problem"):
                    breaches.append(f"POST {noun} {str(body)[:100]} → {answer.status_code}")
                if "Set-Cookie" in answer.headers:
                    breaches.append(f"POST {noun} {str(body)[:100]} set a cookie")
            if _jobs(client) != jobs_before:
                breaches.append("a refused request left a job")
            for text in MARKUP:
                for noun, name in (("models", "name"), ("pairs", "teacher"), ("jobs", "kind"), ("pairs", "cursor")):
                    answer = client.get(f"/api/v1/{noun}", params={name: text})
                    tried["query"] += 1
                    if answer.status_code >= 500 or "html" in answer.headers["content-type"]:
                        breaches.append(f"GET {noun}?{name}={text[:40]!r} → {answer.status_code}")
            for field in ("token", "password", "api_key", "secret"):
                client.post("/api/v1/jobs", json={"kind": "sleep", "spec": {field: CANARY}})
                client.post("/api/v1/models", json={"name": "m", "architecture": "a", field: CANARY})
                tried["secret"] += 2
                answer = client.post("/sign-in", data={"token": CANARY})
                if CANARY in answer.text:
                    breaches.append("the sign-in page repeats a token")
            client.get("/api/v1/jobs", headers={"Authorization": f"Bearer {CANARY}"})
        finally:
            secret.unlink()
            (artifacts / "link").unlink()
        if CANARY in lab.log_text():
            breaches.append("a secret is in the logs")
        if lab.store.dialect == "sqlite":
            dump = "\n".join(sqlite3.connect(str(lab.store.url.database)).iterdump())
            if CANARY in dump:
                breaches.append("a secret is in the database")
    total = sum(tried.values())
    if total < 300:
        breaches.append(f"only {total} inputs were tried")
    return verdict("sec_inputs", options, breaches, inputs=total, tried=dict(tried))


def _jobs(client) -> int:
    return len(client.get("/api/v1/jobs", params={"limit": 200}).json()["items"])


if __name__ == "__main__":
    sys.exit(main())
