"""A small zoo in a store of its own: three models on twelve samples of three classes, as an import leaves it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backend.predictions import import_predictions
from backend.settings import Settings
from backend.store.session import Store

# SCIENCE §1: student, teacher, and the student after a transfer.
LABELS = [0] * 4 + [1] * 4 + [2] * 4
STUDENT = [0, 0, 1, 1, 1, 1, 0, 2, 2, 0, 0, 1]
TEACHER = [0, 1, 0, 0, 1, 0, 1, 2, 0, 2, 2, 2]
AFTER = [0, 1, 0, 0, 1, 1, 1, 2, 2, 2, 2, 0]


@pytest.fixture
def settings(sqlite_url: str, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=sqlite_url)


@pytest.fixture
def sqlite_store(settings: Settings) -> Iterator[Store]:
    store = Store.open(settings.database, settings=settings)
    yield store
    store.close()


@pytest.fixture
def zoo(sqlite_store: Store, settings: Settings, tmp_path: Path) -> Store:
    """The store with `student`, `teacher` and `after` scored on `golden`/val."""
    for name, top1 in (("student", STUDENT), ("teacher", TEACHER), ("after", AFTER)):
        path = tmp_path / f"{name}.npz"
        logits = np.full((12, 3), -1.0, dtype=np.float32)
        logits[np.arange(12), top1] = 2.0
        np.savez(
            path, logits=logits, labels=np.array(LABELS), sample_ids=np.array([f"dir/s{i:02d}.png" for i in range(12)])
        )
        import_predictions(
            sqlite_store, settings, path, model=name, dataset="golden", split="val", class_names=("ant", "bee", "cow")
        )
    return sqlite_store
