"""`up` and `web` as processes: one port, a clean end, a port that is taken."""

import asyncio
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from backend.cli.service import listening, worker_command
from backend.settings import Settings
from tests.backend.cli.test_jobs import _carrying, start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            assert httpx.get(f"{url}/healthz", timeout=5).json() == {"status": "ok"}
            return
        except httpx.TransportError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_runs_jobs_and_ends_cleanly(settings: Settings, number: signal.Signals) -> None:
    port = free_port()
    process = start(settings, "up", "--port", str(port), "--json")
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        taken = start(settings, "web", "--port", str(port))
        _, said = taken.communicate(timeout=60)
        assert taken.returncode == 2
        assert f"port {port}" in said
        assert "--port" in said
        if number == signal.SIGINT:
            job = httpx.post(f"{url}/api/v1/jobs", json={"kind": "sleep", "spec": {"steps": 2}}).json()
            stream = httpx.get(f"{url}/api/v1/jobs/{job['id']}/events", timeout=60).text
            assert '"to":"succeeded"' in stream
    finally:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out) == {"url": url}
    assert "Traceback" not in err
    deadline = time.monotonic() + 10
    mark = f"ZOOGRAFT_DATA_DIR={settings.data_dir}".encode()
    while (alive := _carrying(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def test_an_open_address_without_a_token_refuses_to_start(settings: Settings) -> None:
    process = start(settings, "web", "--host", "0.0.0.0", "--port", str(free_port()))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "ZOOGRAFT_TOKEN" in err
    assert out == ""


def test_a_worker_is_what_the_broker_says(settings: Settings, tmp_path: Path) -> None:
    assert worker_command(settings) == ["-m", "workers.supervisor"]
    assert worker_command(settings.model_copy(update={"broker_url": "redis://x"})) == ["-m", "workers.app"]


def test_answers_are_not_held_back_by_nagles_delay(settings: Settings) -> None:
    """An answer is written in two pieces; the second one must not wait for the reader's acknowledgement (40 ms)."""

    async def accepted() -> int:
        seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Door(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                told = transport.get_extra_info("socket")
                seen.set_result(told.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        with listening(settings.model_copy(update={"port": free_port()}), "web") as listener:
            server = await asyncio.get_running_loop().create_server(Door, sock=listener)
            with socket.create_connection(listener.getsockname()):
                found = await seen
            server.close()
        return found

    with ThreadPoolExecutor(1) as thread:  # a browser of another test may have left its loop in this one
        assert thread.submit(asyncio.run, accepted()).result(30) == 1
