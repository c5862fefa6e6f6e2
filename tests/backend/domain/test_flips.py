"""Golden values of the papers, laws on random zoos, and the vectorised counts against a plain loop."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.domain.errors import BadInput
from backend.domain.flips import (
    class_flips,
    correctness,
    count_flips,
    count_transfer,
    flip_entropy,
    flip_pairs,
    top_classes,
)

Y = np.repeat([0, 1, 2], 4)
S = np.array([0, 0, 1, 1, 1, 1, 0, 2, 2, 0, 0, 1])
T = np.array([0, 1, 0, 0, 1, 0, 1, 2, 0, 2, 2, 2])
NEW = np.array([0, 1, 0, 0, 1, 1, 1, 2, 2, 2, 2, 0])
TEACHER, STUDENT, AFTER = correctness(np.stack([T, S, NEW]), Y)


def naive_entropy(teacher, student, classes, n_classes, compared=None):
    counts = [0] * n_classes
    for i, c in enumerate(classes):
        if c >= 0 and (compared is None or compared[i]) and teacher[i] and not student[i]:
            counts[c] += 1
    total = sum(counts)
    return -sum(n / total * math.log(n / total) for n in counts if n) if total else 0.0


@st.composite
def zoos(draw):
    """A random zoo: correctness [M, N], classes [N] with some −1, C; classes both far below and above 64 samples."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_models = draw(st.integers(1, 6))
    n_classes = draw(st.integers(1, 9))
    sizes = rng.integers(0, draw(st.sampled_from([3, 70, 300])), n_classes)
    classes = np.repeat(np.arange(n_classes), sizes)
    classes = np.concatenate([classes, np.full(draw(st.integers(0, 4)), -1), [0]])
    rng.shuffle(classes)
    correct = rng.random((n_models, len(classes))) < rng.random((n_models, 1))
    return correct & (classes >= 0), classes, n_classes


def test_golden_pair():
    flips = count_flips(np.stack([TEACHER, STUDENT]))
    assert flips.positive[0, 1] / 12 == 0.5
    assert flips.negative[0, 1] / 12 == 0.25
    assert flips.right.tolist() == [8, 5]
    assert flips.right_both[0, 1] == 2
    assert flips.wrong_both[0, 1] == 1
    assert class_flips(TEACHER, STUDENT, Y, 3).positive.tolist() == [2, 1, 3]
    assert flip_entropy(np.stack([TEACHER, STUDENT]), Y, 3)[0, 1] == pytest.approx(1.011404, abs=5e-7)


def test_golden_transfer():
    counts = count_transfer(STUDENT, AFTER, TEACHER, Y, 3)
    assert counts.knowledge_gain == pytest.approx(0.416667, abs=5e-7)
    assert counts.knowledge_loss == pytest.approx(0.083333, abs=5e-7)
    assert counts.transfer_delta == pytest.approx(0.333333, abs=5e-7)
    assert counts.positive_flip_rate_delta == pytest.approx(-0.416667, abs=5e-7)
    assert counts.negative_flip_rate_delta == pytest.approx(-0.083333, abs=5e-7)
    assert counts.transfer_rate[100] == pytest.approx(0.833333, abs=5e-7)
    # 50 % of the six flips are the three of class 2, of which two were learned.
    assert counts.transfer_rate[50] == pytest.approx(2 / 3)
    assert counts.student_accuracy_after - counts.student_accuracy_before == pytest.approx(counts.transfer_delta)


def test_no_transfer_changes_nothing_and_transfers_nothing():
    counts = count_transfer(STUDENT, STUDENT, TEACHER, Y, 3)
    assert (counts.knowledge_gain, counts.knowledge_loss, counts.transfer_delta) == (0, 0, 0)
    assert set(counts.transfer_rate.values()) == {0.0}


def test_transfer_rate_is_none_without_a_flip_to_learn_from():
    counts = count_transfer(STUDENT, AFTER, STUDENT & TEACHER, Y, 3)
    assert set(counts.transfer_rate.values()) == {None}


def test_transfer_leaves_out_samples_without_a_class():
    classes = np.where(np.arange(12) < 4, Y, -1)
    counts = count_transfer(STUDENT, AFTER, TEACHER, classes, 3)
    assert counts.n_samples == 4
    assert counts.transfer_delta == ((NEW[:4] == 0).sum() - (S[:4] == 0).sum()) / 4


