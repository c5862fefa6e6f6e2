"""A small zoo in SQLite and in Postgres."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pytest

from backend.domain.catalog import Family, Lineage, Model
from backend.domain.datasets import Dataset, Split
from backend.domain.evaluations import Evaluation
from backend.domain.flips import flip_pairs
from backend.store import catalog, results
from backend.store.session import Store

ZOO = (
    ("resnet_a", Family.CNN, 3),
    ("vit_a", Family.TRANSFORMER, 2),
    ("mixer", Family.MLP, None),
    ("unseen", Family.CNN, 9),
)


def put_pairs(store: Store, names: list[str], seed: int = 0, n_samples: int = 50) -> None:
    """Evaluations and pairs of models on the split `val` of `pets`."""
    rng = np.random.default_rng(seed)
    correct = rng.uniform(size=(len(names), n_samples)) < np.linspace(0.5, 0.9, len(names))[:, None]
    table = flip_pairs(correct, rng.integers(0, 3, n_samples), 3)
    with store.write() as connection:
        for i, name in enumerate(names):
            evaluation = Evaluation(
                id=uuid4(),
                model=name,
                dataset="pets",
                split="val",
                state="ready",
                accuracy=float(correct[i].mean()),
                n_samples=n_samples,
                n_classes=3,
                created_at=datetime.now(UTC),
            )
            results.record_evaluation(connection, evaluation, key=f"{name}-{seed}")
        results.replace_pairs(connection, "pets", "val", table, names)


@pytest.fixture
def pets(store: Store) -> Store:
    now = datetime.now(UTC)
    with store.write() as connection:
        split = Split(n_samples=50, fingerprint="f")
        catalog.add_dataset(
            connection,
            Dataset(
                id=uuid4(),
                name="pets",
                source="external",
                class_names=("a", "b", "c"),
                splits={"val": split},
                created_at=now,
            ),
        )
        for name, family, size in ZOO:
            catalog.add_model(
                connection,
                Model(id=uuid4(), name=name, source="external", family=family, param_count=size, created_at=now),
            )
        lineage = Lineage(
            job_id=uuid4(), kind="transfer", method="kl_dp", student="vit_a", teachers=("resnet_a",), dataset="pets"
        )
        catalog.add_model(
            connection,
            Model(
                id=uuid4(),
                name="vit_a-taught",
                source="external",
                family=Family.TRANSFORMER,
                lineage=lineage,
                created_at=now,
            ),
        )
    put_pairs(store, ["resnet_a", "vit_a", "mixer"])
    return store
