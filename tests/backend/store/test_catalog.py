"""Models and data sets in the store, on SQLite and on Postgres."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from backend.domain.catalog import Family, Model, Preprocessing
from backend.domain.datasets import Dataset, Split
from backend.domain.errors import Conflict, NotFound
from backend.store import catalog
from backend.store.session import Store

THEN = datetime(2001, 1, 1, tzinfo=UTC)


def model(name: str = "resnet", **fields: Any) -> Model:
    base: dict[str, Any] = {
        "source": "timm",
        "architecture": "resnet18",
        "kwargs": {"num_classes": 10},
        "weights_hash": "a" * 64,
        "preprocessing": Preprocessing(),
        "num_classes": 10,
        "family": Family.CNN,
        "param_count": 11_000_000,
    }
    return Model(id=uuid4(), name=name, created_at=THEN, **{**base, **fields})


def dataset(name: str = "digits", **fields: Any) -> Dataset:
    base: dict[str, Any] = {
        "source": "digits",
        "class_names": tuple("0123456789"),
        "splits": {"val": Split(n_samples=500, fingerprint="f" * 64)},
    }
    return Dataset(id=uuid4(), name=name, created_at=THEN, **{**base, **fields})


def test_an_entry_comes_back_as_it_went_in_dated_by_the_database(store: Store) -> None:
    wanted = model()
    with store.write() as connection:
        stored = catalog.add_model(connection, wanted)
    assert stored.model_copy(update={"created_at": THEN}) == wanted
    assert abs((datetime.now(UTC) - stored.created_at).total_seconds()) < 60
    with store.read() as connection:
        assert catalog.get_model(connection, "resnet") == stored


def test_the_same_content_is_the_same_entry_and_another_is_a_conflict(store: Store) -> None:
    with store.write() as connection:
        first = catalog.add_model(connection, model(checkpoint="/a.pth"))
        assert catalog.add_model(connection, model(checkpoint="/a.pth")) == first
        moved = catalog.add_model(connection, model(checkpoint="/b.pth"))
        assert (moved.id, moved.checkpoint) == (first.id, "/b.pth")
        for other in (model(weights_hash="b" * 64), model(kwargs={}), model(preprocessing=Preprocessing(crop_pct=1.0))):
            with pytest.raises(Conflict, match="another model named 'resnet'"):
                catalog.add_model(connection, other)
        data = catalog.add_dataset(connection, dataset())
        assert catalog.add_dataset(connection, dataset()) == data
        with pytest.raises(Conflict, match="splits differs"):
            catalog.add_dataset(connection, dataset(splits={"val": Split(n_samples=9, fingerprint="0" * 64)}))


def test_names_are_found_by_pattern_and_misses_are_told(store: Store) -> None:
    with store.write() as connection:
        for name in ("resnet18", "resnet50", "vit", "ResNet"):
            catalog.add_model(connection, model(name))
    with store.read() as connection:
        found = catalog.find_models(connection, ["resnet*", "vit", "resnet18"])
        assert [one.name for one in found] == ["resnet18", "resnet50", "vit"]
        assert [one.name for one in catalog.get_models(connection, ["vit", "resnet18"])] == ["vit", "resnet18"]
        for call, name in ((catalog.get_model, "resnet5"), (catalog.find_models, ["resnet5"])):
            with pytest.raises(NotFound, match="did you mean resnet50"):
                call(connection, name)  # type: ignore[operator]
        with pytest.raises(NotFound, match="there are none yet"):
            catalog.get_dataset(connection, "digits")


def test_sync_adds_refreshes_and_keeps_what_is_a_users(store: Store) -> None:
    tags = [model(f"net{i}.a1", architecture=f"net{i}.a1", pretrained=True, weights_hash=None) for i in range(1200)]
    with store.write() as connection:
        catalog.add_model(connection, model("net5.a1"))
        assert catalog.sync_models(connection, tags) == (1199, 0, 1)
        assert catalog.sync_models(connection, tags) == (0, 0, 1200)
        tags[0] = tags[0].model_copy(update={"reported_accuracy": {"imagenet": 0.7}, "param_count": 5})
        assert catalog.sync_models(connection, tags) == (0, 1, 1199)
        catalog.set_weights_hash(connection, "net0.a1", "c" * 64, 7)
        assert catalog.sync_models(connection, tags) == (0, 0, 1200)
        net0 = catalog.get_model(connection, "net0.a1")
        assert (net0.weights_hash, net0.param_count, net0.reported_accuracy) == ("c" * 64, 7, {"imagenet": 0.7})
        catalog.set_weights_hash(connection, "net0.a1", "d" * 64, 8)
        assert catalog.get_model(connection, "net0.a1").weights_hash == "c" * 64
        assert catalog.get_model(connection, "net5.a1").pretrained is False
