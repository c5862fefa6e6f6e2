"""Single labels, sets of labels, and samples that have none."""

import numpy as np
import pytest

from backend.domain.correctness import class_of, correctness, has_label, pad_label_sets
from backend.domain.errors import BadInput


def test_single_labels():
    assert correctness([[0, 1, 2], [0, 0, 0]], [0, 1, 1]).tolist() == [[True, True, False], [True, False, False]]
    assert correctness([0, 1, 2], [0, 1, 1]).shape == (1, 3)


def test_a_set_of_labels_is_right_if_it_contains_the_prediction():
    labels = [[], [970, 795], [230], [5, 6, 7]]
    assert correctness([[0, 795, 230, 8], [1, 970, 231, 7]], labels).tolist() == [
        [False, True, True, False],
        [False, True, False, True],
    ]
    assert has_label(labels).tolist() == [False, True, True, True]


def test_sets_of_one_reduce_to_single_labels():
    rng = np.random.default_rng(0)
    labels, top1 = rng.integers(0, 5, 40), rng.integers(0, 5, (3, 40))
    np.testing.assert_array_equal(correctness(top1, [[x] for x in labels]), correctness(top1, labels))


def test_no_label_and_no_prediction_never_agree():
    assert not correctness([[-1, -1]], [-1, 0]).any()
    assert not correctness([[-1, 0]], [[0], []]).any()


def test_small_unsigned_predictions_are_compared_as_numbers():
    assert correctness(np.array([[255, 0]], dtype=np.uint8), np.array([255, -1])).tolist() == [[True, False]]


def test_class_of_a_set_is_the_own_label_if_the_set_has_it():
    sets = [[3, 4], [3, 4], [], [7]]
    assert class_of(sets).tolist() == [3, 3, -1, 7]
    assert class_of(sets, preferred=[4, 9, 1, 7]).tolist() == [4, 3, -1, 7]
    assert class_of([2, -1]).tolist() == [2, -1]


def test_padding():
    assert pad_label_sets([[1], [], [2, 3]]).tolist() == [[1, -1], [-1, -1], [2, 3]]


@pytest.mark.parametrize(
    ("top1", "labels", "field"),
    [
        ([[0, 1]], [0], "top1"),
        ([[0.5]], [0], "top1"),
        ([[0]], ["cat"], "labels"),
        ([[0]], [-3], "labels"),
        ([[0]], [[-3]], "labels"),
        (np.zeros((1, 0), dtype=int), np.zeros(0, dtype=int), "labels"),
    ],
)
def test_bad_input_names_the_field(top1, labels, field):
    with pytest.raises(BadInput) as caught:
        correctness(top1, labels)
    assert caught.value.field == field
