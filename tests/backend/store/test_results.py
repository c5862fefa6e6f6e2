"""Evaluations and pairs in the store, on SQLite and on Postgres."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from sqlalchemy import select

from backend.domain.errors import NotFound
from backend.domain.evaluations import Evaluation
from backend.domain.flips import flip_pairs
from backend.store import catalog, results, tables
from backend.store.session import Store
from tests.backend.store.test_catalog import dataset, model

NAMES = ("a", "b", "c")


@pytest.fixture
def zoo(store: Store) -> Store:
    with store.write() as connection:
        catalog.add_dataset(connection, dataset())
        for name in NAMES:
            catalog.add_model(connection, model(name))
    return store


def evaluation(name: str = "a", **fields: Any) -> Evaluation:
    base: dict[str, Any] = {"state": "ready", "accuracy": 0.5, "n_samples": 500, "n_classes": 10}
    return Evaluation(
        id=uuid4(), model=name, dataset="digits", split="val", created_at=datetime.now(UTC), **{**base, **fields}
    )


def record(store: Store, one: Evaluation, key: str, **files: Any) -> Evaluation:
    with store.write() as connection:
        return results.record_evaluation(connection, one, key=key, **files)


def test_an_evaluation_comes_back_as_it_went_in(zoo: Store) -> None:
    wanted = evaluation(bad_samples=("x/1.png",), provenance={"seed": 3}, images_per_s=12.5, inexpressible_classes=1)
    stored = record(zoo, wanted, "k" * 64, predictions_uri="/p", predictions_sha256="s" * 64, logits_uri="/l")
    assert stored == wanted.model_copy(update={"created_at": stored.created_at, "has_logits": True})
    with zoo.read() as connection:
        found = results.get_evaluation(connection, wanted.id)
        assert found == results.find_evaluation(connection, "k" * 64)
        assert (found.predictions_uri, found.predictions_sha256, found.logits_uri) == ("/p", "s" * 64, "/l")
        assert results.find_evaluation(connection, "none") is None
        with pytest.raises(NotFound, match="evaluation"):
            results.get_evaluation(connection, uuid4())


def test_one_row_a_key_and_a_failure_never_replaces_a_result(zoo: Store) -> None:
    def failed() -> Evaluation:
        return evaluation(state="failed", reason="broken", accuracy=None, n_samples=0)

    first = record(zoo, failed(), "k")
    ready = record(zoo, evaluation(), "k")
    assert (ready.id, ready.state, ready.reason) == (first.id, "ready", None)
    assert record(zoo, failed(), "k").state == "ready"
    record(zoo, failed(), "other")
    with zoo.write() as connection:
        results.forget_evaluation(connection, "other")
        results.forget_evaluation(connection, "k")
        assert results.find_evaluation(connection, "other") is None
        assert results.find_evaluation(connection, "k") is not None
    with pytest.raises(NotFound, match="nobody"):
        record(zoo, evaluation("nobody"), "x")


def test_the_evaluation_that_counts_has_most_samples_then_is_newest(zoo: Store) -> None:
    record(zoo, evaluation(n_samples=500, accuracy=0.1), "1")
    record(zoo, evaluation(n_samples=50, accuracy=0.2), "2")
    record(zoo, evaluation("b", n_samples=500, accuracy=0.3), "3")
    newest = record(zoo, evaluation("b", n_samples=500, accuracy=0.4), "4")
    record(zoo, evaluation("c", state="failed", reason="x", n_samples=0, accuracy=None), "5")
    with zoo.read() as connection:
        current = results.current_evaluations(connection, "digits", "val")
        assert [(one.model, one.evaluation.accuracy) for one in current] == [("a", 0.1), ("b", 0.4)]
        assert results.current_evaluation(connection, "b", "digits", "val").evaluation.id == newest.id
        assert results.current_evaluations(connection, "digits", "train") == []
        with pytest.raises(NotFound, match="scan the model there"):
            results.current_evaluation(connection, "c", "digits", "val")
        with pytest.raises(NotFound, match="no model named 'd'"):
            results.current_evaluation(connection, "d", "digits", "val")


def stored_pairs(store: Store) -> dict[tuple[str, str], Any]:
    with store.read() as connection:
        names = {row.id: row.name for row in connection.execute(select(tables.models.c.id, tables.models.c.name))}
        rows = connection.execute(select(tables.pairs)).all()
    return {(names[row.teacher_id], names[row.student_id]): row for row in rows}


def test_pairs_are_replaced_whole_or_only_those_of_some_models(zoo: Store) -> None:
    rng = np.random.default_rng(0)
    correct, classes = rng.random((3, 60)) < 0.6, rng.integers(0, 10, 60)
    table = flip_pairs(correct, classes, 10)
    with zoo.write() as connection:
        assert results.replace_pairs(connection, "digits", "val", table, NAMES) == 6
        assert results.paired_models(connection, "digits", "val") == set(NAMES)
        assert results.paired_models(connection, "digits", "train") == set()
    before = stored_pairs(zoo)
    for t, teacher in enumerate(NAMES):
        for s, student in enumerate(NAMES):
            if t != s:
                row = before[teacher, student]
                assert row.positive_flips == (correct[t] & ~correct[s]).sum()
                assert row.negative_flips == (~correct[t] & correct[s]).sum()
                assert row.both_right == (correct[t] & correct[s]).sum()
                assert row.positive_flip_rate == row.positive_flips / 60

    changed = correct.copy()
    changed[1] = ~changed[1]
    changed[2] = ~changed[2]  # told nobody, so its pair with `a` stays
    with zoo.write() as connection:
        table = flip_pairs(changed, classes, 10)
        assert results.replace_pairs(connection, "digits", "val", table, NAMES, only=["b"]) == 4
    after = stored_pairs(zoo)
    assert len(after) == 6
    assert after["a", "c"] == before["a", "c"]
    assert after["a", "b"].positive_flips == (correct[0] & ~changed[1]).sum()
    assert after["c", "b"].positive_flips == (changed[2] & ~changed[1]).sum()
