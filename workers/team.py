"""The processes of a training over several devices: rank 0 is the job's own process, the others are started by it.

    python -m workers.team RANK PARENT            (reads the claim as JSON from stdin; only started by `gathered`)

All are in the job's process group, so ending the job ends them; the kernel ends them with rank 0 too. They run the same
task on the same spec with a `FollowingJob`, which reports and stores nothing. A cancel or a drain reaches rank 0 alone:
it writes its checkpoint and ends the rest. A rank that dies ends the job, with its cause.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection

from backend import logs
from backend.domain.jobs import Cause
from backend.domain.progress import Progress
from backend.domain.specs import parse_spec
from backend.settings import Settings
from backend.store.job_records import Checkpoint
from backend.store.session import Store
from workers import tasks
from workers.lifecycle import RunningJob
from workers.processes import CANCEL, DRAIN, die_with_parent, watch_parent

log = structlog.get_logger()
BLAMED_S = 3.0
"""How long an error of rank 0 waits for the end of a rank that may be its cause."""


class FollowingJob(RunningJob):
    """The job as a rank above 0 has it: rank 0 alone reports, keeps, publishes and stops."""

    def record(self, progress: Progress) -> None:
        self._last_step = progress.step

    def check(self) -> None:
        """Rank 0 is asked to stop, and ends this process."""

    def log(self, text: str) -> None:
        log.info(text)

    def flush(self, *, patient: bool = True) -> None:
        """Nothing is kept here."""

    def checkpoint_with(self, provider: Callable[[], Any]) -> None:
        """Rank 0 keeps the state, which is the same here."""

    def checkpoint(self, state: Any, step: int) -> None:
        """Rank 0 keeps the state, which is the same here."""

    def attach(self, name: str, content: Path | str | bytes, media_type: str = "application/octet-stream") -> str:
        return ""

    def on_publish(self, write: Callable[[Connection], Any]) -> None:
        """Rank 0 publishes."""


@contextmanager
def gathered(job: RunningJob, claim: Mapping[str, Any], devices: Sequence[str]) -> Iterator[Any]:
    """Start the other ranks and join them; gives this process's `Joined`. They are gone afterwards."""
    from workers.science.ranks import Joined

    folder = job.scratch / "ranks"
    folder.mkdir(parents=True)
    threads = _share_threads(len(devices))
    message = json.dumps({**claim, "devices": list(devices), "folder": str(folder), "threads": threads}).encode()
    helpers: list[subprocess.Popen[bytes]] = []
    watchers: list[threading.Thread] = []
    ending = threading.Event()
    try:
        for rank in range(1, len(devices)):
            helper = subprocess.Popen(
                [sys.executable, "-m", "workers.team", str(rank), str(os.getpid())], stdin=subprocess.PIPE
            )
            helpers.append(helper)
            assert helper.stdin is not None
            with contextlib.suppress(BrokenPipeError), helper.stdin:
                helper.stdin.write(message)
        for rank, helper in enumerate(helpers, start=1):
            watcher = threading.Thread(
                target=_watch, args=(rank, helper, folder, job.report, ending), name=f"rank-{rank}", daemon=True
            )
            watcher.start()
            watchers.append(watcher)
        ranks = Joined(folder, 0, devices)
        yield ranks
        ranks.leave()
    except RuntimeError:
        # A broken connection to a rank that is gone is not the cause: the rank's watcher tells that, and ends this.
        until = time.monotonic() + BLAMED_S
        while time.monotonic() < until and all(watcher.is_alive() for watcher in watchers):
            time.sleep(0.05)
        raise
    finally:
        ending.set()
        for helper in helpers:
            helper.kill()
            helper.wait()


def _watch(
    rank: int,
    helper: subprocess.Popen[bytes],
    folder: Path,
    report: Callable[[Mapping[str, Any]], Any],
    ending: threading.Event,
) -> None:
    """End the job with a rank that failed: the others wait for it, and would do so for ever."""
    status = helper.wait()
    if status == 0 or ending.is_set():
        return
    try:
        outcome = json.loads((folder / f"failed-{rank}.json").read_text())
    except (OSError, ValueError):
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        outcome = {"cause": Cause.WORKER_LOST.value, "message": f"rank {rank} of the training ended: {how}"}
    log.error("a rank failed", rank=rank, **outcome)
    report({"outcome": "failed", **outcome})
    os._exit(1)


def _share_threads(ranks: int) -> int:
    """Threads of the math libraries for each rank, this one included: together as many as the job was given."""
    import torch

    threads = max(1, torch.get_num_threads() // ranks)
    torch.set_num_threads(threads)
    return threads


def main() -> int:
    rank, parent = int(sys.argv[1]), int(sys.argv[2])
    for number in (CANCEL, DRAIN, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(parent)
    claim = json.load(sys.stdin)
    settings = Settings.model_validate(claim["settings"])
    watch_parent(parent)
    logs.configure(settings)
    record, folder = claim["job"], Path(claim["folder"])
    structlog.contextvars.bind_contextvars(job=record["id"], attempt=record["attempt"], rank=rank)
    try:
        _follow(claim, record, settings, folder, rank)
    except BaseException as error:
        from workers.runner import explain

        traceback.print_exc()
        cause, message = explain(error)
        text = json.dumps({"cause": cause.value, "message": f"rank {rank}: {message}"})
        temporary = folder / f".failed-{rank}"
        temporary.write_text(text)
        os.replace(temporary, folder / f"failed-{rank}.json")
        return 1
    return 0


def _follow(claim: Mapping[str, Any], record: Mapping[str, Any], settings: Settings, folder: Path, rank: int) -> None:
    import torch

    from workers.science.ranks import Joined

    torch.set_num_threads(claim["threads"])
    scratch = folder / f"rank-{rank}"
    scratch.mkdir()
    ranks = Joined(folder, rank, claim["devices"])
    store = Store.open(settings.database, settings=settings)
    try:
        job = FollowingJob(
            id=UUID(record["id"]),
            kind=record["kind"],
            spec=parse_spec(record["kind"], record["spec"]),
            settings=settings,
            store=store,
            fence=claim["fence"],
            attempt=record["attempt"],
            device=claim["devices"][rank],
            scratch=scratch,
            checkpoints=tuple(Checkpoint(**one) for one in claim["checkpoints"]),
            ranks=ranks,
        )
        tasks.load(job.kind)(job)
    finally:
        store.close()
    ranks.leave()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
