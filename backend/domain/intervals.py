"""How sure a rate is: closed-form intervals, an exact test, false-discovery control, and a seeded bootstrap.

A pair of models on N samples is a 2×2 table: right_both, positive (teacher right, student wrong), negative (teacher
wrong, student right), wrong_both. Everything here is vectorised over tables; intervals are two-sided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.domain.errors import BadInput

Floats = NDArray[np.float64]

BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class PairIntervals:
    """Bootstrap intervals of one pair's rates (fractions)."""

    teacher_accuracy: Interval
    student_accuracy: Interval
    accuracy_difference: Interval
    positive_flip_rate: Interval
    negative_flip_rate: Interval


def wilson_interval(count: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson's score interval of a proportion count / n, inside [0, 1]; (0, 1) where n is 0.

    E. B. Wilson, JASA 22 (1927): (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n).
    """
    k, trials = np.asarray(count, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if (k < 0).any() or (k > trials).any():
        raise BadInput("count", (k.min(), k.max()), "a count lies between 0 and n")
    z2 = _z(level) ** 2
    middle = k + z2 / 2
    # k (n − k) / n = n p (1 − p): nothing is lost where p is 0 or 1.
    half = _z(level) * np.sqrt(k * (trials - k) / np.maximum(trials, 1) + z2 / 4)
    scale = trials + z2
    low = np.where(k == 0, 0.0, np.maximum((middle - half) / scale, 0.0))
    high = np.where(k == trials, 1.0, np.minimum((middle + half) / scale, 1.0))
    return low, high


def newcombe_paired_interval(
    right_both: ArrayLike, positive: ArrayLike, negative: ArrayLike, n: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Interval of a paired difference of proportions, (positive − negative) / n, inside [−1, 1].

    R. G. Newcombe, Statistics in Medicine 17 (1998) 2635, method 10: Wilson limits of the two accuracies joined with
    the correlation φ of the table (its numerator reduced by n/2, to no less than 0, where it is positive).
    """
    a, b, c, trials = (np.asarray(x, dtype=np.float64) for x in (right_both, positive, negative, n))
    d = trials - a - b - c
    if (np.minimum(np.minimum(a, b), np.minimum(c, d)) < 0).any():
        raise BadInput("counts", "below 0", "the four counts of a pair are not negative and sum to n")
    p1, p2 = (a + b) / np.maximum(trials, 1), (a + c) / np.maximum(trials, 1)
    l1, u1 = wilson_interval(a + b, trials, level)
    l2, u2 = wilson_interval(a + c, trials, level)
    cross = a * d - b * c
    cross = np.where(cross > 0, np.maximum(cross - trials / 2, 0.0), cross)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    phi = np.where(margins > 0, cross / np.sqrt(np.maximum(margins, 1.0)), 0.0)

    def distance(x: Floats, y: Floats) -> Floats:
        return np.sqrt(np.maximum(x * x - 2 * phi * x * y + y * y, 0.0))

    low = p1 - p2 - distance(p1 - l1, u2 - p2)
    high = p1 - p2 + distance(p2 - l2, u1 - p1)
    return np.maximum(low, -1.0), np.minimum(high, 1.0)


def mcnemar_p_value(positive: ArrayLike, negative: ArrayLike) -> Floats:
    """Exact two-sided McNemar test that two models are equally accurate: min(1, 2 P[Bin(b + c, ½) ≤ min(b, c)]).

    1 where the models differ nowhere. 0 where the value is below 1e-308; `mcnemar_log_p_value` has it then.
    """
    from scipy.special import bdtr

    few, discordant = _discordant(positive, negative)
    return np.where(2 * few == discordant, 1.0, np.minimum(2 * bdtr(few, discordant, 0.5), 1.0))


def mcnemar_log_p_value(positive: ArrayLike, negative: ArrayLike) -> Floats:
    """Natural logarithm of `mcnemar_p_value`, for pairs whose p-value no float can hold."""
    from scipy.special import gammaln

    p = np.atleast_1d(mcnemar_p_value(positive, negative))
    logs = np.log(p, out=np.full_like(p, -np.inf), where=p > 0)
    few, discordant = np.broadcast_arrays(*(np.atleast_1d(x) for x in _discordant(positive, negative)))
    tiny = p < 1e-290
    if tiny.any():
        k, n = few[tiny].astype(np.float64), discordant[tiny].astype(np.float64)
        # Σ_{i ≤ k} C(n, i) = C(n, k) · (1 + k/(n−k+1) + k(k−1)/((n−k+1)(n−k+2)) + …), a fast series as k ≪ n / 2.
        term, series, j = np.ones_like(k), np.ones_like(k), 0
        while (term > 1e-17 * series).any():
            term = term * np.maximum(k - j, 0.0) / (n - k + 1 + j)
            series += term
            j += 1
        choose = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        logs[tiny] = math.log(2) * (1 - n) + choose + np.log(series)
    return logs.reshape(np.broadcast(np.asarray(positive), np.asarray(negative)).shape)


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """p-values adjusted for a false-discovery rate: rejecting all below q lets at most a share q be false.

    Y. Benjamini and Y. Hochberg, JRSS B 57 (1995). Same shape and order as given; one p-value stays as it is.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise BadInput("p_values", (float(p.min()), float(p.max())), "p-values lie between 0 and 1")
    flat = p.ravel()
    order = np.argsort(flat)
    scaled = flat[order] * len(flat) / np.arange(1, len(flat) + 1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted.reshape(p.shape)


def bootstrap_pair(
    right_both: int,
    positive: int,
    negative: int,
    wrong_both: int,
    *,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> PairIntervals:
    """Percentile intervals from `draws` multinomial draws of the 2×2 table: resampling the samples, exactly.

    Seeded: the same counts give the same interval everywhere.
    """
    counts = np.array([right_both, positive, negative, wrong_both], dtype=np.int64)
    n = int(counts.sum())
    if n < 1 or (counts < 0).any():
        raise BadInput("counts", counts.tolist(), "four counts ≥ 0 with at least one sample are needed")
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=draws) / n
    both, plus, minus = drawn[:, 0], drawn[:, 1], drawn[:, 2]
    return PairIntervals(
        teacher_accuracy=_percentile(both + plus, level),
        student_accuracy=_percentile(both + minus, level),
        accuracy_difference=_percentile(plus - minus, level),
        positive_flip_rate=_percentile(plus, level),
        negative_flip_rate=_percentile(minus, level),
    )


def bootstrap_mean(
    values: ArrayLike, *, draws: int = BOOTSTRAP_DRAWS, seed: int = 0, level: float = 0.95
) -> tuple[Interval, Floats]:
    """Percentile interval of a mean over samples, and the drawn means [draws].

    `values` [N] per-sample numbers (0/1 of a rate, −1/0/1 of a paired difference): equal values are drawn together, so
    the cost grows with the number of different values, not with N.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0 or not np.isfinite(array).all():
        raise BadInput("values", array.size, "at least one finite number is needed")
    levels, counts = np.unique(array, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(array), counts / len(array), size=draws)
    means = drawn @ levels / len(array)
    return _percentile(means, level), means


def _percentile(drawn: Floats, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise BadInput("level", level, "a confidence level lies between 0 and 1")
    return NormalDist().inv_cdf((1 + level) / 2)


def _discordant(positive: ArrayLike, negative: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    b, c = np.asarray(positive, dtype=np.int64), np.asarray(negative, dtype=np.int64)
    if (b < 0).any() or (c < 0).any():
        raise BadInput("counts", "below 0", "counts of flips are not negative")
    return np.minimum(b, c), b + c
