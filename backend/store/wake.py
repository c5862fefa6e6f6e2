"""Waiting for work without asking all the time: Postgres tells (LISTEN), SQLite is looked at again.

The trigger `jobs_wake` notifies on commit of every change that may make a job claimable or stop one.
"""

from __future__ import annotations

import time
from contextlib import suppress

import psycopg

from backend.store.session import CONNECT_TIMEOUT_S, Store

CHANNEL = "zoograft_jobs"


class Wake:
    """One listener; belongs to one thread. A missed notification costs only the rest of the wait."""

    def __init__(self, store: Store, *, poll_s: float = 0.5) -> None:
        self._store, self._poll_s = store, poll_s
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def wait(self, timeout_s: float) -> bool:
        """Until something may have changed, or the time is over; True when it is worth looking at once.

        SQLite: sleeps `poll_s` (or less), and it is always worth looking. Postgres away: as SQLite.
        """
        if timeout_s <= 0:
            return True
        if self._store.dialect != "postgresql":
            time.sleep(min(timeout_s, self._poll_s))
            return True
        try:
            if self._connection is None:
                self._listen()
                return True  # what came before we listened was not heard
            return any(True for _ in self._connection.notifies(timeout=timeout_s, stop_after=1))
        except psycopg.Error:
            self.close()
            time.sleep(min(timeout_s, self._poll_s))
            return True

    def close(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def _listen(self) -> None:
        url = self._store.url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="zoograft-wake",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        connection.execute(f"LISTEN {CHANNEL}")
        self._connection = connection


def wait_for_wake(store: Store, timeout_s: float, *, poll_s: float = 0.5) -> bool:
    """As `Wake.wait`, once: for those who wait rarely."""
    wake = Wake(store, poll_s=poll_s)
    try:
        wake.wait(timeout_s)  # starts to listen
        return wake.wait(timeout_s) if store.dialect == "postgresql" else True
    finally:
        wake.close()
