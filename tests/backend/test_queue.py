"""Queues and the doorbell, on a real Redis."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from celery import Celery

from backend import queue
from backend.domain.specs import SPECS
from backend.settings import Settings
from backend.store.job_records import new_ids
from backend.store.session import Store
from tests.services.driver import Driver
from tests.services.servers import RedisServer, free_port


@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        ("transfer", {}, "gpu"),
        ("transfer", {"device": "auto"}, "gpu"),
        ("transfer", {"device": "cpu"}, "cpu"),
        ("scan", {"device": "cuda:1"}, "gpu"),
        ("remem", {}, "gpu"),
        ("kdep", {}, "gpu"),
        ("analysis", {}, "gpu"),
        ("finetune", {}, "gpu"),
        ("sync", {}, "cpu"),
        ("register", {}, "cpu"),
        ("flips", {}, "cpu"),
        ("study", {}, "cpu"),
        ("sleep", {}, "cpu"),
    ],
)
def test_every_kind_has_its_queue(kind: str, spec: dict[str, str], expected: str) -> None:
    assert queue.queue_for(kind, spec) == expected


def test_kinds_that_need_a_gpu_queue_are_real_kinds() -> None:
    assert {*SPECS, "analysis"} >= queue.GPU_KINDS


def test_without_a_broker_nothing_is_rung(tmp_path: Path) -> None:
    assert queue.ring(Settings(data_dir=tmp_path), [(new_ids(1)[0], "cpu")]) == 0


def test_a_broker_that_is_away_fails_fast_and_quietly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(data_dir=tmp_path, broker_url=f"redis://:secret@127.0.0.1:{free_port()}/0")
    started = time.monotonic()
    assert queue.ring(settings, [(new_ids(1)[0], "cpu")]) == 0
    assert time.monotonic() - started < 5
    assert "does not answer" in caplog.text
    assert "secret" not in caplog.text


def test_a_ring_is_a_celery_message_with_nothing_but_the_id(redis_url: str, tmp_path: Path) -> None:
    import redis

    [job_id] = new_ids(1)
    settings = Settings(data_dir=tmp_path, broker_url=redis_url)
    assert queue.ring(settings, [(job_id, "gpu"), (job_id, "cpu")]) == 2
    with redis.Redis.from_url(redis_url) as client:
        raw = json.loads(client.lrange("gpu", 0, -1)[0])
        assert client.llen("cpu") == 1
    assert raw["headers"]["task"] == queue.TASK
    assert raw["content-type"] == "application/json"
    app = Celery(broker=redis_url)
    with app.connection_for_read() as connection, connection.SimpleQueue("gpu") as waiting:
        message = waiting.get(timeout=5)
        assert message.payload[0] == [str(job_id)]
        message.ack()
    app.close()


def test_the_dispatcher_rings_for_what_waits_until_it_is_taken(store: Store, redis_url: str, tmp_path: Path) -> None:
    import redis

    driver = Driver(store)
    first = driver.add_one(queue="gpu")
    driver.add_one(after=(first,))
    dispatcher = queue.Dispatcher(store, Settings(data_dir=tmp_path, broker_url=redis_url), every_s=0.05).start()
    try:
        with redis.Redis.from_url(redis_url) as client:
            deadline = time.monotonic() + 10
            while client.llen("gpu") < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert client.llen("gpu") >= 2  # again and again: a lost ring costs only latency
            assert client.llen("cpu") == 0
    finally:
        dispatcher.stop()
    driver.claimed()
    assert dispatcher.ring_once() == 0


def test_a_wake_rings_at_once(sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    import redis

    store = Store.open(sqlite_url)
    dispatcher = queue.Dispatcher(store, Settings(data_dir=tmp_path, broker_url=redis_url), every_s=60.0).start()
    try:
        time.sleep(0.2)
        Driver(store).add_one()
        dispatcher.wake()
        with redis.Redis.from_url(redis_url) as client:
            deadline = time.monotonic() + 10
            while not client.llen("cpu") and time.monotonic() < deadline:
                time.sleep(0.02)
            assert client.llen("cpu") == 1
    finally:
        dispatcher.stop()
        store.close()


def test_the_dispatcher_outlives_its_broker(sqlite_url: str, tmp_path: Path) -> None:
    import redis

    server, store = RedisServer(), Store.open(sqlite_url)
    server.start()
    dispatcher = queue.Dispatcher(store, Settings(data_dir=tmp_path, broker_url=server.url()), every_s=0.1).start()
    try:
        server.kill()
        Driver(store).add_one()
        time.sleep(0.3)
        server.start()
        with redis.Redis.from_url(server.url()) as client:
            deadline = time.monotonic() + 20
            while not client.llen("cpu") and time.monotonic() < deadline:
                time.sleep(0.05)
            assert client.llen("cpu") >= 1
    finally:
        dispatcher.stop()
        server.stop()
        store.close()
