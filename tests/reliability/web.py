"""`zoograft web` in a laboratory, and a client of it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from tests.reliability.harness import Lab


@dataclass
class Web:
    url: str
    process: subprocess.Popen[bytes]
    client: httpx.Client


@contextmanager
def web(lab: Lab, timeout_s: float = 60.0, **changes: object) -> Iterator[Web]:
    """A web process on a free port of loopback, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = lab.start("web", "--port", str(port), module="backend.cli.main", **changes)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=30) as client:
        until = time.monotonic() + timeout_s
        while True:
            try:
                client.get("/healthz")
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((lab.folder / "workers.log").read_text()[-4000:]) from None
                time.sleep(0.05)
        try:
            yield Web(url, process, client)
        finally:
            process.terminate()
            process.wait(20)


def p95(seconds: list[float]) -> float:
    return sorted(seconds)[max(0, int(0.95 * len(seconds)) - 1)]
