"""The sums of n ln n at the edges of the packing: odd numbers of classes, full words, classes beyond one word."""

import math

import numpy as np
import pytest

from backend.domain.flip_entropy import entropy_from_sums, flip_sums, matrix_product
from backend.domain.flips import flip_entropy


def test_threads_and_blocks_change_no_bit():
    rng = np.random.default_rng(3)
    classes = np.concatenate(
        [np.repeat(np.arange(301), 5), np.full(200, 301)]
    )  # an odd number of small classes, a large one
    correct = rng.random((150, len(classes))) < 0.6
    one, many = (flip_sums(correct, classes, threads=n) for n in (1, 5))
    np.testing.assert_array_equal(one, many)
    assert one[7, 11] > 0


def test_classes_of_63_64_65_samples_and_all_flipped():
    for size in (1, 63, 64, 65, 128, 255, 256):
        correct = np.stack([np.ones(2 * size, dtype=bool), np.zeros(2 * size, dtype=bool)])
        assert flip_entropy(correct, np.repeat([0, 1], size), 2)[0, 1] == pytest.approx(math.log(2))


def naive_sums(correct, classes, compared):
    sums = np.zeros((len(correct), len(correct)))
    for t, teacher in enumerate(correct):
        for s, student in enumerate(correct):
            flipped = teacher & ~student & compared[t] & compared[s] & (classes >= 0)
            counts = np.bincount(classes[flipped])
            sums[t, s] = sum(n * math.log(n) for n in counts.tolist() if n)
    return sums


@pytest.mark.parametrize("sizes", [(1,), (64,), (65,), (64, 1, 3), (2, 200, 64, 65, 5), (3, 0, 0, 70)])
def test_sums_equal_a_plain_loop_with_a_mask_for_every_model(sizes):
    rng = np.random.default_rng(len(sizes))
    classes = rng.permutation(np.concatenate([np.repeat(np.arange(len(sizes)), sizes), [-1, -1]]))
    correct, compared = rng.random((2, 70, len(classes))) < 0.8
    np.testing.assert_allclose(flip_sums(correct, classes, compared), naive_sums(correct, classes, compared), atol=1e-9)
    everything = np.ones_like(compared)
    np.testing.assert_allclose(flip_sums(correct, classes), naive_sums(correct, classes, everything), atol=1e-9)
    np.testing.assert_allclose(
        flip_sums(correct, classes, compared[0]),
        naive_sums(correct, classes, compared[:1].repeat(70, axis=0)),
        atol=1e-9,
    )


def test_no_sample_with_a_class_sums_to_zero():
    assert not flip_sums(np.ones((3, 5), dtype=bool), np.full(5, -1)).any()


def test_product_of_different_matrices_beyond_one_block_of_columns():
    rng = np.random.default_rng(1)
    left, right = rng.random((2, 20_000)) < 0.5, rng.random((3, 20_000)) < 0.5
    assert matrix_product(left, right).tolist() == (left.astype(int) @ right.T.astype(int)).tolist()


def test_entropy_from_sums():
    assert entropy_from_sums(np.array([0, 1, 4]), np.array([0.0, 0.0, 4 * math.log(4)])).tolist() == [0, 0, 0]
    assert entropy_from_sums(np.array([4]), np.array([0.0]))[0] == pytest.approx(math.log(4))
