"""What ends a supervisor's wait early: its own threads, and on Postgres the NOTIFY of whoever queued a job.

Losing a wake-up costs one poll interval, never a job.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import psycopg
import structlog

from backend.settings import Settings
from backend.store.session import Store
from workers.lifecycle import Backoff

log = structlog.get_logger()

CHANNEL = "zoograft_jobs"


class Doorbell:
    """A pipe to select on. On Postgres a thread listens on `CHANNEL` and rings it."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def fileno(self) -> int:
        return self._read

    def ring(self) -> None:
        """From any thread or signal handler."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._write, b".")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def start(self) -> None:
        if self.store.dialect == "postgresql":
            self._thread = threading.Thread(target=self._listen, name="listen", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _listen(self) -> None:
        away = Backoff(most_s=5.0)
        while not self._stop.is_set():
            try:
                with psycopg.connect(**self._address(), autocommit=True, connect_timeout=5) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    away.worked()
                    while not self._stop.is_set():
                        for _ in connection.notifies(timeout=1.0, stop_after=1):
                            self.ring()
            except psycopg.Error:
                # Polling goes on meanwhile; the keeper is the one who says that the store is away.
                self._stop.wait(away.failed())

    def _address(self) -> dict[str, Any]:
        url = self.store.url
        given = {"host": url.host, "port": url.port, "user": url.username, "password": url.password}
        return {name: value for name, value in {**url.query, **given, "dbname": url.database}.items() if value}
