"""Server-sent events over a real server: live, replayed, ended."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from backend import submission
from backend.api.app import create_app
from backend.api.events import last_event_id
from backend.domain.errors import BadInput
from backend.settings import Settings
from backend.store import jobs
from backend.store.session import Store
from tests.backend.api.servers import serving


@pytest.fixture
def url(sqlite_store: Store, settings: Settings) -> Iterator[str]:
    with serving(create_app(settings, store=sqlite_store)) as url:
        yield url


def claimed(store: Store, settings: Settings) -> tuple[UUID, int]:
    """A job that runs, with its fence."""
    submission.submit(store, settings, "sleep", {"steps": 5})
    with store.write() as connection:
        claim = jobs.claim(connection, worker="w", host="h", queues=("cpu",), lease_s=60)
    assert claim is not None
    return claim.job.id, claim.fence


def say(store: Store, job: tuple[UUID, int], *events: tuple[str, dict[str, Any]]) -> None:
    with store.write() as connection:
        jobs.add_events(connection, job[0], job[1], 1, list(events))


def stream(url: str, id: UUID, **headers: str) -> list[dict[str, str]]:
    """Every event until the server ends the stream."""
    found: list[dict[str, str]] = []
    with httpx.stream("GET", f"{url}/api/v1/jobs/{id}/events", headers=headers, timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for block in _blocks(answer):
            fields = dict(
                line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":")
            )
            if "id" in fields:
                found.append(fields)
    return found


def _blocks(answer: httpx.Response) -> Iterator[str]:
    text = ""
    for piece in answer.iter_text():
        text += piece
        while "\n\n" in text:
            block, text = text.split("\n\n", 1)
            yield block


def test_events_come_live_and_the_stream_ends_with_the_job(url: str, sqlite_store: Store, settings: Settings) -> None:
    job = claimed(sqlite_store, settings)
    arrived: list[tuple[float, dict[str, str]]] = []

    def listen() -> None:
        with httpx.stream("GET", f"{url}/api/v1/jobs/{job[0]}/events", timeout=30) as answer:
            for block in _blocks(answer):
                if "event: " in block:
                    fields = dict(line.split(": ", 1) for line in block.splitlines())
                    arrived.append((time.monotonic(), fields))

    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(0.6)
    spoken = time.monotonic()
    say(sqlite_store, job, ("log", {"message": "line\nbreak"}), ("metric", {"step": 1, "values": {"loss": 0.5}}))
    time.sleep(1.2)
    heard = [(at, fields) for at, fields in arrived if fields["event"] in ("log", "metric")]
    assert [fields["event"] for _, fields in heard] == ["log", "metric"]
    assert all(at - spoken < 1.2 for at, _ in heard)
    with sqlite_store.write() as connection:
        jobs.succeed(connection, job[0], job[1], {"digest": "x"})
    thread.join(10)
    assert not thread.is_alive()
    types = [fields["event"] for _, fields in arrived]
    assert types == ["state", "state", "log", "metric", "state"]
    data = [json.loads(fields["data"]) for _, fields in arrived]
    assert data[2]["data"]["message"] == "line\nbreak"
    assert data[-1]["data"]["to"] == "succeeded"
    ids = [int(fields["id"]) for _, fields in arrived]
    assert ids == sorted(set(ids))
    assert all(set(one) == {"id", "job_id", "type", "attempt", "at", "data"} for one in data)


def test_replay_goes_on_after_the_last_event(url: str, sqlite_store: Store, settings: Settings) -> None:
    job = claimed(sqlite_store, settings)
    say(sqlite_store, job, *[("log", {"message": str(i)}) for i in range(1200)])
    with sqlite_store.write() as connection:
        jobs.succeed(connection, job[0], job[1], {})
    everything = stream(url, job[0])
    logs = [json.loads(event["data"])["data"]["message"] for event in everything if event["event"] == "log"]
    assert logs == [str(i) for i in range(1200)]
    for cut in (0, 1, 600, len(everything) - 1):
        rest = stream(url, job[0], **{"Last-Event-ID": everything[cut]["id"]})
        assert rest == everything[cut + 1 :]
    by_parameter = httpx.get(f"{url}/api/v1/jobs/{job[0]}/events", params={"after": everything[-2]["id"]}, timeout=30)
    assert by_parameter.text.count("event: ") == 1


def test_bad_questions(url: str, sqlite_store: Store, settings: Settings) -> None:
    job = submission.submit(sqlite_store, settings, "sleep", {}).job
    for path, headers, status in (
        (f"{job.id}/events", {"Last-Event-ID": "x"}, 422),
        (f"{job.id}/events", {"Last-Event-ID": "9" * 40}, 422),
        (f"{job.id}/events", {"Last-Event-ID": "-1"}, 422),
        (f"{job.id}/events?after=-1", {}, 422),
        ("00000000-0000-0000-0000-000000000000/events", {}, 404),
        ("x/events", {}, 422),
    ):
        answer = httpx.get(f"{url}/api/v1/jobs/{path}", headers=headers)
        assert answer.status_code == status, path
        assert answer.headers["content-type"] == "application/problem+json"


def test_where_to_go_on() -> None:
    assert last_event_id(None, None) == 0
    assert last_event_id(None, 7) == 7
    assert last_event_id("12", 7) == 12
    assert last_event_id(" ", 7) == 7
    with pytest.raises(BadInput):
        last_event_id("٣", None)
