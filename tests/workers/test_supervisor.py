"""Supervisors as real processes on a real store: every end of a job once, quickly."""

import os
import signal
import time

import pytest

from backend import submission
from backend.store import jobs
from tests.reliability.harness import laboratory, sleep_digest
from workers.devices import find_gpus


@pytest.fixture
def lab():
    with laboratory("sqlite", lease_s=6.0, cancel_grace_s=0.5) as made:
        yield made


@pytest.fixture(scope="module")
def crew():
    """A laboratory with one running supervisor, shared by tests that do not disturb it."""
    with laboratory("sqlite", cancel_grace_s=0.5) as made:
        made.start()
        yield made


@pytest.mark.parametrize(
    ("fault", "state", "cause", "attempts"),
    [
        ("none", "succeeded", None, 1),
        ("raise", "failed", "error", 1),
        ("nan", "failed", "nonfinite_loss", 1),
        ("cuda_oom", "failed", "cuda_oom", 1),
        ("host_oom", "failed", "host_oom", 2),
        ("exit", "failed", "poison", 3),
        ("kill", "failed", "poison", 3),
    ],
)
def test_every_end_of_a_job(crew, fault, state, cause, attempts):
    (one,) = crew.submit({"steps": 3, "fault": fault, "fault_step": 1})  # before a checkpoint, which would be progress
    assert crew.wait([one], 60)
    job = crew.job(one)
    assert (job.state, job.cause, job.attempt) == (state, cause, attempts)
    if state == "succeeded":
        assert job.result["digest"] == sleep_digest(3)
        assert list(crew.published(one)) == ["digest.json"]


def test_what_is_kept_of_a_failure(crew):
    (one,) = crew.submit({"steps": 3, "fault": "raise", "fault_step": 2})
    assert crew.wait([one], 60)
    with crew.store.read() as connection:
        from backend.store.queries.jobs import events

        ended = [event.data for event in events(connection, one) if event.data.get("to") == "failed"]
    assert ended[0]["exit_code"] == 1
    assert any("asked to fail at step 2" in line for line in ended[0]["log"])


def test_a_signal_is_named(crew):
    (one,) = crew.submit({"steps": 3, "fault": "kill", "fault_step": 2})
    assert crew.wait([one], 60)
    assert "signal 9 (SIGKILL)" in crew.job(one).message


def test_a_deaf_job_is_freed_within_the_grace_and_a_moment(crew):
    (one,) = crew.submit({"steps": 3, "fault": "block", "fault_step": 2})
    assert crew.until(lambda: crew.job(one).state == "running" and bool(crew.job_processes()), 30)
    time.sleep(0.5)
    asked = time.monotonic()
    with crew.store.write() as connection:
        jobs.cancel(connection, one)
    assert crew.wait([one], 10, 0.02)
    assert time.monotonic() - asked < 5.0
    assert crew.job(one).state == "cancelled"
    assert crew.until(lambda: not crew.job_processes(), 2.0)


def test_a_cancelled_job_keeps_its_checkpoint_and_can_be_resumed(crew):
    (one,) = crew.submit({"steps": 100, "step_s": 0.05})
    assert crew.until(lambda: crew.job(one).progress.step > 5, 30)
    submission.cancel(crew.store, crew.settings, one)
    assert crew.wait([one], 10)
    again = submission.retry(crew.store, crew.settings, one, resume=True)
    assert crew.wait([again.id], 60)
    finished = crew.job(again.id)
    assert (finished.state, finished.result["digest"]) == ("succeeded", sleep_digest(100))
    assert crew.job(one).state == "cancelled"
    assert any("goes on from step" in text for text in [crew.log_text()])


def test_higher_priority_is_worked_first(lab):
    low, high = lab.submit({"steps": 1}), lab.submit({"steps": 1}, priority=5)
    lab.start("--once").wait(60)
    assert (lab.job(high[0]).state, lab.job(low[0]).state) == ("succeeded", "queued")


