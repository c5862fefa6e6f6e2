from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from backend.domain.catalog import Model
from backend.domain.datasets import Dataset, Split
from backend.domain.errors import BadInput, NotFound
from backend.domain.evaluations import Evaluation
from backend.domain.flips import flip_pairs
from backend.domain.pairs import Pair, pair_records
from backend.store import catalog, results
from backend.store.queries import pairs as queries
from backend.store.queries.pairs import SORTS
from backend.store.session import Store

NAMES = [f"{kind}_{i}" for kind in ("cnn", "vit") for i in range(4)]
BOARDS = (("beta", "val"), ("alpha", "test"), ("alpha", "val"))


@pytest.fixture
def expected(store: Store) -> list[Pair]:
    """Eight models on three splits; few samples, so that many pairs tie. Returns what the table holds."""
    now = datetime.now(UTC)
    rng = np.random.default_rng(3)
    records: list[Pair] = []
    with store.write() as connection:
        for name in NAMES:
            catalog.add_model(connection, Model(id=uuid4(), name=name, source="external", created_at=now))
        for name in ("beta", "alpha"):
            splits = {split: Split(n_samples=12, fingerprint=split) for board, split in BOARDS if board == name}
            catalog.add_dataset(
                connection,
                Dataset(
                    id=uuid4(), name=name, source="external", class_names=("a", "b"), splits=splits, created_at=now
                ),
            )
        for dataset, split in BOARDS:
            for name in NAMES:
                evaluation = Evaluation(
                    id=uuid4(), model=name, dataset=dataset, split=split, state="ready", n_samples=12, created_at=now
                )
                results.record_evaluation(connection, evaluation, key=f"{name}-{dataset}-{split}")
            table = flip_pairs(rng.random((8, 12)) < 0.6, rng.integers(0, 2, 12), 2)
            results.replace_pairs(connection, dataset, split, table, NAMES)
            records += pair_records(table, NAMES, dataset=dataset, split=split)
    return records


def walk(store: Store, limit: int = 7, **query: Any) -> list[Pair]:
    """All pages, one after the other."""
    found: list[Pair] = []
    cursor = None
    for _ in range(200):
        with store.read() as connection:
            page = queries.pairs(connection, limit=limit, cursor=cursor, **query)
        assert 0 < len(page.items) <= limit or cursor is None
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise AssertionError("the pages do not end")


def keys(pairs: list[Pair] | Iterator[Pair]) -> set[tuple[str, str, str, str]]:
    return {(p.dataset, p.split, p.teacher, p.student) for p in pairs}


def test_pages_walk_every_pair_once_in_order(store: Store, expected: list[Pair]) -> None:
    for sort in (sign + name for name in SORTS for sign in ("", "-")):
        found = walk(store, sort=sort, limit=13)
        assert len(found) == len(expected) == 3 * 56, sort
        assert keys(found) == keys(expected), sort
        values = [getattr(pair, sort.removeprefix("-")) for pair in found]
        assert values == sorted(values, reverse=sort.startswith("-")), sort
        assert len(set(values)) < len(values), sort  # or ties were not tried


def test_a_row_carries_what_was_counted(store: Store, expected: list[Pair]) -> None:
    by_key = {(p.dataset, p.split, p.teacher, p.student): p for p in expected}
    for pair in walk(store, limit=200):
        counted = by_key[(pair.dataset, pair.split, pair.teacher, pair.student)].model_dump()
        shown = pair.model_dump()
        assert shown.keys() == counted.keys()
        for name, value in shown.items():
            assert value == (pytest.approx(counted[name], abs=1e-12) if isinstance(value, float) else counted[name])


