"""Answers are kept until a job's state, an entry or a score changes; asked once however many ask at a time."""

import threading
import time

import pytest

from backend.domain.errors import NotFound
from tests.services.driver import Driver


def test_an_answer_holds_until_a_job_changes_its_state(reads):
    asked = []

    def ask():
        asked.append(1)
        return len(asked)

    assert [reads.kept(("q",), ask), reads.kept(("q",), ask), reads.kept(("other",), ask)] == [1, 1, 2]
    driver = Driver(reads.store)
    driver.add_one()
    assert reads.kept(("q",), ask) == 3
    claim = driver.claimed()
    assert reads.kept(("q",), ask) == 4
    driver.checkpoint(claim, 1)
    assert reads.kept(("q",), ask) == 4
    driver.publish(claim)
    assert reads.kept(("q",), ask) == 5


def test_those_who_ask_at_the_same_time_share_one_answer(reads):
    asked = []

    def ask():
        asked.append(1)
        time.sleep(0.1)
        return len(asked)

    found = []
    threads = [threading.Thread(target=lambda: found.append(reads.kept(("slow",), ask))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 5


def test_an_error_is_not_kept(reads):
    def fail():
        raise NotFound("thing", "x")

    with pytest.raises(NotFound):
        reads.kept(("gone",), fail)
    assert reads.kept(("gone",), lambda: 7) == 7
