from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from backend.domain.catalog import Family, Model
from backend.domain.errors import BadInput, NotFound
from backend.store import catalog
from backend.store.queries import catalog as queries
from backend.store.session import Store

MODELS = [
    ("resnet18.a1_in1k", Family.CNN, 11_689_512),
    ("resnet50.a1_in1k", Family.CNN, 25_557_032),
    ("ResNet_like", Family.CNN, None),
    ("vit_tiny", Family.TRANSFORMER, 5_717_416),
    ("mixer-b16", Family.MLP, 59_880_472),
    ("mystery", Family.UNKNOWN, None),
]


@pytest.fixture
def filled(store: Store) -> Store:
    with store.write() as connection:
        for name, family, count in MODELS:
            catalog.add_model(
                connection,
                Model(
                    id=uuid4(),
                    name=name,
                    source="external" if count is None else "timm",
                    family=family,
                    param_count=count,
                    created_at=datetime.now(UTC),
                ),
            )
    return store


def names(store: Store, limit: int = 2, **query: Any) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        with store.read() as connection:
            page = queries.models(connection, limit=limit, cursor=cursor, **query)
        found += [model.name for model in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return found


FILTERS: list[tuple[dict[str, str], set[str]]] = [
    ({"name": "resnet*"}, {"resnet18.a1_in1k", "resnet50.a1_in1k", "ResNet_like"}),
    ({"name": "A1_IN"}, {"resnet18.a1_in1k", "resnet50.a1_in1k"}),
    ({"name": "t_l"}, {"ResNet_like"}),  # _ is no wildcard
    ({"name": "%"}, set()),
    ({"name": "\\"}, set()),
    ({"name": "vit?tiny"}, {"vit_tiny"}),
    ({"family": "cnn", "source": "timm"}, {"resnet18.a1_in1k", "resnet50.a1_in1k"}),
    ({"source": "external"}, {"ResNet_like", "mystery"}),
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"sort": "weights_hash"}, "sort"),
    ({"family": "tree"}, "family"),
    ({"source": "web"}, "source"),
    ({"limit": 201}, "limit"),
]


def test_filters(filled: Store) -> None:
    for query, wanted in FILTERS:
        assert set(names(filled, **query)) == wanted, query


def test_pages_in_order_with_every_entry_once(filled: Store) -> None:
    counts = {name: -1 if count is None else count for name, _, count in MODELS}
    for sort in ("name", "-name", "param_count", "-param_count", "created_at", "-created_at"):
        found = names(filled, sort=sort)
        assert sorted(found) == sorted(counts), sort
        if "param_count" in sort:
            values = [counts[name] for name in found]
            assert values == sorted(values, reverse=sort.startswith("-"))


def test_bad_questions(filled: Store) -> None:
    for query, field in BAD:
        with filled.read() as connection, pytest.raises(BadInput) as caught:
            queries.models(connection, **query)
        assert caught.value.field == field


def test_evaluations_and_data_sets(zoo: Store) -> None:
    with zoo.read() as connection:
        page = queries.evaluations(connection, sort="-accuracy")
        assert [e.model for e in page.items] == ["after", "teacher", "student"]
        accuracies = [e.accuracy for e in page.items]
        assert accuracies == pytest.approx([9 / 12, 8 / 12, 5 / 12])
        first = queries.evaluations(connection, sort="-accuracy", limit=1)
        rest = queries.evaluations(connection, sort="-accuracy", limit=5, cursor=first.next_cursor)
        assert [e.model for e in (*first.items, *rest.items)] == ["after", "teacher", "student"]
        assert queries.evaluation(connection, page.items[0].id) == page.items[0]
        assert [d.name for d in queries.datasets(connection).items] == ["golden"]
        assert queries.evaluations(connection, model="student", dataset="golden", split="val").items[0].n_samples == 12
        assert queries.evaluations(connection, split="test").items == ()
        with pytest.raises(NotFound):
            queries.evaluation(connection, uuid4())
        with pytest.raises(NotFound, match="student"):
            queries.evaluations(connection, model="studnt")
        with pytest.raises(BadInput, match="ready"):
            queries.evaluations(connection, state="done")