FILTERS: dict[str, tuple[dict[str, Any], Any]] = {
    "data set": ({"dataset": "alpha"}, lambda p: p.dataset == "alpha"),
    "split": ({"split": "val"}, lambda p: p.split == "val"),
    "board": ({"dataset": "alpha", "split": "val"}, lambda p: (p.dataset, p.split) == ("alpha", "val")),
    "teacher": ({"teacher": "vit_2"}, lambda p: p.teacher == "vit_2"),
    "student": ({"student": "cnn_0"}, lambda p: p.student == "cnn_0"),
    "pair": ({"teacher": "vit_2", "student": "cnn_0"}, lambda p: (p.teacher, p.student) == ("vit_2", "cnn_0")),
    "patterns": (
        {"teacher": "vit_*", "student": "cnn_[01]"},
        lambda p: p.teacher.startswith("vit") and p.student in ("cnn_0", "cnn_1"),
    ),
    "any": ({"teacher": "*"}, lambda p: True),
    "range": (
        {"ranges": {"accuracy_difference": (None, -0.1), "positive_flip_rate": (0.1, 0.4)}},
        lambda p: p.accuracy_difference <= -0.1 and 0.1 <= p.positive_flip_rate <= 0.4,
    ),
    "range of the sort column": (
        {"ranges": {"positive_flip_rate": (0.25, None)}},
        lambda p: p.positive_flip_rate >= 0.25,
    ),
    "student and range": (
        {"student": "cnn_*", "ranges": {"flip_entropy_nats": (0.1, None)}},
        lambda p: p.student.startswith("cnn") and p.flip_entropy_nats >= 0.1,
    ),
}


@pytest.mark.parametrize("near", [4096, 9])
def test_filters(store: Store, expected: list[Pair], near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every road of `_board_rows` gives the same: `near` 9 forces the reading of the whole board."""
    monkeypatch.setattr(queries, "NEAR", near)
    for name, (query, wanted) in FILTERS.items():
        kept = [pair for pair in expected if wanted(pair)]
        assert 0 < len(kept) <= len(expected), name
        for sort in ("-positive_flip_rate", "teacher_accuracy"):
            found = walk(store, sort=sort, limit=11, **query)
            assert len(found) == len(kept), name
            assert keys(found) == keys(kept), name
            values = [getattr(pair, sort.removeprefix("-")) for pair in found]
            assert values == sorted(values, reverse=sort.startswith("-")), name


def test_a_pattern_that_matches_nothing_is_an_empty_list(store: Store, expected: list[Pair]) -> None:
    assert walk(store, teacher="nobody*") == []


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sort": "name"}, "sort"),
    ({"limit": 0}, "limit"),
    ({"cursor": "nonsense"}, "cursor"),
    ({"dataset": "gamma"}, "dataset"),
    ({"dataset": "alpha", "split": "train"}, "split"),
    ({"teacher": "vit_9"}, "model"),
    ({"ranges": {"secret": (0, 1)}}, "range"),
    ({"ranges": {"positive_flip_rate": (float("nan"), None)}}, "positive_flip_rate"),
    ({"ranges": {"positive_flip_rate": (0.5, 0.1)}}, "positive_flip_rate"),
]


def test_bad_questions(store: Store, expected: list[Pair]) -> None:
    for query, field in BAD:
        with store.read() as connection, pytest.raises(BadInput) as caught:
            queries.pairs(connection, **query)
        assert caught.value.field == field


def test_a_cursor_of_another_filter_is_refused(store: Store, expected: list[Pair]) -> None:
    with store.read() as connection:
        cursor = queries.pairs(connection, limit=5).next_cursor
        with pytest.raises(BadInput, match="same filters"):
            queries.pairs(connection, limit=5, cursor=cursor, teacher="vit_1")


def test_one_pair_needs_a_split_that_is_clear(store: Store, expected: list[Pair]) -> None:
    with store.read() as connection:
        with pytest.raises(BadInput, match="alpha, beta"):
            queries.pair(connection, "vit_0", "cnn_0")
        assert queries.pair(connection, "vit_0", "cnn_0", dataset="alpha").split == "val"
        detail = queries.pair(connection, "vit_0", "cnn_0", dataset="alpha", split="test")
        row = next(
            p for p in expected if (p.dataset, p.split, p.teacher, p.student) == ("alpha", "test", "vit_0", "cnn_0")
        )
        assert detail.positive_flip_rate == row.positive_flip_rate
        assert detail.right_both + detail.positive_flips + detail.negative_flips + detail.wrong_both == 12
        for wrong, error in (("vit_0", BadInput), ("vit_99", NotFound)):
            with pytest.raises(error):
                queries.pair(connection, "vit_0", wrong, dataset="alpha")