def test_attached_to_a_job_it_works_what_that_waits_for_and_nothing_else(lab):
    (first,) = lab.submit({"steps": 1})
    (second,) = lab.submit({"steps": 1}, after=(first,))
    (other,) = lab.submit({"steps": 1}, priority=9)
    assert lab.start("--job", str(second)).wait(60) == 0
    assert [lab.job(one).state for one in (first, second, other)] == ["succeeded", "succeeded", "queued"]


@pytest.mark.skipif(bool(find_gpus()), reason="this machine has CUDA")
def test_cuda_asked_for_on_one_machine_without_it_waits_in_the_queue_and_fails_when_attached_to(lab):
    (one,) = lab.submit({"models": ["any"], "dataset": "any", "device": "cuda"}, kind="scan")
    serving = lab.start()
    assert lab.until(lambda: "jobs ask for a CUDA device that no worker at work has" in lab.log_text(), 30)
    assert lab.job(one).state == "queued"
    serving.terminate()
    serving.wait(20)
    assert lab.start("--job", str(one)).wait(60) == 1
    job = lab.job(one)
    assert (job.state, job.cause) == ("failed", "bad_input")
    assert "no CUDA device" in str(job.message)


def test_attached_to_a_failing_job_it_exits_with_1_and_to_an_unknown_one_with_2(lab):
    (one,) = lab.submit({"steps": 1, "fault": "raise"})
    assert lab.start("--job", str(one)).wait(60) == 1
    assert lab.start("--job", "00000000-0000-0000-0000-000000000000").wait(60) == 2


def test_attached_to_a_study_it_works_the_children_until_all_have_ended(lab):
    children = [submission.Child(str(number), "sleep", {"steps": 1}) for number in range(2)]
    children.append(submission.Child("last", "sleep", {"steps": 1}, after=("0", "1")))
    study = submission.submit_study(lab.store, lab.settings, {}, children)
    assert lab.start("--job", str(study.job.id)).wait(60) == 0
    assert {lab.job(one).state for one in study.children.values()} == {"succeeded"}


def test_sigterm_drains_at_no_charge_and_the_job_goes_on_to_the_same_result(lab):
    worker = lab.start()
    (one,) = lab.submit({"steps": 40, "step_s": 0.05})
    assert lab.until(lambda: lab.job(one).progress.step > 5, 30)
    worker.terminate()
    assert worker.wait(20) == 0
    job = lab.job(one)
    assert (job.state, job.cause, job.attempt) == ("queued", "drained", 0)
    assert lab.start("--once").wait(60) == 0
    job = lab.job(one)
    assert (job.state, job.attempt, job.result["digest"]) == ("succeeded", 1, sleep_digest(40))
    assert lab.leftovers() == []


def test_a_step_that_does_not_come_is_a_stall(lab):
    lab.start(stall_s=1.0, retry_base_s=60.0)
    (one,) = lab.submit({"steps": 3, "fault": "block", "fault_step": 2})
    assert lab.until(lambda: lab.job(one).cause == "stalled", 30)
    assert lab.job(one).state == "queued"


def test_too_little_disk_stops_claiming(lab):
    worker = lab.start("--once", min_free_bytes=10**18)
    (one,) = lab.submit({"steps": 1})
    assert worker.wait(30) == 0
    assert lab.job(one).state == "queued"
    assert "too little disk" in lab.log_text()


def test_a_supervisor_never_imports_torch():
    import subprocess
    import sys

    code = "import sys, workers.supervisor, workers.app, workers.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bad_queues_are_named(lab):
    assert lab.start("--queues", "gpus").wait(30) == 2
    assert "gpus" in lab.log_text()


def test_a_killed_job_process_is_lost_and_tried_again(lab):
    lab.start()
    (one,) = lab.submit({"steps": 40, "step_s": 0.05})
    assert lab.until(lambda: lab.job(one).progress.step > 10 and bool(lab.job_processes()), 30)
    for pid in lab.job_processes():
        os.kill(pid, signal.SIGKILL)
    assert lab.wait([one], 60)
    job = lab.job(one)
    assert (job.state, job.attempt, job.result["digest"]) == ("succeeded", 2, sleep_digest(40))
