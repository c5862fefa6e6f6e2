"""Published worked examples, exact sums, and coverage on simulated zoos."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control

from backend.domain.errors import BadInput
from backend.domain.intervals import (
    benjamini_hochberg,
    bootstrap_mean,
    bootstrap_pair,
    mcnemar_log_p_value,
    mcnemar_p_value,
    newcombe_paired_interval,
    wilson_interval,
)


def exact_log_p(few: int, discordant: int) -> float:
    """In whole numbers: log of 2 Σ_{i ≤ few} C(n, i) / 2ⁿ."""
    term = tail = 1
    for i in range(few):
        term = term * (discordant - i) // (i + 1)
        tail += term
    return math.log(tail) - (discordant - 1) * math.log(2)


def test_wilson_worked_examples():
    """Newcombe, Statistics in Medicine 17 (1998) 857, table I."""
    low, high = wilson_interval([81, 15, 0, 1], [263, 148, 20, 29])
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)


def test_wilson_at_the_ends():
    low, high = wilson_interval([0, 5, 0], [5, 5, 0])
    assert low[0] == 0
    assert high[1] == 1
    assert (low[2], high[2]) == (0, 1)


def test_wilson_of_the_complement_is_mirrored():
    low, high = wilson_interval(np.arange(101), np.full(101, 100))
    np.testing.assert_allclose(low, 1 - high[::-1], atol=1e-12)


def test_newcombe_worked_examples():
    """Altman et al., Statistics with Confidence (2000), table 6.2; Fagerland et al. (2017), ch. 8 (Bentur et al.)."""
    low, high = newcombe_paired_interval([14, 1], [5, 1], [0, 7], [41, 21])
    np.testing.assert_allclose(low, [0.011, -0.507], atol=5e-4)
    np.testing.assert_allclose(high, [0.226, -0.026], atol=5e-4)


def test_newcombe_of_the_reversed_pair_is_mirrored():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(50, [0.4, 0.2, 0.1, 0.3], size=200)
    low, high = newcombe_paired_interval(counts[:, 0], counts[:, 1], counts[:, 2], 50)
    back_low, back_high = newcombe_paired_interval(counts[:, 0], counts[:, 2], counts[:, 1], 50)
    np.testing.assert_allclose(low, -back_high, atol=1e-12)
    np.testing.assert_allclose(high, -back_low, atol=1e-12)


def test_newcombe_without_any_disagreement_contains_zero():
    low, high = newcombe_paired_interval([10, 0, 5], [0, 0, 0], [0, 0, 0], [10, 10, 10])
    assert (low <= 0).all()
    assert (high >= 0).all()
    assert (high < 0.35).all()


def test_intervals_cover_the_truth_in_about_95_percent():
    p = np.array([0.65, 0.12, 0.05, 0.18])
    drawn = np.random.default_rng(1).multinomial(400, p, size=20_000)
    low, high = newcombe_paired_interval(drawn[:, 0], drawn[:, 1], drawn[:, 2], 400)
    assert ((low <= 0.07) & (high >= 0.07)).mean() == pytest.approx(0.95, abs=0.01)
    low, high = wilson_interval(drawn[:, 1], np.full(20_000, 400))
    assert ((low <= 0.12) & (high >= 0.12)).mean() == pytest.approx(0.95, abs=0.01)


def test_mcnemar_is_the_exact_binomial_test():
    pairs = [(0, 0), (1, 7), (7, 1), (3, 3), (0, 1), (10, 25), (400, 480)]
    values = mcnemar_p_value(*np.array(pairs).T)
    for (b, c), value in zip(pairs, values, strict=True):
        assert value == pytest.approx(binomtest(b, b + c).pvalue if b + c else 1.0, rel=1e-9)
    assert mcnemar_p_value(1, 7) == pytest.approx(0.0703125, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_symmetric_and_at_most_one(b, c):
    value = float(mcnemar_p_value(b, c))
    assert value == mcnemar_p_value(c, b)
    assert 0 < value <= 1
    assert (value > 1 - 1e-12) == (abs(b - c) <= 1)


@pytest.mark.parametrize(("b", "c"), [(5, 7), (100, 400), (0, 5000), (100, 20_000), (4000, 9000), (20_000, 29_000)])
def test_log_p_holds_where_no_float_does(b, c):
    assert mcnemar_log_p_value(b, c) == pytest.approx(exact_log_p(b, b + c), rel=1e-9)


def test_huge_counts_underflow_to_zero_without_a_warning():
    assert mcnemar_p_value(100, 20_000) == 0
    assert mcnemar_log_p_value([100, 3], [20_000, 3]).tolist()[1] == 0


def test_benjamini_hochberg_equals_scipy():
    p = np.random.default_rng(2).random(50) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))
    assert benjamini_hochberg([0.03]).tolist() == [0.03]
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]).tolist() == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert benjamini_hochberg([]).tolist() == []


def test_bootstrap_is_seeded_and_close_to_the_closed_forms():
    one, again = bootstrap_pair(650, 120, 50, 180), bootstrap_pair(650, 120, 50, 180)
    assert one == again
    assert one != bootstrap_pair(650, 120, 50, 180, seed=1)
    low, high = newcombe_paired_interval(650, 120, 50, 1000)
    assert one.accuracy_difference.low == pytest.approx(float(low), abs=2e-3)
    assert one.accuracy_difference.high == pytest.approx(float(high), abs=2e-3)
    low, high = wilson_interval(120, 1000)
    assert one.positive_flip_rate.low == pytest.approx(float(low), abs=3e-3)
    assert one.positive_flip_rate.high == pytest.approx(float(high), abs=3e-3)
    assert one.teacher_accuracy.low < 0.77 < one.teacher_accuracy.high
    assert one.student_accuracy.low < 0.70 < one.student_accuracy.high


def test_bootstrap_of_the_mean_of_paired_differences_is_the_pairs_interval():
    values = np.repeat([0, 1, -1], [830, 120, 50])
    interval, means = bootstrap_mean(values)
    assert len(means) == 10_000
    expected = bootstrap_pair(650, 120, 50, 180).accuracy_difference
    assert interval.low == pytest.approx(expected.low, abs=2e-3)
    assert interval.high == pytest.approx(expected.high, abs=2e-3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(1, 2, level=1.0),
        lambda: newcombe_paired_interval(5, 5, 5, 10),
        lambda: mcnemar_p_value(-1, 2),
        lambda: benjamini_hochberg([1.5]),
        lambda: bootstrap_pair(0, 0, 0, 0),
        lambda: bootstrap_mean([float("nan")]),
        lambda: bootstrap_mean([]),
    ],
)
def test_bad_input(call):
    with pytest.raises(BadInput):
        call()