def test_golden_top_classes():
    counts = [10, 7, 5, 3, 2, 1, 1, 1, 0, 0]
    assert [len(top_classes(counts, p)) for p in (2, 5, 20, 50, 100)] == [1, 1, 1, 2, 8]
    assert top_classes(counts, 100).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("counts", "p", "expected"),
    [
        ([1, 3, 3], 40, [1]),  # 40 % of 7 is 2.8: class 1 has 3; the tie goes to the smaller index
        ([1] * 10, 30, [0, 1, 2]),  # exactly 3, not 4, whatever 0.3 * 10 rounds to
        ([1] * 1000, 0.1, [0]),
        ([1] * 1000, Fraction(1, 3), [0, 1, 2, 3]),
        ([0, 0], 50, []),
        ([0, 5], 100, [1]),
    ],
)
def test_top_classes_are_the_fewest_and_exact(counts, p, expected):
    assert top_classes(counts, p).tolist() == expected


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 100))
def test_top_classes_reach_p_and_one_fewer_does_not(counts, p):
    chosen = top_classes(counts, p)
    reached = sum(counts[c] for c in chosen)
    assert reached * 100 >= p * sum(counts)
    if len(chosen):
        assert (reached - counts[chosen[-1]]) * 100 < p * sum(counts)


@given(zoos())
@settings(max_examples=60, deadline=None)
def test_counts_and_entropy_equal_a_plain_loop(zoo):
    correct, classes, n_classes = zoo
    flips, entropy = count_flips(correct), flip_entropy(correct, classes, n_classes, threads=2)
    for t, teacher in enumerate(correct):
        for s, student in enumerate(correct):
            assert flips.positive[t, s] == sum(a and not b for a, b in zip(teacher, student, strict=True))
            assert flips.right_both[t, s] == sum(a and b for a, b in zip(teacher, student, strict=True))
            assert entropy[t, s] == pytest.approx(naive_entropy(teacher, student, classes, n_classes), abs=1e-12)


