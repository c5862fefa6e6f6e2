"""Waiting for work: Postgres tells at once, SQLite is looked at again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from backend.store.session import Store
from backend.store.wake import Wake, wait_for_wake
from tests.services.driver import Driver
from tests.services.servers import PostgresServer


@pytest.fixture
def listening(postgres_url: str) -> object:
    store = Store.open(postgres_url)
    wake = Wake(store)
    assert wake.wait(5.0)  # begins to listen
    yield Driver(store), wake
    wake.close()
    store.close()


def waited(wake: Wake, action: Callable[[], object], timeout_s: float) -> tuple[bool, float]:
    timer = threading.Timer(0.1, action)
    timer.start()
    started = time.monotonic()
    woken = wake.wait(timeout_s)
    took = time.monotonic() - started
    timer.join()
    return woken, took


def test_a_new_job_wakes_at_once(listening: tuple[Driver, Wake]) -> None:
    driver, wake = listening
    woken, took = waited(wake, driver.add_one, 20.0)
    assert woken
    assert took < 10


def test_cancelling_a_running_job_and_finishing_one_wake_too(listening: tuple[Driver, Wake]) -> None:
    driver, wake = listening
    driver.add(2)
    first, second = driver.claimed(), driver.claimed()
    while wake.wait(0.05):
        pass
    assert waited(wake, lambda: driver.cancel(first.job.id), 20.0)[0]
    assert waited(wake, lambda: driver.publish(second), 20.0)[0]


def test_nothing_new_is_the_end_of_the_wait(listening: tuple[Driver, Wake]) -> None:
    driver, wake = listening
    driver.add_one()
    while wake.wait(0.05):
        pass
    claim = driver.claimed()
    driver.beat(claim)
    driver.checkpoint(claim, 1)
    assert wake.wait(0.2) is False


def test_what_is_rolled_back_does_not_wake(listening: tuple[Driver, Wake]) -> None:
    driver, wake = listening

    def rolled_back() -> None:
        driver.add_one(parent=driver.add_one(), retry_of=None, kind="x" * 17)

    with pytest.raises(Exception, match="too long"):
        rolled_back()
    while wake.wait(0.05):  # the parent's
        pass
    assert wake.wait(0.2) is False


def test_sqlite_sleeps_no_longer_than_its_poll(sqlite_url: str) -> None:
    store = Store.open(sqlite_url)
    started = time.monotonic()
    assert Wake(store, poll_s=0.05).wait(60.0)
    assert wait_for_wake(store, 0.01)
    assert Wake(store).wait(0.0)
    assert time.monotonic() - started < 10
    store.close()


def test_a_listener_survives_a_restart_of_postgres() -> None:
    server = PostgresServer()
    try:
        server.start()
        store = Store.open(server.url())
        wake = Wake(store, poll_s=0.05)
        assert wake.wait(5.0)
        assert wake.wait(0.05) is False
        server.kill()
        assert wake.wait(0.5)  # away: look for yourself
        server.start()
        assert wake.wait(5.0)  # listens again
        assert wake.wait(0.05) is False
        wake.close()
        store.close()
    finally:
        server.stop()
