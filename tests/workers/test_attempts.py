"""What a supervisor makes of how an attempt moves and ends."""

import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backend.domain.jobs import Cause, Job
from backend.settings import Settings
from backend.store.job_records import Claim, new_id
from workers import attempts
from workers.attempts import Attempt, describe_status, last_lines
from workers.processes import CANCEL


class Pipe:
    def __init__(self) -> None:
        self.messages: list[dict] = []

    def receive(self):
        messages, self.messages = self.messages, []
        return messages


class FakeChild:
    """A process that only remembers what it was told."""

    def __init__(self) -> None:
        self.channel, self.ready, self.status, self.killed, self.asked = Pipe(), False, None, 0, []

    def ask(self, number):
        if self.ready:
            self.asked.append(number)
        return self.ready

    def kill(self):
        self.killed += 1


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(attempts.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def attempt(tmp_path, clock):
    job = Job(id=new_id(), kind="sleep", state="running", spec={}, attempt=1, created_at=datetime.now(UTC))
    settings = Settings(data_dir=tmp_path, stall_s=600, cancel_grace_s=3, drain_s=60)
    return Attempt(Claim(job, 1, (), 0, None), FakeChild(), settings, "cpu", began=clock[0])


def step(attempt, number):
    attempt.child.channel.messages.append({"step": number, "total": 100})
    attempt.listen()


def test_a_stall_is_no_step_within_twenty_medians_and_never_less_than_ten_minutes(attempt, clock):
    assert attempt.stall_limit_s() == 600
    for number in range(1, 6):
        clock[0] += 60
        step(attempt, number)
    assert attempt.stall_limit_s() == 1200
    clock[0] += 1199
    attempt.press()
    assert attempt.doom is None
    clock[0] += 2
    attempt.press()
    assert (attempt.doom, attempt.child.killed) == ("stalled", 1)
    assert attempt.why()[0] is Cause.STALLED


def test_several_steps_between_two_reports_count_as_several(attempt, clock):
    clock[0] += 100
    step(attempt, 10)
    assert attempt.steps_s[-1] == 10


def test_waiting_for_the_store_is_no_stall(attempt, clock):
    clock[0] += 599
    attempt.child.channel.messages.append({"waiting": "store"})
    attempt.listen()
    clock[0] += 599
    attempt.press()
    assert attempt.doom is None


def test_a_cancel_waits_for_the_process_to_listen_then_for_the_grace_then_ends_it(attempt, clock):
    attempt.cancel_at = clock[0]
    attempt.press()
    assert attempt.child.asked == []
    attempt.child.channel.messages.append({"ready": 7})
    attempt.listen()
    attempt.press()
    attempt.press()
    assert attempt.child.asked == [CANCEL]
    clock[0] += 3.1
    attempt.press()
    assert attempt.doom == "cancelled"
    attempt.press()
    assert attempt.child.killed == 2


def test_draining_leaves_time_for_a_checkpoint(attempt, clock):
    attempt.drain_at = clock[0]
    clock[0] += 40
    attempt.press()
    assert attempt.doom is None
    clock[0] += 10
    attempt.press()
    assert attempt.doom == "drained"


@pytest.mark.parametrize(
    ("status", "kills", "cause"),
    [(-9, 0, Cause.WORKER_LOST), (-9, 1, Cause.HOST_OOM), (3, 1, Cause.WORKER_LOST), (-11, 0, Cause.WORKER_LOST)],
)
def test_the_kernels_out_of_memory_killer_is_recognised_by_its_own_count(attempt, monkeypatch, status, kills, cause):
    attempt.oom_kills = 5
    attempt.child.ready = True
    monkeypatch.setattr(attempts, "count_oom_kills", lambda: 5 + kills)
    attempt.child.status = status
    assert attempt.why()[0] is cause


@pytest.mark.parametrize(
    ("status", "text"),
    [(0, "exit code 0"), (3, "exit code 3"), (-9, "signal 9 (SIGKILL)"), (-63, "signal 63"), (None, "unknown")],
)
def test_how_a_process_ended_in_words(status, text):
    assert describe_status(status) == text


def test_a_process_that_never_listened_is_not_the_jobs_fault(attempt):
    attempt.child.status = 1
    assert attempt.stillborn
    attempt.child.ready = True
    assert not attempt.stillborn


def test_half_written_files_of_this_and_earlier_attempts_go_and_nothing_else(attempt):
    folder = Path(attempt.settings.artifacts) / str(attempt.id)
    paths = [folder / name for name in ("0/.a.tmp", "1/deep/.b", "1/whole", "2/.c")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    attempt.child.close = lambda: None
    attempt.clean_up()
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_details_name_code_or_signal(attempt):
    attempt.child.status = -signal.SIGSEGV
    assert attempt.details() == {"signal": 11, "log": []}
    attempt.child.status = 3
    assert attempt.details() == {"exit_code": 3, "log": []}


def test_the_last_lines_of_a_log_are_bounded_and_printable(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %d \xff\x00\n" % number for number in range(1000)))
    lines = last_lines(path)
    assert len(lines) == 200
    assert lines[-1] == "line 999 \ufffd\ufffd"
    assert last_lines(Path("/nonexistent")) == []


def test_the_kernels_count_is_read_in_both_versions(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    two.write_text("low 0\nhigh 0\nmax 0\noom 3\noom_kill 2\n")
    for path, count in ((one, 4), (two, 2)):
        monkeypatch.setattr(attempts, "_memory_events", lambda path=path: [path])
        assert attempts.count_oom_kills() == count
    monkeypatch.undo()
    assert attempts.count_oom_kills() >= 0
    assert os.path.exists("/proc/self/cgroup")
