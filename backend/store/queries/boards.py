"""The columns of big boards, kept in memory and on disk, because reading 1.7 million pairs from SQL takes seconds.

A board that is small is read when it is asked for. A big one is read once in the background, kept beside the
database's files for the next start, and read again when its version changes; meanwhile the older picture stands.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import structlog

from backend.store.queries import board_columns
from backend.store.queries.board_columns import Columns
from backend.store.queries.density import PairFilter, Positions, select
from backend.store.queries.pairs import Board
from backend.store.session import Store

SMALL = 60_000
CHECK_S = 2.0
SETTLED_S = 120.0
KEPT_BOARDS = 4
KEPT_SELECTIONS = 24
FORMAT = "1"


@dataclass
class _Entry:
    columns: Columns
    version: tuple[Any, ...]
    checked_at: float


class Boards:
    """The boards of one store."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[int, str], _Entry] = OrderedDict()
        self._loading: dict[tuple[int, str], threading.Thread] = {}
        self._chosen: OrderedDict[Any, Positions] = OrderedDict()

    def columns(self, board: Board, *, wait: bool = False) -> Columns | None:
        """The board's columns, or None while a big board is being read for the first time."""
        key = (board.dataset_id, board.split)
        entry = self._entries.get(key)
        now = time.monotonic()
        if entry is not None and now - entry.checked_at < CHECK_S:
            return entry.columns
        version, count = self._version(board, entry)
        if entry is not None and entry.version == version:
            entry.checked_at = now
            return entry.columns
        if count <= SMALL or wait:
            return self._read(board, version)
        columns = self._from_disk(board, version)
        if columns is not None:
            return self._keep(key, columns, version)
        with self._lock:
            if key not in self._loading:
                thread = threading.Thread(target=self._read_quietly, args=(board, version), daemon=True)
                self._loading[key] = thread
                thread.start()
        if entry is not None:
            entry.checked_at = now
            return entry.columns
        return None

    def chosen(self, columns: Columns, wanted: PairFilter, sort: tuple[str, bool] | None = None) -> Positions:
        """Positions of the pairs that pass a filter; with `sort` = (column, descending) in that order."""
        key = (id(columns), wanted.key, sort)
        with self._lock:
            found = self._chosen.get(key)
            if found is not None:
                self._chosen.move_to_end(key)
                return found
        if sort is None:
            found = select(columns, wanted)
        else:
            found = self.chosen(columns, wanted)
            name, descending = sort
            values = getattr(columns, name)[found]
            found = found[np.argsort(-values if descending else values, kind="stable")]
        with self._lock:
            self._chosen[key] = found
            while len(self._chosen) > KEPT_SELECTIONS:
                self._chosen.popitem(last=False)
        return found

    def warm(self, boards: list[Board]) -> None:
        """Start reading big boards before anybody asks."""
        for board in boards[:KEPT_BOARDS]:
            self.columns(board)

    def _version(self, board: Board, entry: _Entry | None) -> tuple[tuple[Any, ...], int]:
        with self.store.read() as connection:
            version = board_columns.version(connection, board)
            # An import stores its evaluation first and its pairs a moment later: until that has settled, count them.
            unsettled = time.time() - max(version[1:]) < SETTLED_S
            count = board_columns.size(connection, board) if unsettled or entry is None else len(entry.columns)
        return (*version, count), count

    def _read_quietly(self, board: Board, version: tuple[Any, ...]) -> None:
        try:
            self._read(board, version)
        except Exception as error:  # the rim of a thread: the next question tries again
            structlog.get_logger("zoograft.boards").warning("a board could not be read", reason=repr(error))
        finally:
            with self._lock:
                self._loading.pop((board.dataset_id, board.split), None)

    def _read(self, board: Board, version: tuple[Any, ...]) -> Columns:
        with self.store.read() as connection:
            columns = board_columns.load(connection, board)
        self._keep((board.dataset_id, board.split), columns, version)
        if len(columns) > SMALL:
            self._to_disk(board, version, columns)
        return columns

    def _keep(self, key: tuple[int, str], columns: Columns, version: tuple[Any, ...]) -> Columns:
        with self._lock:
            self._entries[key] = _Entry(columns, version, time.monotonic())
            self._entries.move_to_end(key)
            self._chosen.clear()
            while len(self._entries) > KEPT_BOARDS:
                self._entries.popitem(last=False)
        return columns

    def _place(self, board: Board, version: tuple[Any, ...]) -> Path:
        text = repr((FORMAT, str(self.store.url), board.dataset_id, board.split, version))
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        return self.folder / f"{board.dataset_id}-{name}.npz"

    def _from_disk(self, board: Board, version: tuple[Any, ...]) -> Columns | None:
        path = self._place(board, version)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                texts = {name: tuple(stored[name].tolist()) for name in ("names", "families")}
                return Columns(
                    dataset=board.dataset,
                    split=board.split,
                    names=texts["names"],
                    families=texts["families"],
                    **{name: stored[name] for name in board_columns.NUMBERS},
                )
        except (OSError, ValueError, KeyError):
            return None

    def _to_disk(self, board: Board, version: tuple[Any, ...], columns: Columns) -> None:
        path = self._place(board, version)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{uuid4().hex}.npz")
            arrays: dict[str, Any] = {one.name: np.asarray(getattr(columns, one.name)) for one in fields(Columns)}
            np.savez(temporary, **arrays)
            temporary.replace(path)
            for old in self.folder.glob(f"{board.dataset_id}-*.npz"):
                if old != path and old.stat().st_mtime < path.stat().st_mtime - 3600:
                    old.unlink(missing_ok=True)
        except OSError as error:
            structlog.get_logger("zoograft.boards").warning("a board is not kept on disk", reason=repr(error))