@given(zoos(), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_masks_per_model_equal_counting_on_the_shared_samples(zoo, seed):
    correct, classes, n_classes = zoo
    compared = np.random.default_rng(seed).random(correct.shape) < 0.7
    table = flip_pairs(correct, classes, n_classes, compared)
    rows = {(t, s): i for i, (t, s) in enumerate(zip(table.teacher, table.student, strict=True))}
    for t in range(len(correct)):
        for s in range(len(correct)):
            shared = compared[t] & compared[s] & (classes >= 0)
            if t == s or not shared.any():
                assert (t, s) not in rows
                continue
            i, teacher, student = rows[t, s], correct[t, shared], correct[s, shared]
            assert table.n_samples[i] == shared.sum()
            assert table.n_classes[i] == len(set(classes[shared]))
            assert table.teacher_accuracy[i] == teacher.mean()
            assert table.student_accuracy[i] == student.mean()
            assert table.positive_flips[i] == (teacher & ~student).sum()
            assert table.negative_flips[i] == (student & ~teacher).sum()
            assert table.flip_entropy_nats[i] == pytest.approx(
                naive_entropy(teacher, student, classes[shared], n_classes), abs=1e-12
            )


@given(zoos())
@settings(max_examples=40, deadline=None)
def test_laws_of_a_pair_table(zoo):
    correct, classes, n_classes = zoo
    table = flip_pairs(correct, classes, n_classes)
    m = len(correct)
    assert len(table) == m * (m - 1)
    assert table.n_incomparable == 0
    assert (table.positive_flips - table.negative_flips == (table.accuracy_difference * table.n_samples).round()).all()
    np.testing.assert_allclose(
        table.positive_flip_rate - table.negative_flip_rate, table.accuracy_difference, atol=1e-12
    )
    np.testing.assert_allclose(table.teacher_accuracy - table.student_accuracy, table.accuracy_difference, atol=1e-12)
    by_pair = {(t, s): i for i, (t, s) in enumerate(zip(table.teacher, table.student, strict=True))}
    back = [by_pair[s, t] for t, s in zip(table.teacher, table.student, strict=True)]
    np.testing.assert_array_equal(table.positive_flips, table.negative_flips[back])
    np.testing.assert_array_equal(table.mcnemar_p_value, table.mcnemar_p_value[back])
    for name in ("positive_flip_rate", "negative_flip_rate", "accuracy_difference"):
        value, low, high = (getattr(table, name + end) for end in ("", "_low", "_high"))
        assert (low <= value + 1e-12).all()
        assert (value <= high + 1e-12).all()
    assert (table.flip_entropy_nats <= math.log(n_classes) + 1e-12).all()


@given(zoos(), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_order_of_samples_and_names_of_classes_do_not_matter(zoo, seed):
    correct, classes, n_classes = zoo
    rng = np.random.default_rng(seed)
    shuffled, renamed = rng.permutation(len(classes)), rng.permutation(n_classes)
    other = np.where(classes >= 0, renamed[classes], -1)[shuffled]
    np.testing.assert_allclose(
        flip_entropy(correct[:, shuffled], other, n_classes), flip_entropy(correct, classes, n_classes), atol=1e-12
    )
    np.testing.assert_array_equal(count_flips(correct[:, shuffled]).positive, count_flips(correct).positive)


def test_flips_spread_evenly_over_a_thousand_classes_have_the_largest_entropy():
    correct = np.stack([np.ones(2000, dtype=bool), np.zeros(2000, dtype=bool)])
    entropy = flip_entropy(correct, np.repeat(np.arange(1000), 2), 1000)
    assert entropy[0, 1] == pytest.approx(6.9078, abs=5e-5)
    assert entropy[1, 0] == 0
    assert entropy[0, 0] == 0


def test_counts_stay_exact_beyond_one_block_of_columns():
    rng = np.random.default_rng(5)
    correct = rng.random((3, 20_001)) < 0.5
    flips = count_flips(correct)
    assert flips.right_both[0, 1] == np.count_nonzero(correct[0] & correct[1])
    assert flips.positive[2, 1] == np.count_nonzero(correct[2] & ~correct[1])


def test_samples_without_a_label_are_compared_by_nobody():
    correct = correctness(np.stack([T, S]), np.where(np.arange(12) % 4 == 0, -1, Y))
    table = flip_pairs(correct, np.where(np.arange(12) % 4 == 0, -1, Y), 3)
    assert table.n_samples.tolist() == [9, 9]
    # Samples 0, 4 and 8 are out: twice both were right, once only the student was.
    assert (table.right_both[0], table.positive_flips[0], table.negative_flips[0]) == (0, 6, 2)
    assert table.n_classes.tolist() == [3, 3]


def test_pairs_without_a_common_sample_are_counted_not_listed():
    compared = np.zeros((3, 12), dtype=bool)
    compared[:2, :4], compared[2, 4:] = True, True
    table = flip_pairs(np.stack([TEACHER, STUDENT, AFTER]), Y, 3, compared)
    assert list(zip(table.teacher, table.student, strict=True)) == [(0, 1), (1, 0)]
    assert table.n_incomparable == 4
    assert table.n_classes.tolist() == [1, 1]


def test_class_flips_sorted_by_share_with_ties_by_index():
    counts = class_flips(TEACHER, STUDENT, np.where(Y == 2, 3, Y), 5)
    assert counts.n_samples.tolist() == [4, 4, 0, 4, 0]
    assert counts.positive_share.tolist() == [0.5, 0.25, 0, 0.75, 0]
    assert counts.negative.tolist() == [1, 1, 0, 1, 0]
    assert counts.descending().tolist() == [3, 0, 1, 2, 4]


def test_class_flips_of_fifty_thousand_samples_take_about_a_millisecond():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 1000, 50_000)
    teacher, student = rng.random((2, 50_000)) < 0.7
    durations_s = []
    for _ in range(30):
        start = time.perf_counter()
        class_flips(teacher, student, classes, 1000)
        durations_s.append(time.perf_counter() - start)
    # The fastest run measures the code, not the neighbours on the machine; 0.4 ms where this was written.
    assert min(durations_s) < 2e-3


def test_a_zoo_of_one_model_has_no_pairs():
    assert len(flip_pairs(TEACHER[None], Y, 3)) == 0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((np.ones((2, 3)), [0, 1, 2], 3), "correct"),
        ((np.ones(3, dtype=bool), [0, 1, 2], 3), "correct"),
        ((np.ones((2, 0), dtype=bool), [0], 3), "correct"),
        ((np.ones((2, 3), dtype=bool), [0, 1], 3), "classes"),
        ((np.ones((2, 3), dtype=bool), [0, 1, 3], 3), "labels"),
        ((np.ones((2, 3), dtype=bool), [0, 1, -2], 3), "labels"),
        ((np.ones((2, 3), dtype=bool), [0.0, 1.0, 2.0], 3), "labels"),
        ((np.ones((2, 3), dtype=bool), [0, 1, 2], 3, np.ones(4, dtype=bool)), "compared"),
    ],
)
def test_bad_input_names_the_field(arguments, field):
    with pytest.raises(BadInput) as caught:
        flip_pairs(*arguments)
    assert caught.value.field == field


@pytest.mark.parametrize("p", [0, -1, 100.5])
def test_top_classes_refuse_impossible_percentages(p):
    with pytest.raises(BadInput, match="p:"):
        top_classes([1, 2], p)
