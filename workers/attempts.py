"""One attempt as its supervisor sees it: the claim, the process, how it moves, and what its end means."""

from __future__ import annotations

import contextlib
import shutil
import signal
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog

from backend.domain.errors import LostLease
from backend.domain.jobs import Cause
from backend.settings import Settings, threads_per_job
from backend.store import jobs
from backend.store.job_records import Claim
from backend.store.job_retries import RetryPolicy
from backend.store.queries.attempts import last_cause
from backend.store.session import Store
from workers.lifecycle import Spool, replay
from workers.processes import CANCEL, DRAIN, Child

log = structlog.get_logger()

LOG_LINES = 200
STALL_FACTOR = 20.0
CGROUP = Path("/sys/fs/cgroup")


@dataclass
class Attempt:
    """A claimed job and the process that works it.

    `doom` says why the process was ended from outside: `lost`, `cancelled`, `drained` or `stalled`.
    """

    claim: Claim
    child: Child
    settings: Settings
    device: str
    n_devices: int = 1
    began: float = field(default_factory=time.monotonic)
    doom: str | None = None
    outcome: dict[str, Any] | None = None
    step: int = 0
    cancel_at: float | None = None
    drain_at: float | None = None

    def __post_init__(self) -> None:
        self.moved_at = self.began
        self.steps_s: deque[float] = deque(maxlen=101)
        self.oom_kills = count_oom_kills()
        self._asked: set[int] = set()

    @property
    def id(self) -> UUID:
        return self.claim.job.id

    @property
    def fence(self) -> int:
        return self.claim.fence

    @property
    def scratch(self) -> Path:
        return self.settings.data_dir / "cache" / "attempts" / str(self.id) / str(self.fence)

    @property
    def log_file(self) -> Path:
        return self.settings.data_dir / "logs" / str(self.id) / f"{self.fence}.log"

    def hand_over(self, last: str | None) -> None:
        """Send the claim to the process."""
        message = {
            "job": self.claim.job.model_dump(mode="json"),
            "fence": self.fence,
            "checkpoints": [asdict(one) for one in self.claim.checkpoints],
            "device": self.device,
            "n_devices": self.n_devices,
            "last_cause": last,
            "scratch": str(self.scratch),
            "log": str(self.log_file),
            "threads": self.settings.threads if self.device != "cpu" else threads_per_job(self.settings),
            "settings": self.settings.model_dump(mode="json", exclude={"token"}),
        }
        self._sweep(self.fence - 1)
        if not self.child.channel.send(message, wait_s=10.0):
            log.warning("the process did not take its job", job=str(self.id))

    # --- while it runs ---------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Take in what the process has said."""
        for message in self.child.channel.receive():
            now = time.monotonic()
            if "ready" in message:
                self.child.ready = True
            elif "outcome" in message:
                self.outcome = message
            elif "step" in message:
                steps = message["step"] - self.step
                if steps > 0:
                    self.steps_s.append((now - self.moved_at) / steps)
                self.step, self.moved_at = message["step"], now
            elif "waiting" in message:
                self.moved_at = now

    def ask(self, number: signal.Signals) -> None:
        """Ask once, as soon as the process listens."""
        if number not in self._asked and self.child.ask(number):
            self._asked.add(number)

    def press(self) -> None:
        """Do what its situation asks for now: remind it to stop, or end it when its time is up."""
        now = time.monotonic()
        if self.doom is not None:
            self.child.kill()
        elif self.cancel_at is not None:
            self.ask(CANCEL)
            if now - self.cancel_at > self.settings.cancel_grace_s and self.settings.guard("cancel_kill"):
                self.end("cancelled")
        elif self.drain_at is not None:
            self.ask(DRAIN)
            if now - self.drain_at > 0.8 * self.settings.drain_s:
                self.end("drained")
        elif now - self.moved_at > self.stall_limit_s() and self.settings.guard("stall"):
            log.warning("no step for too long", job=str(self.id), limit_s=round(self.stall_limit_s(), 1))
            self.end("stalled")

    def stall_limit_s(self) -> float:
        """How long the next step may take: 20 medians, and never less than `stall_s`."""
        median = statistics.median(self.steps_s) if self.steps_s else 0.0
        return max(self.settings.stall_s, STALL_FACTOR * median)

    def end(self, doom: str) -> None:
        """End the process and everything it started."""
        self.doom = doom
        self.child.kill()

    # --- when it has ended -----------------------------------------------------------------------------------------

    def conclude(self, store: Store) -> str:
        """Write down how the attempt ended; returns the state that the job went to (or how it was left).

        Raises:
            StoreUnavailable: Not now; call again.
        """
        outcome = (self.outcome or {}).get("outcome")
        if outcome == "succeeded":
            return "succeeded"
        if self.doom == "lost" or outcome == "lost":
            return "lost"
        try:
            if self.stillborn:
                with store.write() as connection:
                    return jobs.release(connection, self.id, self.fence, "the job's process did not start").value
            with store.write() as connection:
                events = Spool(self.scratch / "spool.jsonl").read()
                if events:
                    jobs.hold(connection, self.id, self.fence)
                    replay(connection, self.id, self.fence, self.claim.job.attempt, events, resent=len(events))
            with store.write() as connection:
                if outcome == "cancelled" or (outcome is None and self.doom == "cancelled"):
                    how = "stopped at a step" if outcome else "its processes were ended after the grace period"
                    jobs.finish_cancelled(connection, self.id, self.fence, f"cancelled on request; {how}")
                    return "cancelled"
                if outcome == "drained" or (outcome is None and self.doom == "drained"):
                    return jobs.release(connection, self.id, self.fence).value
                cause, message = self.why()
                retry = RetryPolicy.of(self.settings)
                details = self.details()
                return jobs.fail(connection, self.id, self.fence, cause, message, retry=retry, details=details).value
        except LostLease:
            return "lost"

    @property
    def stillborn(self) -> bool:
        """Whether the process ended before it listened: this worker's fault, and no charge to the job."""
        return not self.child.ready and self.outcome is None and self.doom is None

    def why(self) -> tuple[Cause, str]:
        """The cause and the message of an attempt that ended without a result."""
        if self.outcome is not None:
            return Cause(self.outcome["cause"]), self.outcome["message"]
        if self.doom == "stalled":
            return Cause.STALLED, f"no step within {self.stall_limit_s():.0f} s after step {self.step}"
        status = self.child.status
        if status == -signal.SIGKILL and count_oom_kills() > self.oom_kills:
            return Cause.HOST_OOM, "the kernel ended the process: the machine (or its memory limit) ran out of memory"
        return Cause.WORKER_LOST, f"the process ended without a result: {describe_status(status)}"

    def details(self) -> dict[str, Any]:
        """What is kept with the event: how the process ended, and the last lines of its log."""
        status = self.child.status
        ended: dict[str, Any] = {"exit_code": status} if status is None or status >= 0 else {"signal": -status}
        return {**ended, "log": last_lines(self.log_file)}

    def _sweep(self, last: int) -> None:
        """Remove what a `kill -9` left half-written under this job's tokens up to `last`. Whoever still writes there is
        fenced already; on other storages than a folder a file appears whole or not at all.
        """
        folder = Path(self.settings.artifacts) / str(self.id)
        if "://" in self.settings.artifacts or not folder.is_dir():
            return
        for token in folder.iterdir():
            if token.name.isdigit() and int(token.name) <= last:
                for temporary in token.rglob(".*"):
                    with contextlib.suppress(OSError):
                        temporary.unlink()

    def clean_up(self) -> None:
        """Remove what only this attempt needed."""
        self._sweep(self.fence)
        self.child.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # other attempts of the job may still be there
            self.scratch.parent.rmdir()


