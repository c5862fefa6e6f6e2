"""Fig. 2a and 2b from the golden flips of SCIENCE §1."""

import numpy as np
import pytest

from backend.domain.flips import class_flips
from backend.domain.pairs import class_records
from dashboard.figures import classes

LABELS = np.array([0] * 4 + [1] * 4 + [2] * 4)
STUDENT = np.array([0, 0, 1, 1, 1, 1, 0, 2, 2, 0, 0, 1])
TEACHER = np.array([0, 1, 0, 0, 1, 0, 1, 2, 0, 2, 2, 2])


@pytest.fixture
def counts():
    return class_flips(TEACHER == LABELS, STUDENT == LABELS, LABELS, 3)


def test_bars_are_sorted_shares_in_percent_with_negative_flips_below(counts):
    figure = classes.histogram(class_records(counts, ["zero", "one", "two"]), counts.positive, "light")
    positive, negative = figure.data[:2]
    assert list(positive.y) == pytest.approx([75, 50, 25])
    assert [row[0] for row in positive.customdata] == ["two", "zero", "one"]
    assert all(value <= 0 for value in negative.y)
    assert list(figure.layout.xaxis.ticktext) == ["two", "zero", "one"]


def test_the_marks_count_the_fewest_classes_that_hold_p_percent():
    positive = np.array([10, 7, 5, 3, 2, 1, 1, 1, 0, 0])
    right = np.concatenate([np.repeat([True, False], [p, 10 - p]) for p in positive])
    labels = np.repeat(np.arange(10), 10)
    flips = class_flips(right, np.zeros(100, dtype=bool), labels, 10)
    figure = classes.histogram(class_records(flips, [str(c) for c in range(10)]), flips.positive, "dark")
    texts = [note.text for note in figure.layout.annotations]
    assert texts == ["2 % and 5 % and 20 % of all in 1 class", "50 % of all in 2 classes"]


def test_without_samples_or_flips_nothing_breaks(counts):
    assert "No class" in classes.histogram([], [], "light").layout.annotations[0].text
    same = class_flips(LABELS == LABELS, LABELS == LABELS, LABELS, 3)
    figure = classes.histogram(class_records(same, ["a", "b", "c"]), same.positive, "light")
    assert list(figure.data[0].y) == [0, 0, 0]
    assert not figure.layout.annotations


def test_similarity_is_relative_to_all_classes():
    embeddings = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    found = classes.similarities(embeddings, [6, 4, 1, 0])
    assert found[50].n_classes == 1
    assert found[100].n_classes == 3
    figure = classes.similarity(found, "light")
    assert "50 %" not in figure.data[0].x
    assert figure.data[0].y[-1] == pytest.approx(100 * found[100].relative)
    lonely = classes.similarity({2: found[50]}, "light")
    assert "Fewer than two" in lonely.layout.annotations[0].text
