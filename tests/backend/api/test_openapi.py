"""The document and what stands behind it: complete, local, and true under generated requests (RELIABILITY T14)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

ROOT = Path(__file__).parents[3]
NOUNS = ("models", "datasets", "evaluations", "pairs", "analyses", "jobs", "studies", "artifacts")


def test_the_paths_of_the_contract(client: TestClient) -> None:
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    assert {f"/api/v1/{noun}" for noun in NOUNS} <= set(paths)
    assert {
        "/api/v1/pairs/{teacher}/{student}/classes",
        "/api/v1/pairs/{teacher}/{student}/samples",
        "/api/v1/jobs/{id}/events",
        "/api/v1/jobs/{id}/cancel",
        "/api/v1/jobs/{id}/retry",
        "/healthz",
        "/readyz",
        "/metrics",
    } <= set(paths)
    assert {"get", "post"} == set(paths["/api/v1/jobs"])
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            assert "application/problem+json" in operation["responses"]["422"]["content"], (method, path)


def test_every_reference_leads_somewhere_inside(client: TestClient) -> None:
    document = client.get("/api/v1/openapi.json").json()

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for item in value.values():
                yield from references(item)
        elif isinstance(value, list):
            for item in value:
                yield from references(item)

    found = set(references(document))
    assert found
    for reference in found:
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
    assert "http://" not in json.dumps(document)
    assert "https://" not in json.dumps(document)


def test_no_page_asks_another_host(client: TestClient) -> None:
    """Swagger's own page would load its scripts from a CDN, so there is none."""
    for path in ("/api/v1/docs", "/api/docs", "/api/v1/redoc"):
        assert client.get(path).status_code == 404


def test_starting_loads_neither_torch_nor_dash() -> None:
    program = (
        "import sys, backend.api.app, backend.cli.main; "
        "print(sorted({'torch', 'timm', 'sklearn', 'torchvision', 'dash', 'plotly', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def _script(name: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"tests.reliability.{name}", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout, done.stderr[-3000:]
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (1 if verdict["breaches"] else 0)
    return dict(verdict)


@pytest.mark.slow
def test_generated_requests_find_nothing() -> None:
    verdict = _script("schemathesis_run", "--count", "5", "--phases", "fuzzing")
    assert not verdict["breaches"], "\n".join(verdict["breaches"])
    assert verdict["cases"] > 100


@pytest.mark.slow
def test_hostile_inputs_reach_nothing() -> None:
    """The routes' side of it, sec_routes.py, is walked without a socket in test_guard.py."""
    assert _script("sec_inputs")["breaches"] == []


@pytest.mark.slow
def test_duplicates_become_one_job_and_two_without_the_guard() -> None:
    options = ("--count", "60", "--others", "10", "--p95-s", "30")
    assert _script("dup_submit", *options)["breaches"] == []
    assert _script("dup_submit", *options, "--without", "idempotency")["breaches"]
