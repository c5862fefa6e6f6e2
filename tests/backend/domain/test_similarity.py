import numpy as np
import pytest

from backend.domain.errors import BadInput
from backend.domain.similarity import class_similarity, embedding_table, top_class_similarity


def naive_mean_cosine(vectors):
    unit = [v / np.linalg.norm(v) for v in vectors]
    return np.mean([unit[i] @ unit[j] for i in range(len(unit)) for j in range(i + 1, len(unit))])


def test_mean_cosine_equals_a_plain_loop_and_scale_does_not_matter():
    table = np.random.default_rng(0).normal(size=(20, 5)) + 0.5
    found = class_similarity(table * np.arange(1, 21)[:, None], [3, 7, 1, 19])
    assert found.mean_cosine == pytest.approx(naive_mean_cosine(table[[3, 7, 1, 19]]))
    assert found.mean_cosine_all == pytest.approx(naive_mean_cosine(table))
    assert found.relative == pytest.approx(found.mean_cosine / found.mean_cosine_all - 1)
    assert class_similarity(table, np.arange(20)).relative == pytest.approx(0)


def test_classes_without_a_vector_are_left_out_and_reported():
    table = embedding_table({0: [1, 0], 2: [1, 1], 3: [0, 1]}, 5)
    found = class_similarity(table, [0, 1, 2])
    assert (found.n_classes, found.n_covered, found.n_covered_all) == (3, 2, 3)
    assert found.coverage == pytest.approx(2 / 3)
    assert found.mean_cosine == pytest.approx(np.sqrt(0.5))
    assert found.mean_cosine_all == pytest.approx((2 * np.sqrt(0.5)) / 3)


def test_fewer_than_two_vectors_have_no_similarity():
    table = embedding_table({0: [1, 0], 2: [1, 1]}, 4)
    assert class_similarity(table, [0, 1]).mean_cosine is None
    assert class_similarity(table, []).relative is None
    assert class_similarity(table, []).coverage == 0


def test_top_classes_decide_what_is_compared():
    table = np.eye(3) + 0.1
    assert top_class_similarity(table, [5, 4, 0], 100).n_classes == 2
    assert top_class_similarity(table, [5, 4, 0], 50).n_classes == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: embedding_table({}, 3),
        lambda: embedding_table({0: [1, 2], 1: [1]}, 3),
        lambda: embedding_table({3: [1.0]}, 3),
        lambda: class_similarity(np.ones(3), [0]),
        lambda: class_similarity(np.ones((3, 2)), [3]),
        lambda: class_similarity(np.ones((3, 2)), [1, 1]),
        lambda: class_similarity(np.full((3, 2), np.nan), [1]),
    ],
)
def test_bad_input(call):
    with pytest.raises(BadInput):
        call()
