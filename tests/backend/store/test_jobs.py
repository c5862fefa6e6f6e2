"""The conformance suite of jobs: every transition and every forbidden one, on SQLite and on a real Postgres."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from uuid import uuid4

import pytest
from sqlalchemy import delete, insert, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from backend.domain.errors import BadInput, CancelRequested, LostLease, NotFound, StoreUnavailable
from backend.domain.jobs import RETRIED, TERMINAL, TRANSITIONS, Cause, JobState
from backend.store import jobs
from backend.store.job_records import Claim, FileRecord
from backend.store.jobs import RetryPolicy
from backend.store.session import Store, db_now
from backend.store.tables import job_events
from backend.store.tables import jobs as job_table
from tests.services.driver import LEASE_S, Driver

FILE = FileRecord("student", "folder/1/model.safetensors", 3, "0" * 64)
ACTIVE = ("running", "cancelling")
ENDED = ("succeeded", "failed", "cancelled")


def bring_to(driver: Driver, state: str) -> tuple[Claim, Driver]:
    """A job in `state`, and the claim of its last attempt."""
    driver.add_one()
    claim = driver.claimed()
    if state == "queued":
        driver.release(claim)
    elif state == "succeeded":
        driver.publish(claim)
    elif state == "failed":
        driver.fail(claim, Cause.BAD_INPUT)
    elif state in ("cancelling", "cancelled"):
        driver.cancel(claim.job.id)
        if state == "cancelled":
            driver.stopped(claim)
    assert driver.state(claim.job.id) == state
    return claim, driver


# --- claiming ------------------------------------------------------------------------------------------------------


def test_a_new_job_is_queued_and_says_so_in_its_first_event(driver: Driver) -> None:
    job_id = driver.add_one(spec={"steps": 7}, priority=3)
    job = driver.get(job_id)
    assert (job.state, job.attempt, job.priority, job.spec) == (JobState.QUEUED, 0, 3, {"steps": 7})
    assert job.started_at is None
    assert job.finished_at is None
    assert driver.events(job_id) == [
        {"from": None, "to": "queued", "cause": None, "worker": None, "attempt": 0, "fence": 0}
    ]


def test_a_claim_gives_worker_attempt_lease_and_token(driver: Driver) -> None:
    job_id = driver.add_one()
    claim = driver.claimed(worker="w")
    assert (claim.job.id, claim.job.state, claim.job.worker) == (job_id, JobState.RUNNING, "w")
    assert (claim.fence, claim.job.attempt, claim.losses, claim.checkpoints) == (1, 1, 0, ())
    assert driver.column(job_id, "lease_until") - driver.now() == pytest.approx(LEASE_S, abs=2)
    assert driver.events(job_id)[-1] == {
        "from": "queued", "to": "running", "cause": None, "worker": "w", "attempt": 1, "fence": 1,
    }  # fmt: skip
    assert driver.claim() is None


def test_no_job_means_no_claim(driver: Driver) -> None:
    assert driver.claim() is None


def test_higher_priority_first_then_older(driver: Driver) -> None:
    low_old, low_new = driver.add(2)
    [high] = driver.add(1, priority=5)
    [lowest] = driver.add(1, priority=-5)
    assert [driver.claimed().job.id for _ in range(4)] == [high, low_old, low_new, lowest]


def test_many_jobs_of_one_moment_keep_their_order(driver: Driver) -> None:
    ids = driver.add(20)
    assert [driver.claimed().job.id for _ in ids] == ids


def test_a_job_waits_for_its_time(driver: Driver) -> None:
    job_id = driver.add_one()
    with driver.store.write() as connection:
        connection.execute(update(job_table).where(job_table.c.id == job_id).values(not_before=db_now() + 30))
    assert driver.claim() is None
    with driver.store.write() as connection:
        connection.execute(update(job_table).values(not_before=db_now() - 0.001))
    assert driver.claimed().job.id == job_id


def test_a_job_waits_until_all_before_it_succeeded(driver: Driver) -> None:
    first, second = driver.add(2)
    last = driver.add_one(after=(first, second), priority=9)
    assert set(driver.get(last).after) == {first, second}
    one, two = driver.claimed(), driver.claimed()
    assert driver.claim() is None
    driver.publish(one)
    assert driver.claim() is None
    driver.publish(two)
    assert driver.claimed().job.id == last


@pytest.mark.parametrize(
    ("queues", "cuda", "gpu", "expected"),
    [
        (("cpu",), False, None, ["c"]),
        (("gpu",), False, None, ["auto", "cpu"]),
        (("gpu", "cpu"), False, None, ["auto", "c", "cpu"]),
        (("gpu",), True, 0, ["auto"]),
        (("gpu",), True, None, ["auto", "cpu", "cuda", "cuda1"]),
        (("gpu", "cpu"), True, 1, ["auto", "c"]),
    ],
)
def test_queues_and_devices_route(
    driver: Driver, queues: tuple[str, ...], cuda: bool, gpu: int | None, expected: list[str]
) -> None:
    names = {
        driver.add_one(queue="gpu", device="auto"): "auto",
        driver.add_one(queue="cpu", device="auto"): "c",
        driver.add_one(queue="gpu", device="cpu"): "cpu",
        driver.add_one(queue="gpu", device="cuda"): "cuda",
        driver.add_one(queue="gpu", device="cuda:1"): "cuda1",
    }
    found = []
    while claim := driver.claim(queues=queues, cuda=cuda, gpu=gpu):
        found.append(names[claim.job.id])
    assert found == expected


def test_a_device_that_is_named_goes_only_to_that_device(driver: Driver) -> None:
    job_id = driver.add_one(queue="gpu", device="cuda:1")
    assert driver.claim(cuda=True, gpu=0) is None
    claim = driver.claimed(cuda=True, gpu=1)
    assert (claim.job.id, claim.gpu) == (job_id, 1)


def test_one_job_a_gpu_and_host(driver: Driver) -> None:
    driver.add(3, queue="gpu")
    first = driver.claimed(cuda=True, gpu=0)
    assert driver.claim(cuda=True, gpu=0) is None
    assert driver.claimed(cuda=True, gpu=1).gpu == 1
    assert driver.claimed(cuda=True, gpu=0, host="host-2").gpu == 0
    driver.publish(first)
    driver.add(1, queue="gpu")
    assert driver.claimed(cuda=True, gpu=0).gpu == 0


def test_the_database_itself_refuses_a_second_job_on_a_gpu(driver: Driver) -> None:
    driver.add(2, queue="gpu")
    first, second = driver.claimed(cuda=True, gpu=0), driver.claimed(cuda=True, gpu=1)
    assert first.gpu == 0
    with pytest.raises(IntegrityError), driver.store.write() as connection:
        connection.execute(update(job_table).where(job_table.c.id == second.job.id).values(gpu=0))


def test_a_claim_by_id_or_by_study_takes_nothing_else(driver: Driver) -> None:
    other = driver.add_one(priority=9)
    mine = driver.add_one()
    assert driver.claimed(job_id=mine).job.id == mine
    assert driver.claim(job_id=mine) is None
    study, children = driver.study(2)
    assert [driver.claimed(parent=study).job.id for _ in children] == children
    assert driver.claim(parent=study) is None
    assert driver.claim(job_id=study) is None
    assert driver.claimed().job.id == other


def test_claimable_lists_what_a_claim_would_take(driver: Driver) -> None:
    first = driver.add_one(queue="gpu")
    driver.add_one(after=(first,))
    with driver.store.read() as connection:
        assert jobs.claimable(connection, 10) == [(first, "gpu")]


# --- holding -------------------------------------------------------------------------------------------------------


def test_a_heartbeat_renews_the_lease_and_tells_of_cancelling(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed(lease_s=1.0)
    before = driver.column(claim.job.id, "lease_until")
    assert driver.beat(claim) == jobs.Beat(cancel_requested=False)
    assert driver.column(claim.job.id, "lease_until") > before + LEASE_S / 2
    driver.cancel(claim.job.id)
    assert driver.beat(claim) == jobs.Beat(cancel_requested=True)


def test_a_late_heartbeat_still_holds_until_somebody_takes_the_job(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    driver.expire(claim.job.id)
    assert driver.beat(claim) is not None
    assert driver.reap() == []


def test_standing_follows_the_attempt(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()

    def standing() -> str | None:
        with driver.store.read() as connection:
            return jobs.standing(connection, claim.job.id, claim.fence)

    assert standing() == "running"
    driver.cancel(claim.job.id)
    assert standing() == "cancelling"
    driver.stopped(claim)
    assert standing() is None


def test_progress_and_events_are_kept_in_order(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    with driver.store.write() as connection:
        jobs.record_progress(connection, claim.job.id, claim.fence, 3, 9)
        jobs.add_events(
            connection,
            claim.job.id,
            claim.fence,
            claim.job.attempt,
            [("metric", {"step": step, "loss": 0.5}) for step in range(3)],
        )
    assert (driver.get(claim.job.id).progress.step, driver.get(claim.job.id).progress.total) == (3, 9)
    assert [event["step"] for event in driver.events(claim.job.id, "metric")] == [0, 1, 2]


def test_the_last_two_checkpoints_are_kept_and_the_older_ones_returned(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    assert driver.checkpoint(claim, 10) == ()
    assert driver.checkpoint(claim, 20) == ()
    assert [one.step for one in driver.checkpoint(claim, 30)] == [10]
    driver.release(claim)
    again = driver.claimed()
    assert [one.step for one in again.checkpoints] == [30, 20]
    assert again.checkpoints[0].uri == "file-30"


def test_the_same_checkpoint_twice_is_one(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    driver.checkpoint(claim, 10)
    driver.checkpoint(claim, 20)
    assert driver.checkpoint(claim, 20) == ()
    assert [item["step"] for item in driver.column(claim.job.id, "checkpoint")] == [20, 10]


# --- ending --------------------------------------------------------------------------------------------------------


def test_publishing_is_result_files_and_state_at_once(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    driver.publish(claim, {"gain": 0.25}, [FILE])
    job = driver.get(claim.job.id)
    assert (job.state, job.result, job.cause) == (JobState.SUCCEEDED, {"gain": 0.25}, None)
    assert job.finished_at is not None
    assert driver.files(job.id) == [FILE.uri]
    assert driver.column(job.id, "lease_until") is None
    assert driver.path(job.id) == ["queued", "running", "succeeded"]


def test_a_publication_that_fails_half_way_leaves_nothing(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()

    def half() -> None:
        with driver.store.write() as connection:
            jobs.succeed(connection, claim.job.id, claim.fence, {}, [FILE])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert driver.state(claim.job.id) == "running"
    assert driver.files(claim.job.id) == []
    assert driver.path(claim.job.id) == ["queued", "running"]


def test_publishing_again_after_a_lost_answer_changes_nothing(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    driver.publish(claim, {"first": True}, [FILE])
    with driver.store.write() as connection:
        jobs.succeed(connection, claim.job.id, claim.fence, {"second": True}, [FILE])
    assert driver.get(claim.job.id).result == {"first": True}
    assert driver.files(claim.job.id) == [FILE.uri]
    assert driver.completions(claim.job.id) == 1


def test_a_result_that_comes_after_the_request_to_cancel_is_not_published(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    driver.cancel(claim.job.id)
    with pytest.raises(CancelRequested):
        driver.publish(claim, {}, [FILE])
    assert driver.state(claim.job.id) == "cancelling"
    driver.stopped(claim)
    assert driver.state(claim.job.id) == "cancelled"
    assert driver.files(claim.job.id) == []


def test_a_success_that_was_committed_first_wins_over_cancel(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    driver.publish(claim)
    assert driver.cancel(claim.job.id).state is JobState.SUCCEEDED
    assert driver.path(claim.job.id)[-1] == "succeeded"


@pytest.mark.parametrize("cause", sorted(set(Cause) - RETRIED))
def test_causes_that_no_retry_would_help_fail_at_once(driver: Driver, cause: Cause) -> None:
    driver.add_one()
    claim = driver.claimed()
    assert driver.fail(claim, cause, "the reason", exit_code=3, log=["last line"]) is JobState.FAILED
    job = driver.get(claim.job.id)
    assert (job.state, job.cause, job.message) == (JobState.FAILED, cause.value, "the reason")
    event = driver.events(job.id)[-1]
    assert (event["cause"], event["exit_code"], event["log"]) == (cause.value, 3, ["last line"])


@pytest.mark.parametrize("cause", sorted(RETRIED))
def test_causes_that_a_retry_may_help_go_back_to_the_queue(driver: Driver, cause: Cause) -> None:
    driver.add_one()
    claim = driver.claimed()
    assert driver.fail(claim, cause) is JobState.QUEUED
    job = driver.get(claim.job.id)
    assert (job.cause, job.attempt) == (cause.value, 0 if cause is Cause.DRAINED else 1)
    again = driver.claimed()
    assert (again.fence, again.job.attempt, again.job.cause) == (2, 1 if cause is Cause.DRAINED else 2, None)
    assert again.losses == (0 if cause in (Cause.DRAINED, Cause.DISK_FULL) else 1)


def test_every_cause_is_retried_or_not(driver: Driver) -> None:
    assert set(Cause) >= RETRIED
    assert Cause.POISON not in RETRIED


def test_the_pause_before_a_retry_doubles_up_to_ten_minutes(driver: Driver) -> None:
    policy = RetryPolicy()
    assert [policy.pause_s(losses) for losses in (0, 1, 2, 3, 8, 50, 10_000)] == [5, 5, 10, 20, 600, 600, 600]
    slow = Driver(driver.store, retry=policy)
    slow.add_one()
    claim = slow.claimed()
    slow.fail(claim, Cause.IO_TRANSIENT)
    assert slow.column(claim.job.id, "not_before") - slow.now() == pytest.approx(5, abs=2)
    assert slow.claim() is None


def test_three_losses_in_a_row_without_a_checkpoint_are_poison(driver: Driver) -> None:
    job_id = driver.add_one()
    for loss in range(3):
        claim = driver.claimed()
        assert claim.losses == loss
        driver.fail(claim, Cause.WORKER_LOST, "signal 9", signal=9)
    job = driver.get(job_id)
    assert (job.state, job.cause, job.attempt) == (JobState.FAILED, "poison", 3)
    assert "3 times in a row" in str(job.message)
    assert "signal 9" in str(job.message)
    assert driver.events(job_id)[-1]["last_cause"] == "worker_lost"
    assert driver.claim() is None


def test_checkpoint_progress_forgives_losses_but_the_same_step_again_does_not(driver: Driver) -> None:
    job_id = driver.add_one()
    for step in (10, 20, 30, 40):
        claim = driver.claimed()
        driver.checkpoint(claim, step)
        assert driver.fail(claim, Cause.WORKER_LOST) is JobState.QUEUED
    for _ in range(2):
        claim = driver.claimed()
        driver.checkpoint(claim, 40, name=f"40-{claim.fence}")
        driver.fail(claim, Cause.WORKER_LOST)
    assert driver.get(job_id).cause == "poison"


def test_running_out_of_host_memory_is_retried_once(driver: Driver) -> None:
    driver.add_one()
    assert driver.fail(driver.claimed(), Cause.HOST_OOM) is JobState.QUEUED
    claim = driver.claimed()
    driver.checkpoint(claim, 10)
    assert driver.fail(claim, Cause.HOST_OOM) is JobState.FAILED
    assert driver.get(claim.job.id).cause == "host_oom"


def test_a_full_disk_waits_longer_each_time_and_is_never_poison(driver: Driver) -> None:
    driver.add_one()
    for _ in range(5):
        assert driver.fail(driver.claimed(), Cause.DISK_FULL) is JobState.QUEUED


def test_draining_is_free(driver: Driver) -> None:
    job_id = driver.add_one()
    for _ in range(5):
        claim = driver.claimed()
        assert claim.job.attempt == 1
        assert driver.release(claim) is JobState.QUEUED
    assert driver.column(job_id, "losses") == 0
    assert driver.column(job_id, "fence") == 5
    assert driver.events(job_id)[-1]["cause"] == "drained"
    assert driver.claimed().job.attempt == 1


# --- cancelling ----------------------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once(driver: Driver) -> None:
    job_id = driver.add_one()
    job = driver.cancel(job_id)
    assert (job.state, job.cause) == (JobState.CANCELLED, "cancelled")
    assert job.finished_at is not None
    assert driver.claim() is None


def test_cancelling_twice_is_cancelling_once(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    assert driver.cancel(claim.job.id).state is JobState.CANCELLING
    asked = driver.column(claim.job.id, "cancel_requested_at")
    assert driver.cancel(claim.job.id).state is JobState.CANCELLING
    assert driver.column(claim.job.id, "cancel_requested_at") == asked
    assert driver.path(claim.job.id) == ["queued", "running", "cancelling"]


@pytest.mark.parametrize(
    ("cause", "end"),
    [(Cause.WORKER_LOST, "cancelled"), (Cause.DRAINED, "cancelled"), (Cause.BAD_INPUT, "failed")],
)
def test_how_an_attempt_ends_that_is_being_cancelled(driver: Driver, cause: Cause, end: str) -> None:
    claim, _ = bring_to(driver, "cancelling")
    assert driver.fail(claim, cause).value == end
    assert driver.get(claim.job.id).cause == ("cancelled" if end == "cancelled" else cause.value)


def test_draining_a_job_that_is_being_cancelled_cancels_it(driver: Driver) -> None:
    claim, _ = bring_to(driver, "cancelling")
    assert driver.release(claim) is JobState.CANCELLED


def test_cancelling_what_does_not_exist(driver: Driver) -> None:
    with pytest.raises(NotFound, match="no job named"):
        driver.cancel(uuid4())


# --- the reaper ----------------------------------------------------------------------------------------------------


def test_an_expired_lease_sends_the_job_back_with_its_cause(driver: Driver) -> None:
    job_id = driver.add_one()
    driver.claimed(worker="gone")
    assert driver.reap() == []
    driver.expire(job_id)
    assert driver.reap() == [job_id]
    assert driver.reap() == []
    job = driver.get(job_id)
    assert (job.state, job.cause) == (JobState.QUEUED, "worker_lost")
    assert "gone" in str(job.message)
    event = driver.events(job_id)[-1]
    assert (event["from"], event["to"], event["cause"], event["fence"]) == ("running", "queued", "worker_lost", 1)
    assert driver.claimed().fence == 2


def test_the_reaper_pauses_before_the_next_attempt(driver: Driver) -> None:
    slow = Driver(driver.store, retry=RetryPolicy(base_s=50.0))
    job_id = slow.add_one()
    slow.claimed()
    slow.expire(job_id)
    slow.reap()
    assert slow.claim() is None
    assert slow.column(job_id, "not_before") - slow.now() == pytest.approx(50, abs=2)


def test_an_expired_lease_of_a_job_that_is_being_cancelled_cancels_it(driver: Driver) -> None:
    claim, _ = bring_to(driver, "cancelling")
    driver.expire(claim.job.id)
    driver.reap()
    job = driver.get(claim.job.id)
    assert (job.state, job.cause) == (JobState.CANCELLED, "cancelled")
    assert driver.events(job.id)[-1]["cause"] == "worker_lost"


def test_three_reaped_attempts_are_poison(driver: Driver) -> None:
    job_id = driver.add_one()
    for _ in range(3):
        driver.claimed()
        driver.expire(job_id)
        driver.reap()
    assert driver.get(job_id).cause == "poison"


def test_the_reaper_is_silent_until_the_database_was_there_long_enough(driver: Driver) -> None:
    job_id = driver.add_one()
    driver.claimed()
    driver.expire(job_id)
    assert driver.reap(guard_s=180.0, reachable_s=179.0) == []
    assert driver.state(job_id) == "running"


def test_on_postgres_the_servers_own_age_counts_too(postgres_url: str) -> None:
    store = Store.open(postgres_url)
    driver = Driver(store)
    job_id = driver.add_one()
    driver.claimed()
    driver.expire(job_id)
    assert driver.reap(guard_s=1e6, reachable_s=1e9) == []
    assert driver.reap(guard_s=0.0) == [job_id]
    store.close()


def test_without_the_reapers_guard_a_healthy_job_is_taken_after_an_outage(open_store: Callable[..., Store]) -> None:
    mutant = Driver(open_store(disabled_guards="reaper_guard"))
    job_id = mutant.add_one()
    claim = mutant.claimed()
    mutant.expire(job_id)  # what an outage longer than the lease does to every healthy job
    assert mutant.reap(guard_s=180.0, reachable_s=0.0) == [job_id]
    assert mutant.beat(claim) is None


# --- fencing -------------------------------------------------------------------------------------------------------


def writes_of(driver: Driver, claim: Claim) -> dict[str, Callable[[], object]]:
    """Every write that an attempt can make."""
    job_id, fence = claim.job.id, claim.fence

    def events() -> None:
        with driver.store.write() as connection:
            jobs.add_events(connection, job_id, fence, 1, [("log", {"text": "late"})])

    def progress() -> None:
        with driver.store.write() as connection:
            jobs.record_progress(connection, job_id, fence, 99, 99)

    def held() -> None:
        with driver.store.write() as connection:
            jobs.hold(connection, job_id, fence)

    return {
        "hold": held,
        "events": events,
        "progress": progress,
        "checkpoint": lambda: driver.checkpoint(claim, 99),
        "publish": lambda: driver.publish(claim, {"late": True}, [FILE]),
        "fail": lambda: driver.fail(claim, Cause.BAD_INPUT),
        "release": lambda: driver.release(claim),
        "stopped": lambda: driver.stopped(claim),
    }


@pytest.mark.parametrize("taken", ["queued again", "claimed again", "finished by another"])
def test_an_attempt_that_lost_its_lease_cannot_write_a_single_row(driver: Driver, taken: str) -> None:
    job_id = driver.add_one()
    zombie = driver.claimed(worker="zombie")
    driver.expire(job_id)
    driver.reap()
    if taken != "queued again":
        other = driver.claimed(worker="other")
        if taken == "finished by another":
            driver.publish(other, {"by": "other"})
    before = (driver.get(job_id), driver.events(job_id), driver.column(job_id, "lease_until"))
    assert driver.beat(zombie) is None
    for name, write in writes_of(driver, zombie).items():
        with pytest.raises(LostLease):
            write()
        assert (driver.get(job_id), driver.events(job_id), driver.column(job_id, "lease_until")) == before, name
    assert driver.events(job_id, "log") == []
    assert driver.files(job_id) == []


def test_without_the_fence_the_same_run_completes_a_job_twice(open_store: Callable[..., Store]) -> None:
    driver = Driver(open_store(disabled_guards="fence"))
    job_id = driver.add_one()
    zombie = driver.claimed(worker="zombie")
    driver.expire(job_id)
    driver.reap()
    driver.publish(driver.claimed(worker="other"), {"by": "other"})
    driver.publish(zombie, {"by": "zombie"})
    assert driver.completions(job_id) == 2
    assert driver.get(job_id).result == {"by": "zombie"}


@pytest.mark.parametrize("state", ENDED)
def test_an_ended_job_takes_no_write_even_from_its_last_attempt(driver: Driver, state: str) -> None:
    claim, _ = bring_to(driver, state)
    before = (driver.get(claim.job.id), driver.events(claim.job.id))
    assert driver.beat(claim) is None
    for name, write in writes_of(driver, claim).items():
        if (state, name) == ("succeeded", "publish"):
            continue  # harmless when repeated: tested above
        with pytest.raises(LostLease):
            write()
    assert (driver.get(claim.job.id), driver.events(claim.job.id)) == before


def test_stopping_without_being_asked_is_refused(driver: Driver) -> None:
    claim, _ = bring_to(driver, "running")
    with pytest.raises(LostLease):
        driver.stopped(claim)
    assert driver.state(claim.job.id) == "running"


# --- what the database itself refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"), [pair for pair in itertools.product(ENDED, JobState) if pair[0] != pair[1].value]
)
def test_no_update_whatsoever_leaves_a_terminal_state(driver: Driver, source: str, target: JobState) -> None:
    claim, _ = bring_to(driver, source)
    values = {
        "state": target.value,
        "lease_until": 1e12 if target.value in ACTIVE else None,
        "finished_at": 1.0 if target in TERMINAL else None,
    }
    with pytest.raises(DBAPIError, match="a finished job never changes its state"), driver.store.write() as connection:
        connection.execute(update(job_table).where(job_table.c.id == claim.job.id).values(**values))
    assert driver.state(claim.job.id) == source


@pytest.mark.parametrize(
    "values",
    [
        {"state": "lost"},
        {"state": "running", "lease_until": None},
        {"lease_until": 1.0},
        {"state": "failed", "finished_at": None},
        {"finished_at": 1.0},
        {"attempt": -1},
        {"attempt": 1, "fence": 0},
    ],
)
def test_rows_that_make_no_sense_are_refused(driver: Driver, values: dict[str, object]) -> None:
    job_id = driver.add_one()
    with pytest.raises(IntegrityError), driver.store.write() as connection:
        connection.execute(update(job_table).where(job_table.c.id == job_id).values(**values))


def test_events_are_append_only_and_belong_to_a_job(driver: Driver) -> None:
    job_id = driver.add_one()
    with pytest.raises(DBAPIError, match="append-only"), driver.store.write() as connection:
        connection.execute(update(job_events).values(type="log"))
    orphan = {"job_id": uuid4(), "fence": 0, "attempt": 0, "type": "log", "at": 0.0, "data": {}}
    with pytest.raises(IntegrityError), driver.store.write() as connection:
        connection.execute(insert(job_events).values(**orphan))
    with pytest.raises(IntegrityError), driver.store.write() as connection:
        connection.execute(insert(job_events).values(**{**orphan, "job_id": job_id, "type": "gossip"}))
    with pytest.raises(IntegrityError), driver.store.write() as connection:
        connection.execute(delete(job_table))


def test_the_transitions_taken_here_are_those_of_the_domain(driver: Driver) -> None:
    seen = set()
    for state in JobState:
        claim, _ = bring_to(driver, state.value)
        seen |= {(event["from"], event["to"]) for event in driver.events(claim.job.id) if event["from"]}
        if state is JobState.QUEUED:
            driver.cancel(claim.job.id)
            seen.add(("queued", "cancelled"))
        if state is JobState.CANCELLING:
            driver.fail(claim, Cause.BAD_INPUT)
            seen.add(("cancelling", "failed"))
        if state is JobState.RUNNING:
            driver.publish(claim)
    assert seen == {(source.value, target.value) for source, targets in TRANSITIONS.items() for target in targets}


def test_text_that_a_database_cannot_hold_is_made_storable(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    driver.fail(claim, Cause.ERROR, "nul \x00 and surrogate \ud800")
    assert driver.get(claim.job.id).message == "nul \ufffd and surrogate ?"


def test_not_a_number_never_reaches_a_result(driver: Driver) -> None:
    driver.add_one()
    claim = driver.claimed()
    with pytest.raises((BadInput, ValueError), match=r"finite|Out of range"):
        driver.publish(claim, {"loss": float("nan")})
    assert driver.state(claim.job.id) == "running"


def test_a_store_that_was_never_migrated_says_what_to_do(tmp_path: object) -> None:
    empty = Store.open(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(StoreUnavailable, match="zoograft migrate"):
        Driver(empty).claim()
    empty.close()
