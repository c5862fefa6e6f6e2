"""The thread that keeps a supervisor's promises to the store: leases renewed, cancel flags seen, dead workers' jobs
taken back. It never computes, so a step that holds the interpreter's lock in a child cannot starve it.

All deadlines are the database's (`lease_until`), all waiting here is by this machine's monotonic clock; the two are
never compared.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal
from uuid import UUID

import structlog

from backend.domain.errors import StoreUnavailable
from backend.settings import Settings
from backend.store import jobs, workers
from backend.store.job_retries import RetryPolicy
from backend.store.session import Store
from workers.lifecycle import Backoff

log = structlog.get_logger()

LOOK_S = 1.0
ANNOUNCE_S = 15.0
Notice = tuple[UUID, int, Literal["lost", "cancel"]]


class Keeper:
    """Renews the leases of the attempts it was given, and reports on them through `notices`.

    `wake` is called when there is a notice, from this thread. `announcement` (name, host, pid, queues, ...) is the
    supervisor's row among the workers, refreshed while it lives.
    """

    def __init__(
        self, settings: Settings, store: Store, wake: Callable[[], None], announcement: Mapping[str, Any] | None = None
    ) -> None:
        self.settings, self.store, self.wake = settings, store, wake
        self.announcement = announcement
        self._announced_at: float | None = None
        self.notices: deque[Notice] = deque()
        self.reachable_since: float | None = None
        self.failure: Exception | None = None
        self._held: dict[tuple[UUID, int], float] = {}
        self._told: set[Notice] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._reaped_at = time.monotonic()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)

    def hold(self, job_id: UUID, fence: int) -> None:
        """Renew this lease from now on; it was just given."""
        with self._lock:
            self._held[job_id, fence] = time.monotonic()

    def drop(self, job_id: UUID, fence: int) -> None:
        """This attempt is over."""
        with self._lock:
            self._held.pop((job_id, fence), None)
            self._told = {notice for notice in self._told if notice[:2] != (job_id, fence)}

    def _run(self) -> None:
        away = Backoff(most_s=min(5.0, self.settings.heartbeat_s))
        pause = min(LOOK_S, self.settings.heartbeat_s)
        while not self._stop.is_set():
            try:
                self._look()
                if self.reachable_since is None:
                    self.reachable_since = time.monotonic()
                if away.since is not None:
                    log.info("the store is back", away_s=round(away.down_s, 1))
                away.worked()
                wait = pause
            except StoreUnavailable as error:
                if away.since is None:
                    log.warning("the store is away", error=error.message)
                self.reachable_since = None
                wait = away.failed()
            except Exception as error:  # the rim of this thread: a supervisor must not outlive its heart unnoticed
                self.failure = error
                self.wake()
                return
            self._stop.wait(wait)
        with contextlib.suppress(StoreUnavailable):
            if self._announced_at is not None and self.announcement is not None:
                with self.store.write() as connection:
                    workers.leave(connection, self.announcement["name"])

    def _look(self) -> None:
        """One round: beat what is due, look at the rest, reap."""
        now = time.monotonic()
        self._announce(now)
        with self._lock:
            held = dict(self._held)
        due = [one for one, beaten in held.items() if now - beaten >= self.settings.heartbeat_s]
        if due:
            with self.store.write() as connection:
                beats = {
                    (job_id, fence): jobs.heartbeat(connection, job_id, fence, self.settings.lease_s)
                    for job_id, fence in sorted(due)
                }
            with self._lock:
                for one, beat in beats.items():
                    if beat is not None and one in self._held:
                        self._held[one] = now
            for one, beat in beats.items():
                if beat is None:
                    self._tell((*one, "lost"))
                elif beat.cancel_requested:
                    self._tell((*one, "cancel"))
        others = [one for one in held if one not in due]
        with self.store.read() as connection:
            # With nothing to look at this still asks whether the database is there, for the reaper's guard.
            standings = {one: jobs.standing(connection, *one) for one in others}
            if not others:
                connection.exec_driver_sql("SELECT 1")
        for one, standing in standings.items():
            if standing is None:
                self._tell((*one, "lost"))
            elif standing == "cancelling":
                self._tell((*one, "cancel"))
        if now - self._reaped_at >= self.settings.reaper_s:
            self._reaped_at = now
            self._reap(now)

    def _announce(self, now: float) -> None:
        if self.announcement is None:
            return
        if self._announced_at is None or now - self._announced_at >= max(ANNOUNCE_S, self.settings.heartbeat_s):
            with self.store.write() as connection:
                workers.announce(connection, **self.announcement)
            self._announced_at = now

    def _reap(self, now: float) -> None:
        if self.reachable_since is None:
            return
        with self.store.write() as connection:
            reaped = jobs.reap(
                connection,
                retry=RetryPolicy.of(self.settings),
                guard_s=self.settings.reaper_guard_s,
                reachable_s=now - self.reachable_since,
            )
        for job_id in reaped:
            log.warning("took back a job whose worker is silent", job=str(job_id))
        if reaped:
            self.wake()

    def _tell(self, notice: Notice) -> None:
        with self._lock:
            if notice in self._told or notice[:2] not in self._held:
                return
            self._told.add(notice)
        self.notices.append(notice)
        self.wake()
