"""What all questions share: the store, and answers kept while nothing that they depend on has changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from backend.settings import Settings
from backend.store.queries import changes
from backend.store.queries.boards import Boards
from backend.store.session import Store

MOST_KEPT = 128

T = TypeVar("T")


class Door:
    """One store, and a small memory of answers about finished jobs."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings = store, settings
        self.boards_cache = Boards(store, settings.data_dir / "cache" / "boards")
        self._lock = threading.Lock()
        self._kept: OrderedDict[Any, tuple[Any, Any]] = OrderedDict()
        self._busy: dict[Any, threading.Lock] = {}
        self._seen: tuple[Any, Any] | None = None

    def kept(self, question: tuple[Any, ...], ask: Callable[[], T]) -> T:
        """The answer to a question about what jobs left behind; asked again once a job has ended or begun.

        A page's figures ask the same thing at the same time: one asks, the others wait for its answer.
        """
        version = self._version()
        with self._lock:
            busy = self._busy.setdefault(question, threading.Lock())
        with busy:
            with self._lock:
                found = self._kept.get(question)
                if found is not None and found[0] == version:
                    self._kept.move_to_end(question)
                    return found[1]  # type: ignore[no-any-return]
            try:
                answer = ask()
            except Exception:
                with self._lock:
                    self._busy.pop(question, None)
                raise
            with self._lock:
                self._kept[question] = (version, answer)
                self._kept.move_to_end(question)
                while len(self._kept) > MOST_KEPT:
                    old, _ = self._kept.popitem(last=False)
                    self._busy.pop(old, None)
            return answer

    def _version(self) -> Any:
        """Changes whenever a job changes its state, or an entry or a score is added."""
        with self.store.read() as connection:
            stamp = changes.stamp(connection)
            seen = self._seen
            if seen is not None and seen[0] == stamp:
                return seen[1]
            # Steps and log lines of running jobs move the stamp; what pages keep hangs on the states alone.
            version = (stamp[1:], changes.outcomes(connection))
        self._seen = (stamp, version)
        return version
