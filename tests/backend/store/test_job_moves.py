"""What follows from a transition: dependents and studies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from uuid import UUID

import pytest

from backend.domain.jobs import Cause
from backend.store import jobs
from backend.store.session import Store
from tests.services.driver import Driver


def run_one(driver: Driver, end: str) -> UUID:
    claim = driver.claimed()
    if end == "succeed":
        driver.publish(claim)
    elif end == "fail":
        driver.fail(claim, Cause.BAD_INPUT, "no such file")
    else:
        driver.cancel(claim.job.id)
        driver.stopped(claim)
    return claim.job.id


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_whoever_waits_for_a_job_that_did_not_succeed_is_cancelled_down_the_line(driver: Driver, end: str) -> None:
    first = driver.add_one(priority=9)
    second = driver.add_one(after=(first,))
    third = driver.add_one(after=(second,))
    other = driver.add_one()
    both = driver.add_one(after=(other, third))
    run_one(driver, end)
    for job_id in (second, third, both):
        job = driver.get(job_id)
        assert (job.state.value, job.cause) == ("cancelled", "dependency")
        assert "did not succeed" in str(job.message)
        assert driver.path(job_id) == ["queued", "cancelled"]
    assert driver.state(other) == "queued"


def test_a_poisoned_or_reaped_job_takes_its_dependents_along(driver: Driver) -> None:
    first = driver.add_one()
    second = driver.add_one(after=(first,))
    for loss in range(3):
        assert driver.state(second) == "queued", loss
        driver.claimed()
        driver.expire(first)
        driver.reap()
    assert driver.state(second) == "cancelled"


def test_a_retried_loss_keeps_dependents_waiting(driver: Driver) -> None:
    first = driver.add_one()
    second = driver.add_one(after=(first,))
    driver.fail(driver.claimed(), Cause.WORKER_LOST)
    assert driver.state(second) == "queued"


@pytest.mark.parametrize(
    ("ends", "state", "message"),
    [
        (["succeed", "succeed"], "succeeded", "2 succeeded of 2"),
        (["succeed", "fail"], "failed", "1 succeeded, 1 failed of 2"),
        (["fail", "succeed"], "failed", "1 succeeded, 1 failed of 2"),
        (["fail", "cancel"], "failed", "1 failed, 1 cancelled of 2"),
        (["succeed", "cancel"], "cancelled", "1 succeeded, 1 cancelled of 2"),
        (["cancel", "cancel"], "cancelled", "2 cancelled of 2"),
    ],
)
def test_the_state_of_a_study_is_that_of_its_children(
    driver: Driver, ends: list[str], state: str, message: str
) -> None:
    study, _children = driver.study(2)
    assert driver.state(study) == "queued"
    run_one(driver, ends[0])
    assert driver.state(study) == "running"
    assert driver.get(study).progress.model_dump() == {"step": 1, "total": 2}
    assert driver.get(study).started_at is not None
    run_one(driver, ends[1])
    job = driver.get(study)
    assert (job.state.value, job.message) == (state, message)
    assert job.finished_at is not None
    assert job.progress.model_dump() == {"step": 2, "total": 2}
    assert job.attempt == 0
    assert driver.column(study, "lease_until") is None
    if state == "succeeded":
        assert job.result == {"children": {"succeeded": 2, "failed": 0, "cancelled": 0}}


def test_a_study_runs_from_its_first_childs_claim_and_survives_a_lost_child(driver: Driver) -> None:
    study, [child, _] = driver.study(2)
    driver.claimed()
    assert driver.state(study) == "running"
    driver.expire(child)
    assert driver.reap() == [child]
    assert driver.state(study) == "running"
    assert driver.path(study) == ["queued", "running"]


def test_cancelling_a_study_cancels_what_waits_and_flags_what_runs(driver: Driver) -> None:
    study, [one, two, three] = driver.study(3)
    running = driver.claimed()
    done = driver.claimed()
    driver.publish(done)
    job = driver.cancel(study)
    assert job.state.value == "cancelling"
    assert [driver.state(child) for child in (one, two, three)] == ["cancelling", "succeeded", "cancelled"]
    assert driver.beat(running) == jobs.Beat(cancel_requested=True)
    driver.stopped(running)
    job = driver.get(study)
    assert (job.state.value, job.message) == ("cancelled", "1 succeeded, 2 cancelled of 3")
    assert driver.claim() is None


def test_cancelling_a_study_that_has_not_begun(driver: Driver) -> None:
    study, children = driver.study(3)
    assert driver.cancel(study).state.value == "cancelled"
    assert {driver.state(child) for child in children} == {"cancelled"}
    assert driver.path(study) == ["queued", "cancelled"]


def test_cancelling_every_child_cancels_the_study(driver: Driver) -> None:
    study, children = driver.study(2)
    driver.cancel(children[0])
    assert driver.state(study) == "queued"
    driver.cancel(children[1])
    assert driver.state(study) == "cancelled"


def test_a_failed_child_cancels_its_dependents_and_ends_the_study(driver: Driver) -> None:
    study = driver.add_one(kind="study", spec={})
    first = driver.add_one(parent=study)
    second = driver.add_one(parent=study, after=(first,))
    run_one(driver, "fail")
    assert driver.state(second) == "cancelled"
    job = driver.get(study)
    assert (job.state.value, job.message) == ("failed", "1 failed, 1 cancelled of 2")


def test_a_job_may_wait_for_a_whole_study(driver: Driver) -> None:
    study, _ = driver.study(2)
    afterwards = driver.add_one(after=(study,), priority=9)
    for _ in range(2):
        run_one(driver, "succeed")
    assert driver.claimed().job.id == afterwards
    other, _ = driver.study(1)
    waiting = driver.add_one(after=(other,))
    run_one(driver, "fail")
    assert driver.state(waiting) == "cancelled"


def test_a_study_of_many_children_is_cancelled_in_one_go(driver: Driver) -> None:
    study, children = driver.study(2000)
    driver.cancel(study)
    assert driver.state(study) == "cancelled"
    with driver.store.read() as connection:
        assert jobs.claimable(connection, 1) == []
    assert driver.path(children[-1]) == ["queued", "cancelled"]


def test_many_threads_finish_one_study_without_a_deadlock(open_store: Callable[..., Store]) -> None:
    """Workers, a canceller and a reaper at once: every job ends, and the study once."""
    driver = Driver(open_store())
    study, _ = driver.study(40)
    extra = driver.add(10, after=(study,))
    errors: list[BaseException] = []

    def work(number: int) -> None:
        mine = Driver(open_store(), worker=f"w{number}")
        try:
            while claim := mine.claim():
                end = claim.job.id.int % 7
                if end == 0:
                    mine.fail(claim, Cause.BAD_INPUT)
                elif end == 1:
                    mine.cancel(claim.job.id)
                    mine.stopped(claim)
                else:
                    mine.publish(claim)
                mine.reap()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    job = driver.get(study)
    assert job.progress.model_dump() == {"step": 40, "total": 40}
    ends = [state for state in driver.path(study) if state in ("succeeded", "failed", "cancelled")]
    assert len(ends) == 1
    assert {driver.state(one) for one in extra} <= {"succeeded", "failed", "cancelled"}
