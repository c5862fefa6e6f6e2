"""A store with a small zoo: six models on forty samples of four classes, one student, jobs of every end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from backend.domain.catalog import Family, Model
from backend.predictions import import_predictions
from backend.settings import Settings
from backend.store import catalog
from backend.store.session import Store
from dashboard.reads import Reads

MODELS = {
    "cnn_a": Family.CNN,
    "cnn_b": Family.CNN,
    "vit_a": Family.TRANSFORMER,
    "vit_b": Family.TRANSFORMER,
    "mixer": Family.MLP,
    "odd=name": Family.UNKNOWN,
}
N_SAMPLES, N_CLASSES = 40, 4


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> Settings:
    return Settings(data_dir=tmp_path, database_url=sqlite_url, artifacts_url=str(tmp_path / "artifacts"))


@pytest.fixture
def empty_store(settings: Settings) -> Iterator[Store]:
    store = Store.open(settings.database, settings=settings)
    yield store
    store.close()


@pytest.fixture
def zoo_store(empty_store: Store, settings: Settings, tmp_path: Path) -> Store:
    rng = np.random.default_rng(0)
    labels = np.arange(N_SAMPLES) % N_CLASSES
    now = datetime.now(UTC)
    names = ("cat", "dog", "fox", "owl")
    for i, (name, family) in enumerate(MODELS.items()):
        if "=" in name:
            continue
        with empty_store.write() as connection:
            catalog.add_model(
                connection,
                Model(
                    id=uuid4(),
                    name=name,
                    source="external",
                    family=family,
                    param_count=(i + 1) * 1_000_000,
                    num_classes=N_CLASSES,
                    created_at=now,
                ),
            )
        logits = rng.normal(size=(N_SAMPLES, N_CLASSES)) + (1.0 + 0.3 * i) * np.eye(N_CLASSES)[labels]
        path = tmp_path / f"{name}.npz"
        np.savez(path, logits=logits.astype(np.float32), labels=labels)
        import_predictions(empty_store, settings, path, model=name, dataset="pets", class_names=names)
    return empty_store


@pytest.fixture
def reads(zoo_store: Store, settings: Settings) -> Reads:
    return Reads(zoo_store, settings)
