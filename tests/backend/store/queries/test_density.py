"""Selection, density and heat map on columns, against loops."""

import numpy as np
import pytest

from backend.domain.errors import BadInput
from backend.domain.flips import flip_pairs
from backend.domain.pairs import pair_records as records_of_table
from backend.store.queries import density
from backend.store.queries.board_columns import arrange, pair_records
from backend.store.queries.density import PairFilter

NAMES = ["resnet_a", "resnet_b", "vit_a", "vit_b", "mixer"]
FAMILIES = ["cnn", "cnn", "transformer", "transformer", "mlp"]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 60)
    correct = rng.uniform(size=(5, 60)) < np.array([[0.9], [0.4], [0.7], [0.6], [0.5]])
    return flip_pairs(correct, labels, 4)


@pytest.fixture(scope="module")
def columns(table):
    found = table.columns()
    stored = {name: np.asarray(values) for name, values in found.items()}
    stored["both_right"] = stored["right_both"]
    teacher, student = table.teacher.astype(np.int32), table.student.astype(np.int32)
    return arrange("d", "val", list(zip(NAMES, FAMILIES, strict=True)), stored, teacher, student)


def test_models_are_in_the_order_of_their_accuracy(columns):
    accuracy = {name: columns.teacher_accuracy[columns.teacher == i][0] for i, name in enumerate(columns.names)}
    assert list(accuracy.values()) == sorted(accuracy.values())
    assert dict(zip(columns.names, columns.families, strict=True)) == dict(zip(NAMES, FAMILIES, strict=True))


def test_records_are_those_of_the_table(columns, table):
    ours = {(pair.teacher, pair.student): pair for pair in pair_records(columns, np.arange(len(columns)))}
    theirs = {(p.teacher, p.student): p for p in records_of_table(table, NAMES, dataset="d", split="val")}
    assert ours.keys() == theirs.keys()
    for key, pair in theirs.items():
        assert ours[key].model_dump(exclude={"flip_entropy_nats"}) == pytest.approx(
            pair.model_dump(exclude={"flip_entropy_nats"})
        )
        assert ours[key].flip_entropy_nats == pytest.approx(pair.flip_entropy_nats, abs=1e-6)
    assert pair_records(columns, np.array([], dtype=np.int64)) == []


def chosen_names(columns, **wanted):
    found = density.select(columns, PairFilter(**wanted))
    return {(columns.names[columns.teacher[i]], columns.names[columns.student[i]]) for i in found}


def test_names_patterns_families_and_ranges_select(columns):
    assert len(chosen_names(columns)) == 20
    assert {t for t, _ in chosen_names(columns, teacher="resnet*")} == {"resnet_a", "resnet_b"}
    assert {t for t, _ in chosen_names(columns, teacher="RES")} == {"resnet_a", "resnet_b"}
    assert {t for t, _ in chosen_names(columns, teacher="vit_a, mixer")} == {"vit_a", "mixer"}
    assert {s for _, s in chosen_names(columns, student_family="transformer")} == {"vit_a", "vit_b"}
    assert chosen_names(columns, teacher="nobody") == set()
    weaker = density.select(columns, PairFilter(ranges={"accuracy_difference": (None, -1e-12)}))
    assert len(weaker)
    assert (columns.accuracy_difference[weaker] < 0).all()
    with pytest.raises(BadInput, match="range"):
        density.select(columns, PairFilter(ranges={"names": (0, 1)}))


def test_every_pair_in_the_view_is_counted_once(columns):
    everything = density.select(columns, PairFilter())
    view = density.extent(columns, everything, "accuracy_difference", "positive_flip_rate")
    found = density.density(columns, everything, "accuracy_difference", "positive_flip_rate", view, (7, 9))
    assert found.counts.shape == (7, 9)
    assert found.counts.sum() == 20
    for i in everything:
        x = int((columns.accuracy_difference[i] - view[0]) / (view[1] - view[0]) * 9)
        y = int((columns.positive_flip_rate[i] - view[2]) / (view[3] - view[2]) * 7)
        assert found.counts[y, x] >= 1
    half = (view[0], 0.0, view[2], view[3])
    part = density.density(columns, everything, "accuracy_difference", "positive_flip_rate", half, (7, 9))
    assert part.counts.sum() == (columns.accuracy_difference <= 0).sum()
    assert part.x[0] - half[0] == pytest.approx((0 - half[0]) / 18)


def test_an_empty_selection_has_a_view_and_no_counts(columns):
    nothing = np.array([], dtype=np.int64)
    view = density.extent(columns, nothing, "accuracy_difference", "positive_flip_rate")
    assert density.density(columns, nothing, "accuracy_difference", "positive_flip_rate", view).counts.sum() == 0
    assert density.heat_map(columns, nothing, "positive_flip_rate").values.size == 0


def test_a_sample_is_the_same_every_time(columns):
    everything = np.arange(20)
    first = density.sample(everything, 7)
    assert len(first) == 7
    assert (first == density.sample(everything, 7)).all()
    assert (density.sample(everything, 50) == everything).all()


def test_the_heat_map_is_the_matrix_and_groups_are_means(columns):
    everything = density.select(columns, PairFilter())
    heat = density.heat_map(columns, everything, "positive_flip_rate")
    assert heat.teachers == columns.names
    assert np.isnan(np.diag(heat.values)).all()
    for i in everything:
        cell = heat.values[columns.student[i], columns.teacher[i]]
        assert cell == pytest.approx(columns.positive_flip_rate[i])
    coarse = density.heat_map(columns, everything, "positive_flip_rate", most=3)
    assert coarse.models_a_cell == 2
    assert coarse.values.shape == (3, 3)
    assert coarse.teachers[0] == f"{columns.names[0]} … {columns.names[1]}"
    inside = [i for i in everything if columns.student[i] < 2 and 2 <= columns.teacher[i] < 4]
    assert coarse.values[0, 1] == pytest.approx(columns.positive_flip_rate[inside].mean(), rel=1e-6)
