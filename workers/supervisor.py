"""The supervisor: takes jobs from the store, runs each in a process of its own, and answers for how it ends.

    python -m workers.supervisor                  work the queues until told to stop (SIGTERM drains)
    python -m workers.supervisor --job ID         attach: work this job, what it waits for, or a study's children; exit
                                                  0 when it succeeded, 1 when it did not
    python -m workers.supervisor --once           work one job if there is one

`zoograft worker` starts this (or `python -m workers.app` where a broker is set), `zoograft up` starts one beside the
web process, and a foreground command starts one with `--job`. It never imports torch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from uuid import UUID

import structlog
from sqlalchemy import Connection

from backend import logs
from backend.domain.errors import BadInput, StoreUnavailable, ZoograftError
from backend.domain.jobs import TERMINAL, Job, JobState
from backend.settings import Settings
from backend.store import jobs, migrate
from backend.store.artifacts import least_room
from backend.store.queries.attempts import stranded, to_work
from backend.store.session import Store
from workers.attempts import Attempt, previous_cause, summary
from workers.devices import GPU, find_gpus
from workers.keeper import ANNOUNCE_S, Keeper
from workers.lifecycle import Backoff
from workers.slots import Nursery, Slot, make_slots, slots_for
from workers.wakeup import Doorbell

log = structlog.get_logger()

WARM_AFTER_S = 2.0
LOOK_AHEAD = 50
WAIT = "wait"
QUEUES = ("gpu", "cpu")


class Supervisor:
    """One process that works jobs. `draining()` is asked on every turn and stops it when it turns true."""

    def __init__(
        self,
        settings: Settings,
        *,
        queues: Sequence[str] = QUEUES,
        gpus: Sequence[GPU] = (),
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings, self.draining = settings, draining
        self.host = socket.gethostname()
        self.name = f"{self.host}:{os.getpid()}"
        self.store = Store.open(settings.database, settings=settings)
        self.doorbell = Doorbell(self.store)
        self.nursery = Nursery(settings)
        self.slots = make_slots(queues, gpus, settings.cpu_slots)
        announcement = {
            "name": self.name,
            "host": self.host,
            "pid": os.getpid(),
            "queues": list(queues),
            "devices": [asdict(gpu) for gpu in gpus],
            "versions": {"zoograft": version("zoograft"), "python": platform.python_version()},
        }
        self.keeper = Keeper(settings, self.store, self.doorbell.ring, announcement)
        self._ended: list[tuple[Slot, Attempt]] = []
        self._away = Backoff(most_s=5.0)
        self._births = Backoff(0.5, 60.0)
        self._try_at = 0.0
        self._idle_since = time.monotonic()
        self._drain_since: float | None = None
        self._told_full = False
        self._tell_at = time.monotonic() + WARM_AFTER_S
        self._stranded = 0

    # --- the three ways to work ------------------------------------------------------------------------------------

    def serve(self, *, once: bool = False) -> int:
        """Work the queues until drained; with `once`, one job at most."""
        taken = False
        with self:
            while not self._drained():
                if once and (taken or not self._claim_next()):
                    if not self._busy():
                        break
                elif not once:
                    self._claim_next()
                taken = taken or self._busy()
                self._turn()
        return 0

    def attach(self, job_id: UUID) -> int:
        """Work a job and what it needs until it has ended; 0 when it succeeded."""
        with self:
            while not self._drained():
                state, wanted = self._standing_of(job_id)
                if state in TERMINAL and not self._busy():
                    return 0 if state is JobState.SUCCEEDED else 1
                for one in wanted:
                    if self._claim_next(one):
                        break
                self._turn()
        return 1

    def work(self, job_id: UUID) -> None:
        """Work one job if it can be claimed now; what a message of the broker asks for."""
        if not self.draining() and self._claim_next(job_id):
            while self._busy():
                self._turn()

    # --- one turn --------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Hear what happened, do what it asks for, and wait for more."""
        self._warm_if_idle()
        self._wait()
        if self.keeper.failure is not None:
            raise self.keeper.failure
        self.nursery.poll()
        self._take_notices()
        for slot in self.slots:
            if slot.attempt is not None:
                self._attend(slot, slot.attempt)
        self._conclude()

    def _wait(self) -> None:
        channels: list[int] = [*self.nursery.channels(), self.doorbell.fileno()]
        open_channels = [slot.attempt.child.channel for slot in self.slots if slot.attempt is not None]
        channels += [channel.fileno() for channel in open_channels if not channel.closed]
        # A doomed process is killed again until it is gone: its number may arrive after the order to end it.
        pressing = any(slot.attempt and slot.attempt.doom for slot in self.slots)
        timeout_s = 0.02 if pressing else min(0.2, self.settings.poll_s) if self._busy() else self.settings.poll_s
        # Interpreters started by us (GPU) die without a message; a busy turn is short enough to notice.
        select.select(channels, [], [], timeout_s)
        self.doorbell.clear()

    def _take_notices(self) -> None:
        while self.keeper.notices:
            job_id, fence, what = self.keeper.notices.popleft()
            for slot in self.slots:
                attempt = slot.attempt
                if attempt is None or (attempt.id, attempt.fence) != (job_id, fence):
                    continue
                if what == "cancel":
                    attempt.cancel_at = attempt.cancel_at or time.monotonic()
                elif self.settings.guard("loss_signal"):
                    log.warning("lost the lease; ending the process", job=str(job_id))
                    attempt.end("lost")

    def _attend(self, slot: Slot, attempt: Attempt) -> None:
        attempt.listen()
        if attempt.child.exited():
            attempt.listen()
            slot.attempt = None
            self._ended.append((slot, attempt))
            return
        if self.draining():
            attempt.drain_at = attempt.drain_at or time.monotonic()
        attempt.press()

    def _conclude(self) -> None:
        if time.monotonic() < self._try_at:
            return
        while self._ended:
            slot, attempt = self._ended[0]
            try:
                state = attempt.conclude(self.store)
            except StoreUnavailable as error:
                self._store_away(error)
                return
            self._ended.pop(0)
            self.keeper.drop(attempt.id, attempt.fence)
            slot.free()
            attempt.clean_up()
            self._store_back()
            self._idle_since = time.monotonic()
            log.info("attempt ended", **summary(attempt, state))
            if attempt.stillborn:
                self._try_at = time.monotonic() + self._births.failed()
                log.error("a job's process did not start; is this installation whole?", status=attempt.child.status)
            else:
                self._births.worked()

    # --- claiming --------------------------------------------------------------------------------------------------

    def _claim_next(self, job_id: UUID | None = None) -> bool:
        """Claim one job for one free slot and start it; False when there is none, or none may be taken now."""
        if self.draining() or time.monotonic() < self._try_at or self._disk_full():
            return False
        for slot in self.slots:
            if not slot.idle or any(ended is slot or slot in ended.others for ended, _ in self._ended):
                continue
            try:
                if self._claim_for(slot, job_id):
                    return True
            except StoreUnavailable as error:
                self._store_away(error)
                return False
        return False

    def _claim_for(self, slot: Slot, job_id: UUID | None) -> bool:
        # On one machine of its own there is nobody else to wait for: a job that insists on CUDA then fails and says so.
        alone = job_id is not None and self.settings.embedded and not self._gpus()
        # A look costs no lock; only a claim that may succeed takes the writers' place.
        with self.store.read() as connection:
            waiting = jobs.claimable(connection, LOOK_AHEAD, cuda=alone or bool(self._gpus()))
            self._tell_of_stranded(connection)
            several = jobs.wanting_several(connection) if slot.gpu is not None else []
        self._store_back()
        promising = len(waiting) == LOOK_AHEAD or any(queue in slot.queues for _, queue in waiting)
        if not promising:
            return False
        first = next((id for id, queue in waiting if queue == "gpu"), None)
        whole = self._several_for(slot, several, first=first, only=job_id)
        if whole is WAIT or not slot.seize(self.settings.guard("gpu_lock")):
            return False
        with self.store.write() as connection:
            claim = jobs.claim(
                connection,
                worker=self.name,
                host=self.host,
                lease_s=self.settings.lease_s,
                queues=slot.queues,
                cuda=alone or slot.gpu is not None,
                gpu=None if slot.gpu is None else slot.gpu.index,
                several=whole is not None,
                job_id=whole or job_id,
            )
        if claim is None:
            slot.free()
            return False
        self.keeper.hold(claim.job.id, claim.fence)
        child = self.nursery.child_for(slot, claim.job.kind)
        slot.attempt = Attempt(claim, child, self.settings, slot.device, 1 + len(slot.others))
        try:
            last = previous_cause(self.store, claim)
        except StoreUnavailable:
            last = None
        slot.attempt.hand_over(last)
        log.info("claimed", job=str(claim.job.id), kind=claim.job.kind, attempt=claim.job.attempt, device=slot.device)
        return True

    def _tell_of_stranded(self, connection: Connection) -> None:
        """Say, when their number changes, how many jobs ask for a device that no worker has."""
        if time.monotonic() < self._tell_at:
            return
        self._tell_at = time.monotonic() + ANNOUNCE_S
        waiting, before = stranded(connection), self._stranded
        self._stranded = waiting
        if waiting > before:
            log.warning("jobs ask for a CUDA device that no worker at work has; they wait", jobs=waiting)

    def _several_for(
        self, slot: Slot, asking: Sequence[tuple[UUID, str]], *, first: UUID | None, only: UUID | None
    ) -> UUID | str | None:
        """The job of several GPUs that this slot should take now, its other GPUs held; WAIT where the slot is kept free
        for the first job in line; None where there is nothing of the kind.
        """
        for job_id, device in asking:
            if only not in (None, job_id):
                continue
            members = slots_for(device, self.slots)
            if not members and only == job_id:
                return job_id  # claimed all the same: it ends with a message that says what is missing
            if slot not in members:
                continue
            if slot is members[0] and slot.seize_with(members[1:], self.settings.guard("gpu_lock")):
                return job_id
            if job_id == first:
                return WAIT
        return None

    def _gpus(self) -> list[GPU]:
        return [slot.gpu for slot in self.slots if slot.gpu is not None]

    def _standing_of(self, job_id: UUID) -> tuple[JobState | None, list[UUID]]:
        if time.monotonic() < self._try_at:
            return None, []
        try:
            with self.store.read() as connection:
                job: Job = jobs.get(connection, job_id)
                wanted = to_work(connection, job_id) if any(slot.idle for slot in self.slots) else []
        except StoreUnavailable as error:
            self._store_away(error)
            return None, []
        return job.state, wanted

    def _disk_full(self) -> bool:
        """Whether too little room is left to promise a job its checkpoints."""
        if not self.settings.guard("disk"):
            return False
        free, folder = least_room(self.settings.data_dir, self.settings.artifacts)
        full = free < self.settings.min_free_bytes
        if full and not self._told_full:
            log.error("too little disk; no new jobs are taken", free_bytes=free, folder=str(folder))
        self._told_full = full
        return full

    # --- around ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Supervisor:
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.keeper.start()
        self.doorbell.start()
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.slots:
            if slot.attempt is not None:
                slot.attempt.end("drained")
        self.nursery.stop(self.slots)
        self.keeper.stop()
        self.doorbell.stop()
        self.store.close()

    def _busy(self) -> bool:
        return bool(self._ended) or any(slot.attempt is not None for slot in self.slots)

    def _drained(self) -> bool:
        """Whether to leave: told to, and nothing is left to do, or no time to do it (the lease then runs out)."""
        if not self.draining():
            return False
        self._drain_since = self._drain_since or time.monotonic()
        return not self._busy() or time.monotonic() - self._drain_since > 0.9 * self.settings.drain_s

    def _warm_if_idle(self) -> None:
        idle = not self._busy() and time.monotonic() - self._idle_since > WARM_AFTER_S
        if self.settings.warm and idle and not self.draining():
            self.nursery.warm(self.slots)

    def _store_away(self, error: StoreUnavailable) -> None:
        if self._away.since is None:
            log.warning("the store is away; trying again", error=error.message)
        self._try_at = time.monotonic() + self._away.failed()

    def _store_back(self) -> None:
        self._away.worked()
        self._try_at = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m workers.supervisor", description="Work Zoograft's jobs.")
    parser.add_argument("--job", type=UUID, help="work this job (or study) to its end")
    parser.add_argument("--queues", default="gpu,cpu", help="which queues to work, by commas (default: gpu,cpu)")
    parser.add_argument("--once", action="store_true", help="work one job at most")
    options = parser.parse_args(arguments)
    settings = Settings()
    logs.configure(settings)
    queues = tuple(part.strip() for part in options.queues.split(",") if part.strip())
    draining = drain_on_sigterm(attached=options.job is not None)
    try:
        if not queues or set(queues) - set(QUEUES):
            raise BadInput("queues", options.queues, "gpu, cpu or both, by a comma")
        prepare(settings)
        gpus = find_gpus() if "gpu" in queues else []
        supervisor = Supervisor(settings, queues=queues, gpus=gpus, draining=draining)
        return supervisor.attach(options.job) if options.job else supervisor.serve(once=options.once)
    except BadInput as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    except ZoograftError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1


def prepare(settings: Settings, *, patience_s: float | None = None) -> None:
    """Have a store to work with: migrate our own SQLite file, wait for a shared one to be there and at head.

    Raises:
        StoreUnavailable: It is still away after `patience_s` (default: `store_patience_s`), or needs migrating.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if settings.embedded:
        migrate.upgrade(settings.database)
        return
    away = Backoff()
    store = Store.open(settings.database, settings=settings)
    with contextlib.closing(store):
        while True:
            try:
                migrate.require_head(store)
                return
            except StoreUnavailable as error:
                pause = away.failed()
                if away.down_s > (settings.store_patience_s if patience_s is None else patience_s):
                    raise
                log.warning("waiting for the store", error=error.message)
                time.sleep(pause)


def drain_on_sigterm(*, attached: bool = False) -> Callable[[], bool]:
    """Install the handlers; the function says whether to drain. An attached supervisor leaves Ctrl-C to the command
    that started it, which cancels the job.
    """
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN if attached else lambda number, _: asked.append(number))
    return lambda: bool(asked)


if __name__ == "__main__":
    sys.exit(main())
