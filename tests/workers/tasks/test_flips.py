"""Counting the pairs of a split anew, as a job without torch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import delete

from backend.predictions import import_predictions
from backend.settings import Settings
from backend.store import tables
from backend.store.queries.pairs import pairs
from backend.store.session import Store

RunTask = Callable[..., dict[str, Any]]


def test_pairs_that_were_lost_are_counted_again(
    run_task: RunTask, store: Store, settings: Settings, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 50)
    for name in "abc":
        np.savez(tmp_path / "x.npz", labels=labels, top1=rng.integers(0, 4, 50))
        import_predictions(store, settings, tmp_path / "x.npz", model=name, dataset="d")
    with store.read() as connection:
        before = pairs(connection).items
    with store.write() as connection:
        connection.execute(delete(tables.pairs))
    assert run_task("flips", dataset="d") == {"dataset": "d", "split": "val", "models": 3, "pairs": 6}
    with store.read() as connection:
        assert pairs(connection).items == before


def test_the_task_needs_no_torch() -> None:
    code = "import sys, workers.tasks.flips; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
