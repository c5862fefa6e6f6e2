"""The compose file: nothing reachable but the web process, secrets required, and every service's command really starts.

There may be no Docker engine, so our services' commands run natively, their environment pointed at the tests' servers.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "compose-test-token-of-some-length"
OURS = ("migrate", "web", "worker-gpu", "worker-cpu", "housekeeping")


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def interpolate(value, variables):
    """`${NAME:?why}` and `${NAME:-default}`, as compose reads them."""

    def replace(match):
        name, kind, rest = match.group(1), match.group(2), match.group(3)
        if name in variables:
            return variables[name]
        assert kind == ":-", f"{name} is required"
        return rest

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)((?:[^{}]|\{[^{}]*\})*))?\}", replace, str(value))


def test_only_the_web_process_is_reachable_and_secrets_are_required(compose):
    services = compose["services"]
    assert set(services) == {"postgres", "redis", *OURS}
    assert [name for name, service in services.items() if "ports" in service] == ["web"]
    assert all(port.startswith("127.0.0.1:") for port in services["web"]["ports"])
    assert compose["networks"]["inside"]["internal"] is True
    for name in ("postgres", "redis", "migrate", "worker-gpu", "worker-cpu", "housekeeping"):
        assert services[name]["networks"] == ["inside"], name
    text = (ROOT / "docker-compose.yml").read_text()
    for secret in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "ZOOGRAFT_TOKEN"):
        assert f"${{{secret}:?" in text
        assert f"${{{secret}:-" not in text
    redis = services["redis"]["command"]
    assert redis[redis.index("--maxmemory-policy") + 1] == "noeviction"
    assert "--requirepass" in redis


def test_images_exist_and_workers_get_time_to_drain(compose):
    for name in OURS:
        build = compose["services"][name].get("build")
        if build is not None:
            assert (ROOT / build["dockerfile"]).is_file()
    for name in ("worker-gpu", "worker-cpu"):
        assert compose["services"][name]["stop_grace_period"] == "90s"
    names = {line.split("=")[0] for line in (ROOT / "docker/env.example").read_text().splitlines() if "=" in line}
    assert {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "ZOOGRAFT_TOKEN"} <= names


@pytest.mark.slow
def test_every_service_starts_and_together_they_run_a_job(compose, postgres_url, redis_url, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {"POSTGRES_PASSWORD": "x", "REDIS_PASSWORD": "x", "ZOOGRAFT_TOKEN": TOKEN}
    binaries = Path(sys.executable).parent

    def environment(name):
        wanted = {key: interpolate(value, variables) for key, value in compose["services"][name]["environment"].items()}
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("ZOOGRAFT_")},
            **wanted,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "ZOOGRAFT_DATABASE_URL": postgres_url,
            "ZOOGRAFT_BROKER_URL": redis_url,
            "ZOOGRAFT_DATA_DIR": str(tmp_path),
            "ZOOGRAFT_ARTIFACTS_URL": str(tmp_path / "artifacts"),
            "ZOOGRAFT_MIN_FREE_BYTES": "0",
            "OMP_NUM_THREADS": "1",
        }

    def command(name):
        parts = [interpolate(part, variables) for part in compose["services"][name]["command"]]
        if name == "web":
            parts = ["127.0.0.1" if part == "0.0.0.0" else port if part == "8080" else part for part in parts]
        return parts

    migrated = subprocess.run(
        command("migrate"), env=environment("migrate"), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert migrated.returncode == 0, migrated.stderr

    def start(name):
        with (tmp_path / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command(name), env=environment(name), cwd=tmp_path, stdout=log, stderr=log, process_group=0
            )

    running = {name: start(name) for name in OURS[1:]}

    def told(name):
        return (tmp_path / f"{name}.log").read_text(errors="replace")[-3000:]

    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10
        ) as client:
            until = time.monotonic() + 60
            while True:
                try:
                    assert client.get("/healthz").status_code == 200
                    break
                except httpx.TransportError:
                    assert time.monotonic() < until, told("web")
                    assert running["web"].poll() is None, told("web")
                    time.sleep(0.2)
            assert client.get("/readyz").status_code == 200
            job = client.post("/api/v1/jobs", json={"kind": "sleep", "spec": {"steps": 3}})
            assert job.status_code == 202, job.text
            until = time.monotonic() + 90
            while (state := client.get(job.headers["Location"]).json()["state"]) not in ("succeeded", "failed"):
                assert time.monotonic() < until, told("worker-cpu")
                time.sleep(0.3)
            assert state == "succeeded", told("worker-cpu")
        for name, process in running.items():
            assert process.poll() is None, told(name)
    finally:
        for process in running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for name, process in running.items():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                pytest.fail(f"{name} did not end on SIGTERM: {told(name)}")
    assert running["housekeeping"].returncode == 0, told("housekeeping")
