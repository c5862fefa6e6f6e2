"""A running attempt as its task sees it: report, keep, checkpoint, stop when asked, publish once.

    def run(job: RunningJob) -> dict:
        state = job.resume_state()
        job.checkpoint_with(trainer.state)
        for progress in fit(..., state):
            job.record(progress)            # the step boundary: reports, checkpoints, and where Cancelled is raised
        job.on_publish(lambda connection: catalog.add_model(connection, student))
        return report                       # the runner publishes files, result and `succeeded` in one transaction

Everything durable carries the attempt's fencing token. While the store is away, metrics go to a synced file beside the
job (`Spool`) and computing goes on; others need the store to claim, so nobody else can take the job meanwhile.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection

from backend.domain.errors import BadInput, CancelRequested, LostLease, StoreUnavailable
from backend.domain.progress import Progress
from backend.domain.records import Record, canonical_json, content_hash
from backend.domain.specs import dump_spec
from backend.settings import Settings
from backend.store import artifacts, jobs
from backend.store.job_records import Checkpoint, FileRecord
from backend.store.session import Store
from workers.processes import CANCEL, DRAIN

log = structlog.get_logger()

FLUSH_S = 0.5
REPORT_S = 0.2
BATCH = 500
Event = tuple[str, dict[str, Any]]


class Cancelled(Exception):
    """Somebody asked for the end; the last checkpoint stands."""


class Drained(Exception):
    """The worker is going away; the job goes on elsewhere from its checkpoint."""


class StopFlags:
    """What the supervisor has asked for, by signal; looked at on step boundaries only."""

    def __init__(self) -> None:
        self.cancel = self.drain = False

    def listen(self) -> None:
        def on_cancel(*_: Any) -> None:
            self.cancel = True

        def on_drain(*_: Any) -> None:
            self.drain = True

        signal.signal(CANCEL, on_cancel)
        signal.signal(DRAIN, on_drain)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {CANCEL, DRAIN})


class Backoff:
    """Pauses from 0.1 s doubling to 30 s, each shortened by chance so that waiting processes do not march in step."""

    def __init__(self, first_s: float = 0.1, most_s: float = 30.0) -> None:
        self.first_s, self.most_s = first_s, most_s
        self.since: float | None = None
        self._next = first_s

    def failed(self) -> float:
        """Seconds to wait now; the clock of the outage starts with the first call."""
        if self.since is None:
            self.since = time.monotonic()
        pause = self._next * random.uniform(0.5, 1.0)
        self._next = min(self.most_s, self._next * 2)
        return pause

    def worked(self) -> None:
        self.since, self._next = None, self.first_s

    @property
    def down_s(self) -> float:
        return 0.0 if self.since is None else time.monotonic() - self.since


class Spool:
    """Events that wait for the store, one JSON line each, synced: a job that dies meanwhile does not lose them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, events: list[Event]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Event]:
        """What waits; a last line that was cut off by a crash is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        return [(kind, data) for kind, data in (json.loads(line) for line in lines[:-1])]

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


@dataclass
class RunningJob:
    """One attempt. Made by the runner; a task gets it as its only argument."""

    id: UUID
    kind: str
    spec: Any
    settings: Settings
    store: Store
    fence: int
    attempt: int
    device: str
    scratch: Path
    checkpoints: tuple[Checkpoint, ...] = ()
    spare_loaders: bool = True
    stop: StopFlags = field(default_factory=StopFlags)
    report: Callable[[Mapping[str, Any]], Any] = lambda message: None
    ranks: Any = None
    """The processes that train together (`workers.science.ranks.Ranks`); None: this one alone."""

    def __post_init__(self) -> None:
        now = time.monotonic()
        self._provider: Callable[[], Any] | None = None
        self._on_publish: list[Callable[[Connection], Any]] = []
        self._files: list[FileRecord] = []
        self._pending: list[Event] = []
        self._progress: Progress | None = None
        self._spool = Spool(self.scratch / "spool.jsonl")
        self._spooled = 0
        self._away = Backoff()
        self._flush_at = now + FLUSH_S
        self._reported_at = 0.0
        self._kept_at, self._kept_step, self._keeping_s = now, 0, 0.0
        self._last_step = self.checkpoints[0].step if self.checkpoints else 0
        self._pointer: Checkpoint | None = None

    # --- at every step ---------------------------------------------------------------------------------------------

    def record(self, progress: Progress) -> None:
        """A step is done. Call it at every step boundary; what is written is throttled.

        Raises:
            Cancelled, Drained: The job should stop now; its checkpoint has been written.
            LostLease: The attempt is no longer its own.
        """
        now = time.monotonic()
        self._last_step = progress.step
        self._progress = progress
        if now - self._reported_at >= REPORT_S or progress.step == progress.total:
            self._reported_at = now
            self.report({"step": progress.step, "total": progress.total})
        values = {name: value for name, value in progress.metrics.items() if math.isfinite(value)}
        if values:
            epoch = {} if progress.epoch is None else {"epoch": progress.epoch}
            self._pending.append(("metric", {"step": progress.step, "values": values, **epoch}))
        if progress.message:
            self.log(progress.message)
        if now >= self._flush_at:
            self.flush()
        if self._provider is not None and self._due(now):
            self.checkpoint(self._provider(), progress.step)
        self.check()

    def check(self) -> None:
        """Stop here if somebody asked; for long stretches without steps.

        Raises:
            Cancelled, Drained: As in `record`.
        """
        if not (self.stop.cancel or self.stop.drain):
            return
        if self._provider is not None and self._last_step > self._kept_step:
            self.checkpoint(self._provider(), self._last_step)
        self.flush(patient=False)
        raise Cancelled if self.stop.cancel else Drained

    def log(self, text: str) -> None:
        """A line for people: in the job's events, and in the log."""
        log.info(text)
        self._pending.append(("log", {"message": text}))

    def flush(self, *, patient: bool = True) -> None:
        """Write what has gathered. While the store is away it goes to the spool instead.

        Raises:
            LostLease: The attempt is no longer its own.
            StoreUnavailable: The store has been away longer than `store_patience_s`.
        """
        self._flush_at = time.monotonic() + FLUSH_S
        progress, events = self._gathered()
        if not events and not self._spooled and self._pointer is None:
            return
        try:
            with self.store.write() as connection:
                if self._pointer is not None:
                    self._dropped = jobs.point_to_checkpoint(connection, self.id, self.fence, self._pointer)
                waiting = self._spool.read() if self._spooled else []
                replay(connection, self.id, self.fence, self.attempt, waiting + events, resent=len(waiting))
                if progress is not None:
                    jobs.record_progress(connection, self.id, self.fence, progress.step, progress.total)
        except StoreUnavailable as error:
            self._keep(events, error, patient=patient)
            return
        except LostLease:
            if self.settings.guard("loss_signal"):
                raise
            log.warning("a write of a lost attempt was refused")
            return
        if self._pointer is not None:
            self._pointer = None
            self._forget(self._dropped)
        if self._spooled:
            self._spool.clear()
            log.info("the store is back", buffered=self._spooled, away_s=round(self._away.down_s, 1))
        self._spooled = 0
        self._away.worked()

    def _gathered(self) -> tuple[Progress | None, list[Event]]:
        """What waits to be written, and is now the caller's to write."""
        progress, events = self._progress, self._pending
        if progress is not None:
            shown = {"step": progress.step, "total": progress.total, "unit": progress.unit}
            events = [*events, ("progress", shown)]
        self._pending, self._progress = [], None
        return progress, events

    def _keep(self, events: list[Event], error: StoreUnavailable, *, patient: bool) -> None:
        if not self._spooled:
            log.warning("the store is away; metrics are kept beside the job", error=error.message)
        self._spool.append(events)
        self._spooled += len(events)
        self._flush_at = time.monotonic() + self._away.failed()
        if patient and self._away.down_s > self.settings.store_patience_s:
            raise error

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def checkpoint_with(self, provider: Callable[[], Any]) -> None:
        """Let `record` keep checkpoints by itself: every so many steps or seconds, and before stopping.

        `provider` gives the nested state between two steps (see `workers.inputs.checkpoints.save_state`; a state
        without tensors is written as JSON, and needs no torch).
        """
        self._provider = provider

    def checkpoint(self, state: Any, step: int) -> None:
        """Keep `state` as what this job goes on from, should it have to; the last two are kept.

        Raises:
            NonFiniteState: The state holds NaN; the checkpoint before it stands.
            LostLease: The attempt is no longer its own.
        """
        began = time.monotonic()
        header = {"spec": self._spec_hash(), "step": str(step)}
        if _is_plain(state):
            data = canonical_json({**header, "state": state}).encode()
            uri, _, sha256 = artifacts.put(self.settings.artifacts, self._place(f"checkpoint-{step:09d}.json"), data)
        else:
            from workers.inputs.checkpoints import save_state

            name = f"checkpoint-{step:09d}.safetensors"
            saved = save_state(self.scratch / name, state, metadata=header)
            try:
                uri, _, sha256 = artifacts.put(self.settings.artifacts, self._place(name), saved.path)
            finally:
                saved.path.unlink(missing_ok=True)
        self._pointer = Checkpoint(uri, sha256, step)
        self.flush()
        self._kept_at, self._kept_step = time.monotonic(), step
        self._keeping_s = self._kept_at - began

    def resume_state(self) -> Any | None:
        """The newest state that is whole and belongs to this job's spec, or None: then the job starts anew."""
        for pointer in self.checkpoints:
            try:
                state = self._load(pointer)
            except (BadInput, OSError, ValueError) as error:
                self.log(f"checkpoint of step {pointer.step} cannot be used: {error}")
                continue
            self.log(f"goes on from step {pointer.step}")
            self._kept_step = self._last_step = pointer.step
            return state
        if self.checkpoints:
            self.log("no usable checkpoint; starts anew")
        self._last_step = 0
        return None

    def _load(self, pointer: Checkpoint) -> Any:
        sha256 = pointer.sha256 if self.settings.guard("checksum") else None
        path = artifacts.fetch(pointer.uri, sha256)
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            state, spec = content.get("state"), content.get("spec")
        else:
            from workers.inputs.checkpoints import load_state, read_metadata

            state, spec = load_state(path), read_metadata(path).get("spec")
        if spec != self._spec_hash():
            raise BadInput("checkpoint", pointer.uri, "a checkpoint of the same spec")
        return state

    def _due(self, now: float) -> bool:
        since_s = now - self._kept_at
        enough = since_s >= self.settings.checkpoint_s
        enough |= self._last_step - self._kept_step >= self.settings.checkpoint_steps
        return enough and self._last_step > self._kept_step and since_s >= 20 * self._keeping_s

    def _forget(self, dropped: tuple[Checkpoint, ...]) -> None:
        for one in dropped:
            try:
                artifacts.remove(one.uri)
            except OSError as error:
                log.warning("an old checkpoint stays", uri=one.uri, error=str(error))

    def _spec_hash(self) -> str:
        spec = dump_spec(self.spec) if isinstance(self.spec, Record) else dict(self.spec)
        return content_hash(self.kind, {name: value for name, value in spec.items() if name != "device"})

    # --- results ---------------------------------------------------------------------------------------------------

    def attach(self, name: str, content: Path | str | bytes, media_type: str = "application/octet-stream") -> str:
        """Store a file under this attempt; its row is published with the result. Returns its URI."""
        stored = content if isinstance(content, bytes) else Path(content)
        uri, size, sha256 = artifacts.put(self.settings.artifacts, self._place(name), stored)
        self._files = [file for file in self._files if file.name != name]
        self._files.append(FileRecord(name, uri, size, sha256, media_type))
        return uri

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that holds this attempt's token: whatever is written in it is fenced.

        Raises:
            LostLease: The attempt is no longer its own; nothing is written.
        """
        with self._connected() as connection:
            jobs.hold(connection, self.id, self.fence)
            yield connection

    def on_publish(self, write: Callable[[Connection], Any]) -> None:
        """Run `write(connection)` inside the transaction that publishes the result (again, should that be retried)."""
        self._on_publish.append(write)

    def publish(self, result: Mapping[str, Any]) -> None:
        """Artifact rows, the result and `succeeded`, in one transaction; waits for the store while that is away.

        Raises:
            Cancelled: The job was cancelled before this could be committed.
            LostLease: The attempt is no longer its own.
        """
        json.dumps(result, allow_nan=False)
        progress, events = self._gathered()
        while True:
            try:
                with self.store.write() as connection:
                    if not self._published(connection):
                        self._publish(connection, result, progress, events)
                return
            except CancelRequested as error:
                raise Cancelled from error
            except StoreUnavailable as error:
                self._spool.append(events)
                self._spooled += len(events)
                events = []
                self._wait_or_raise(error)

    def _publish(
        self, connection: Connection, result: Mapping[str, Any], progress: Progress | None, events: list[Event]
    ) -> None:
        jobs.hold(connection, self.id, self.fence)
        waiting = self._spool.read() if self._spooled else []
        replay(connection, self.id, self.fence, self.attempt, waiting + events, resent=len(waiting))
        if progress is not None:
            jobs.record_progress(connection, self.id, self.fence, progress.step, progress.total)
        for write in self._on_publish:
            write(connection)
        jobs.succeed(connection, self.id, self.fence, result, self._files)

    def _published(self, connection: Connection) -> bool:
        """Whether this very attempt has been published already: its commit went through, the answer got lost."""
        return self._away.since is not None and jobs.get(connection, self.id).state == "succeeded"

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Wait for the store to come back before the transaction; what breaks inside it is the caller's to see."""
        while True:
            transaction = self.store.write()
            try:
                connection = transaction.__enter__()
                break
            except StoreUnavailable as error:
                self._wait_or_raise(error)
        self._away.worked()
        try:
            yield connection
        except BaseException as error:
            if not transaction.__exit__(type(error), error, error.__traceback__):
                raise
        else:
            transaction.__exit__(None, None, None)

    def _wait_or_raise(self, error: StoreUnavailable) -> None:
        pause = self._away.failed()
        if self._away.down_s > self.settings.store_patience_s or self.stop.cancel or self.stop.drain:
            raise error
        self.report({"waiting": "store"})
        time.sleep(pause)

    # --- what the attempt may use ----------------------------------------------------------------------------------

    def loaders(self, wanted: int) -> int:
        """How many loader processes to start: as many as wanted, none after an attempt ran out of memory."""
        if wanted and not self.spare_loaders:
            self.log("the attempt before ran out of memory; decoding in this process")
        return wanted if self.spare_loaders else 0

    def _place(self, name: str) -> str:
        return f"{self.id}/{self.fence}/{name}"


def _is_plain(state: Any) -> bool:
    """Whether JSON holds a state exactly."""
    if isinstance(state, dict):
        return all(isinstance(key, str) and _is_plain(value) for key, value in state.items())
    if isinstance(state, list):
        return all(_is_plain(value) for value in state)
    if isinstance(state, float):
        return math.isfinite(state)
    return state is None or type(state) in (bool, int, str)


def replay(
    connection: Connection, job_id: UUID, fence: int, attempt: int, events: list[Event], *, resent: int = 0
) -> None:
    """Append reported events, fenced; of several progress reports only the last is worth a row.

    The first `resent` were sent before, and may be stored although the store did not say so.
    """
    events = jobs.unsent(connection, job_id, fence, events, resent) if resent else events
    last = max((at for at, (kind, _) in enumerate(events) if kind == "progress"), default=-1)
    kept: list[Any] = [event for at, event in enumerate(events) if event[0] != "progress" or at == last]
    for start in range(0, max(len(kept), 1), BATCH):
        jobs.add_events(connection, job_id, fence, attempt, kept[start : start + BATCH])
