"""A running `zoograft up` on a small real zoo, and a real Chromium that notes everything that goes wrong in it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from backend.settings import environment

CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

STUDY: dict[str, Any] = {
    "name": "browser",
    "datasets": [{"name": "digits", "source": "digits"}],
    "dataset": "digits",
    "zoo": [
        {
            "name": name,
            "architecture": architecture,
            "kwargs": {**kwargs, "num_classes": 10},
            "input_size": [3, 32, 32],
            "crop_pct": 1.0,
            "train": {"epochs": 1, "lr": 0.02},
        }
        for name, architecture, kwargs in (
            ("tiny-resnet", "test_resnet", {}),
            ("tiny-vit", "test_vit", {"img_size": 32}),
            ("tiny-convnext", "test_convnext", {}),
        )
    ],
    "pairs": [["tiny-resnet", "tiny-vit"], ["tiny-vit", "tiny-resnet"]],
    "methods": ["kl_dp", "kl"],
    "settings": {"epochs": 1, "lr": 0.01, "augment": "none"},
    "train_split": "train",
    "split": "val",
}


def chromium() -> str | None:
    """The browser on this machine, or None."""
    return next((path for path in CHROMIUM if Path(path).exists()), shutil.which("chromium"))


class Service:
    """`zoograft up` in processes of its own."""

    def __init__(self, data_dir: Path, command: str = "up") -> None:
        self.data_dir, self.command = data_dir, command
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = [sys.executable, "-m", "backend.cli.main", self.command, "--port", str(self.port)]
        self.log = (self.data_dir / "service.log").open("ab")
        self.process = subprocess.Popen(
            arguments,
            env=environment(ZOOGRAFT_DATA_DIR=str(self.data_dir), ZOOGRAFT_THREADS="1"),
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        for _ in range(600):
            try:
                if httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                assert self.process.poll() is None, (self.data_dir / "service.log").read_text()
            time.sleep(0.1)
        raise AssertionError("the service did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.log.close()
            self.process = None

    def submit(self, kind: str, spec: dict[str, Any]) -> str:
        answer = httpx.post(f"{self.url}/api/v1/jobs", json={"kind": kind, "spec": spec}, timeout=60)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def only_study(self) -> str | None:
        """The id of the study that is there already."""
        items = httpx.get(f"{self.url}/api/v1/studies", timeout=60).json()["items"]
        return str(items[-1]["job"]["id"]) if items else None

    def wait(self, id: str, *states: str, seconds: float = 280) -> dict[str, Any]:
        """The job once it is in one of the states, or has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            job = httpx.get(f"{self.url}/api/v1/jobs/{id}", timeout=60).json()
            if job["state"] in (states or ("succeeded", "failed", "cancelled")):
                return dict(job)
            time.sleep(0.3)
        raise AssertionError(f"job {id} is {job['state']}: {job['message']}")


@contextmanager
def running(data_dir: Path, command: str = "up") -> Iterator[Service]:
    service = Service(data_dir, command)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def until(page: Any, expression: str, seconds: float = 60.0) -> None:
    """Wait until an expression holds in a page. Playwright's own `wait_for_function` polls by eval in the page, which
    the dashboard's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never held: {expression}"
        page.wait_for_timeout(50)


class Watch:
    """What a page complained about: console errors, failed requests, bad answers, other hosts.

    `missing` has the paths that are asked for although nothing is there.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.complaints: list[str] = []
        self.sizes: dict[str, int] = {}
        self.url = url
        self.missing: set[str] = set()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        page.on("requestfailed", self._failed)
        page.on("request", self._request)
        page.on("response", self._response)

    def _console(self, message: Any) -> None:
        where = str((message.location or {}).get("url", ""))
        if message.type in ("error", "warning") and not ("404" in message.text and self._missing(where)):
            self.complaints.append(f"console {message.type}: {message.text[:500]}")

    def _failed(self, request: Any) -> None:
        # What a page asked for and no longer wants when it is left is not a failure.
        if "ERR_ABORTED" not in str(request.failure):
            self.complaints.append(f"failed: {request.url} {request.failure}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.complaints.append(f"another host: {request.url}")

    def _response(self, response: Any) -> None:
        if response.status >= 400 and not (response.status == 404 and self._missing(response.url)):
            self.complaints.append(f"status {response.status}: {response.url}")

    def _missing(self, url: str) -> bool:
        return url.removeprefix(self.url) in self.missing
