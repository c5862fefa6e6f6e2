"""The plane and the heat map show what the records say, in percent."""

import numpy as np
import pytest

from backend.domain.pairs import Pair
from backend.store.queries.density import Density, HeatMap
from dashboard.figures import flips
from dashboard.theme import SCHEMES


def a_pair(teacher="a", student="b", positive=0.2, negative=0.05):
    ends = {
        f"{name}_{end}": 0.0
        for name in ("accuracy_difference", "positive_flip_rate", "negative_flip_rate")
        for end in ("low", "high")
    }
    return Pair(
        teacher=teacher,
        student=student,
        dataset="d",
        split="val",
        n_samples=100,
        n_classes=4,
        teacher_accuracy=0.8,
        student_accuracy=0.8 - positive + negative,
        accuracy_difference=positive - negative,
        positive_flip_rate=positive,
        negative_flip_rate=negative,
        flip_entropy_nats=1.1,
        mcnemar_p_value=0.5,
        **ends,
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_points_are_drawn_in_percent_by_the_teachers_family(scheme):
    pairs = [a_pair("a", "b"), a_pair("b", "a", positive=0.05, negative=0.2), a_pair("c", "a", positive=0.1)]
    figure = flips.pairs_plane(
        pairs, ["cnn", "mlp", "cnn"], None, "accuracy_difference", "positive_flip_rate", (-0.2, 0.2, 0.0, 0.3), scheme
    )
    cnn = next(trace for trace in figure.data if trace.name == "teacher: CNN")
    assert list(cnn.x) == pytest.approx([15.0, 5.0])
    assert list(cnn.y) == pytest.approx([20.0, 10.0])
    assert cnn.customdata[0][-1] == "/pairs/a/b?on=d%2Fval"
    assert list(figure.layout.xaxis.range) == pytest.approx([-20, 20])
    assert "pp" in figure.layout.xaxis.title.text


def test_the_entropy_view_is_in_nats():
    figure = flips.pairs_plane(
        [a_pair()], ["cnn"], None, "positive_flip_rate", "flip_entropy_nats", (0.0, 0.3, 0.0, 1.4), "light"
    )
    assert list(figure.data[0].y) == [1.1]
    assert "nats" in figure.layout.yaxis.title.text


def test_density_keeps_empty_cells_empty_and_counts_on_a_logarithmic_scale():
    counts = np.array([[0, 1], [10, 1000]])
    figure = flips.pairs_plane(
        [],
        [],
        Density(counts, (0.0, 0.2, 0.0, 0.4)),
        "accuracy_difference",
        "positive_flip_rate",
        (0, 0.2, 0, 0.4),
        "dark",
    )
    trace = figure.data[0]
    assert np.isnan(trace.z[0][0])
    assert np.asarray(trace.z)[1].tolist() == pytest.approx([1.0, 3.0])
    assert list(trace.x) == pytest.approx([5.0, 15.0])
    assert list(trace.colorbar.ticktext) == ["1", "10", "100", "1,000"]


def test_nothing_says_so():
    figure = flips.pairs_plane([], [], None, "accuracy_difference", "positive_flip_rate", (-1, 1, 0, 1), "light")
    assert "No pair" in figure.layout.annotations[0].text
    empty = HeatMap(np.empty((0, 0), dtype=np.float32), (), (), 1)
    assert "No pair" in flips.heat_map(empty, "positive_flip_rate", "light").layout.annotations[0].text


def test_the_heat_map_has_teachers_across_and_names_only_where_there_is_room():
    values = np.array([[np.nan, 0.1], [0.2, np.nan]], dtype=np.float32)
    figure = flips.heat_map(HeatMap(values, ("t1", "t2"), ("s1", "s2"), 1), "positive_flip_rate", "light")
    trace = figure.data[0]
    assert list(trace.x) == ["t1", "t2"]
    assert np.asarray(trace.z)[0][1] == pytest.approx(10)
    assert figure.layout.xaxis.showticklabels
    names = tuple(f"m{i}" for i in range(50))
    many = HeatMap(np.ones((50, 50), dtype=np.float32), names, names, 1)
    assert not flips.heat_map(many, "positive_flip_rate", "light").layout.xaxis.showticklabels