def describe_status(status: int | None) -> str:
    """`exit code 3` or `signal 9 (SIGKILL)`."""
    if status is None:
        return "unknown"
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"signal {-status}"


def last_lines(path: Path, count: int = LOG_LINES, most_bytes: int = 64_000) -> list[str]:
    """The last lines of a log, bounded in number and size."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - most_bytes))
            return file.read().decode("utf-8", "replace").replace("\x00", "\ufffd").splitlines()[-count:]
    except OSError:
        return []


def count_oom_kills() -> int:
    """How many processes the kernel has ended for memory in our control group (v1 or v2); 0 where it does not say."""
    total = 0
    for path in _memory_events():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total


def _memory_events() -> list[Path]:
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in groups:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            found.append(CGROUP / place.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found += [CGROUP / "memory" / part / "memory.oom_control" for part in (place.lstrip("/"), "")]
    return [path for path in found if path.exists()][:1]


def previous_cause(store: Store, claim: Claim) -> str | None:
    """Why the attempt before this one ended, if there was one."""
    if claim.job.attempt <= 1 and claim.losses == 0:
        return None
    with store.read() as connection:
        return last_cause(connection, claim.job.id)


def summary(attempt: Attempt, state: str) -> Mapping[str, Any]:
    """Fields for the log line at an attempt's end."""
    return {
        "job": str(attempt.id),
        "attempt": attempt.claim.job.attempt,
        "kind": attempt.claim.job.kind,
        "state": state,
        "seconds": round(time.monotonic() - attempt.began, 3),
    }
