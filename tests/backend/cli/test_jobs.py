"""Jobs from the command line; foreground runs are processes of their own, as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from backend import submission
from backend.cli.follow import _duration
from backend.settings import Settings, environment
from backend.store.queries import jobs as queries
from backend.store.session import Store
from backend.submission import Child
from tests.backend.cli.conftest import Ran


def test_list_show_cancel_retry(zoograft: Callable[..., Ran], sqlite_store: Store, settings: Settings) -> None:
    job = submission.submit(sqlite_store, settings, "sleep", {"steps": 2}).job
    assert [item["id"] for item in zoograft("jobs", "ls", "--json").json["items"]] == [str(job.id)]
    assert str(job.id) in zoograft("jobs", "ls", "--state", "queued", "--kind", "sleep").out
    assert zoograft("jobs", "show", job.id, "--json").json == job.model_dump(mode="json")
    assert "queued" in zoograft("jobs", "show", job.id).out
    assert zoograft("jobs", "retry", job.id).code == 1  # it has not ended
    assert zoograft("jobs", "cancel", job.id, "--json").json["state"] == "cancelled"
    assert zoograft("jobs", "resume", job.id).code == 1  # it left no checkpoint
    again = zoograft("jobs", "retry", job.id, "--json").json
    assert again["retry_of"] == str(job.id)
    assert UUID(zoograft("jobs", "retry", job.id).out.strip())
    assert "queued → cancelled" in zoograft("jobs", "logs", job.id).out
    events = [json.loads(line) for line in zoograft("jobs", "logs", job.id, "--json").out.splitlines()]
    assert [event["data"]["to"] for event in events] == ["queued", "cancelled"]


def test_studies(zoograft: Callable[..., Ran], sqlite_store: Store, settings: Settings) -> None:
    done = submission.submit_study(
        sqlite_store, settings, {"name": "s"}, [Child("a", "sleep", {}), Child("b", "sleep", {})]
    )
    assert zoograft("study", "ls", "--json").json["items"][0]["children"] == {"queued": 2}
    assert "2 queued" in zoograft("study", "ls").out
    listed = zoograft("jobs", "ls", "--parent", done.job.id, "--json").json["items"]
    assert {item["parent"] for item in listed} == {str(done.job.id)}


def test_detached_runs_are_queued_and_return(zoograft: Callable[..., Ran]) -> None:
    ran = zoograft("datasets", "add", "digits", "--detach", "--json")
    assert (ran.code, ran.json["kind"], ran.json["state"]) == (0, "register", "queued")
    assert ran.json["spec"]["dataset"]["source"] == "digits"
    ran = zoograft("models", "add", "net", "--arch", "resnet18", "--kwarg", "num_classes=10", "--detach", "--json")
    assert ran.json["spec"]["model"]["kwargs"] == {"num_classes": 10}
    assert ran.json["spec"]["model"]["pretrained"] is False


def start(settings: Settings, *arguments: str) -> subprocess.Popen[str]:
    env = environment(
        ZOOGRAFT_DATA_DIR=str(settings.data_dir),
        ZOOGRAFT_DATABASE_URL=settings.database,
        ZOOGRAFT_WARM="false",
        PYTHONPATH=str(Path(__file__).parents[3]),
    )
    return subprocess.Popen(
        [sys.executable, "-m", "backend.cli.main", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(store: Store, settings: Settings, **spec: object) -> UUID:
    """A cancelled job, to be tried again in the foreground."""
    id = submission.submit(store, settings, "sleep", spec).job.id
    submission.cancel(store, settings, id)
    return id


def test_a_foreground_run_shows_its_result(sqlite_store: Store, settings: Settings) -> None:
    id = ended(sqlite_store, settings, steps=5, step_s=0.05)
    process = start(settings, "jobs", "retry", str(id), "--follow", "--json")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    job = json.loads(out)
    assert (job["state"], job["progress"]) == ("succeeded", {"step": 5, "total": 5})
    assert job["result"]["steps"] == 5
    assert "sleep 5/5 steps" in err
    assert "\x1b" not in err  # no terminal, no bar


def test_a_failure_is_exit_1_with_its_cause(sqlite_store: Store, settings: Settings) -> None:
    id = ended(sqlite_store, settings, steps=5, fault="raise", fault_step=2)
    process = start(settings, "jobs", "retry", str(id), "--follow")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert out == ""
    assert "sleep failed" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_a_foreground_run_cancels_it(
    sqlite_store: Store, settings: Settings, number: signal.Signals, code: int
) -> None:
    id = ended(sqlite_store, settings, steps=10_000, step_s=0.02)
    process = start(settings, "jobs", "retry", str(id), "--follow")
    until = time.monotonic() + 60
    running = None
    while running is None and time.monotonic() < until:
        with sqlite_store.read() as connection:
            page = queries.jobs(connection, state=("running",)).items
        running = next((job for job in page if job.progress.step > 0), None)
        time.sleep(0.05)
    assert running is not None
    process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert time.monotonic() - began < 20
    assert f"zoograft jobs resume {running.id}" in err
    with sqlite_store.read() as connection:
        assert queries.job(connection, running.id).state == "cancelled"
    # Nothing of it is left.
    mark = f"ZOOGRAFT_DATA_DIR={settings.data_dir}".encode()
    deadline = time.monotonic() + 10
    while (alive := _carrying(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def _carrying(mark: bytes) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if (
                    mark in (entry / "environ").read_bytes().split(b"\0")
                    and "Z" not in (entry / "stat").read_text().rsplit(") ", 1)[1][:1]
                ):
                    found.append((entry / "cmdline").read_bytes().decode())
            except OSError:
                continue
    return found


def test_time_left_in_words() -> None:
    assert [_duration(s) for s in (5.4, 65, 3700)] == ["5 s", "1 min 5 s", "1 h 1 min"]
