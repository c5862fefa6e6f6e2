"""What ends a supervisor's wait early: its own threads, and on Postgres the notification of whoever queued a job.

Losing a wake-up costs one poll interval, never a job.
"""

from __future__ import annotations

import contextlib
import os
import threading

from backend.store.session import Store
from backend.store.wake import Wake


class Doorbell:
    """A pipe to select on. On Postgres a thread listens and rings it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def fileno(self) -> int:
        return self._read

    def ring(self) -> None:
        """From any thread or signal handler."""
        with contextlib.suppress(OSError):
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
        wake = Wake(self.store)
        while not self._stop.is_set():
            if wake.wait(1.0):
                self.ring()
        wake.close()
