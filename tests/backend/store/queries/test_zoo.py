"""The zoo as a table: filtered, sorted and cut in SQL, alike on both databases."""

import pytest

from backend.domain.errors import BadInput
from backend.store.queries.zoo import is_empty, runnable
from backend.store.queries.zoo import zoo as read_zoo

HERE = {"dataset": "pets", "split": "val"}


def names(store, **wanted):
    with store.read() as connection:
        rows, total = read_zoo(connection, **{**HERE, **wanted})
    assert total >= len(rows)
    return [row.name for row in rows]


def test_every_model_is_there_with_its_score_or_without(pets):
    with pets.read() as connection:
        rows, total = read_zoo(connection, **HERE)
    assert total == len(rows) == 5
    by_name = {row.name: row for row in rows}
    assert by_name["unseen"].accuracy is None
    assert by_name["unseen"].n_datasets == 0
    assert by_name["resnet_a"].n_samples == 50
    assert by_name["vit_a-taught"].student == "vit_a"
    assert by_name["vit_a-taught"].method == "kl_dp"
    assert by_name["vit_a-taught"].teachers == ("resnet_a",)


def test_the_evaluation_with_most_samples_counts(pets):
    from tests.backend.store.queries.conftest import put_pairs

    put_pairs(pets, ["resnet_a", "vit_a", "mixer"], seed=3, n_samples=30)
    with pets.read() as connection:
        rows, _ = read_zoo(connection, **HERE)
    assert {row.n_samples for row in rows if row.accuracy is not None} == {50}
    assert len(rows) == 5


def test_words_and_filters(pets):
    assert names(pets, search="VIT taught") == ["vit_a-taught"]
    assert names(pets, search="t_a") == ["resnet_a", "vit_a", "vit_a-taught"]
    family = {"family": {"filterType": "text", "type": "equals", "filter": "CNN"}}
    assert names(pets, filters=family) == ["resnet_a", "unseen"]
    large = {"param_count": {"filterType": "number", "type": "greaterThan", "filter": 2}}
    assert names(pets, filters=large) == ["resnet_a", "unseen"]
    made = {"student": {"filterType": "text", "type": "equals", "filter": "vit_a"}}
    assert names(pets, filters=made) == ["vit_a-taught"]
    either = {
        "name": {
            "filterType": "text",
            "operator": "OR",
            "conditions": [
                {"filterType": "text", "type": "startsWith", "filter": "mix"},
                {"filterType": "text", "type": "endsWith", "filter": "seen"},
            ],
        }
    }
    assert names(pets, filters=either) == ["mixer", "unseen"]


@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_what_is_unknown_is_sorted_last_either_way(pets, direction):
    found = names(pets, sort=[{"colId": "param_count", "sort": direction}])
    assert found[:3] == (["vit_a", "resnet_a", "unseen"] if direction == "asc" else ["unseen", "resnet_a", "vit_a"])


def test_windows_join_to_the_whole(pets):
    whole = names(pets)
    assert [one for at in range(0, 5, 2) for one in names(pets, offset=at, limit=2)] == whole


@pytest.mark.parametrize(
    "wanted",
    [
        {"filters": {"nothing": {"type": "equals", "filter": 1}}},
        {"filters": {"name": {"type": "matches", "filter": "a"}}},
        {"filters": {"param_count": {"filterType": "number", "type": "equals", "filter": "many"}}},
        {"filters": {"param_count": {"filterType": "number", "type": "inRange", "filter": 1, "filterTo": None}}},
        {"sort": [{"colId": "nothing", "sort": "asc"}]},
        {"sort": [{"colId": "name", "sort": "sideways"}]},
    ],
)
def test_what_is_not_a_column_is_refused(pets, wanted):
    with pytest.raises(BadInput):
        names(pets, **wanted)


def test_an_underscore_is_a_letter(pets):
    assert names(pets, search="resnet.a") == []
    assert names(pets, search="%") == []


def test_who_can_be_asked_to_teach(pets):
    with pets.read() as connection:
        assert not is_empty(connection)
        everyone = runnable(connection, "pets", "val", 4)
        rows, _ = read_zoo(connection, **HERE)
    scored = {row.name: row.accuracy for row in rows if row.accuracy is not None and row.source != "external"}
    assert dict(everyone) == scored
    assert [accuracy for _, accuracy in everyone] == sorted(scored.values(), reverse=True)


def test_the_count_is_that_of_the_rows(pets):
    bounds = {"accuracy": {"filterType": "number", "type": "greaterThan", "filter": 0.0}}
    words = {"name": {"filterType": "text", "type": "contains", "filter": "vit"}}
    for wanted in ({}, {"filters": bounds}, {"filters": words}, {"search": "vit"}):
        with pets.read() as connection:
            rows, total = read_zoo(connection, **HERE, **wanted)
        assert total == len(rows)
