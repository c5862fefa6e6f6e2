"""What a study says of its pairs before anything is transferred: Roth et al., arXiv:2310.17653, §3, Fig. 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.domain.pairs import Pair
from backend.domain.records import Record


class PairSummary(Record):
    """Over the ordered pairs of a study; rates are fractions, entropies nats, correlations Spearman's.

    `n_missing` pairs have no flips yet: a model was not scored, or could not be. A correlation is None where one side
    is constant.
    """

    n_pairs: int
    n_missing: int
    positive_flip_rate_min: float
    positive_flip_rate_median: float
    positive_flip_rate_max: float
    n_weaker_teacher: int
    positive_flip_rate_min_weaker: float | None = None
    positive_flip_rate_median_weaker: float | None = None
    entropy_median_nats: float
    difference_and_positive_flips: float | None = None
    difference_and_entropy: float | None = None


def summarise_pairs(pairs: Sequence[Pair], n_missing: int = 0) -> PairSummary | None:
    """The summary of a study's pairs; None where there is none yet."""
    if not pairs:
        return None
    rates = np.array([pair.positive_flip_rate for pair in pairs])
    differences = np.array([pair.accuracy_difference for pair in pairs])
    entropies = np.array([pair.flip_entropy_nats for pair in pairs])
    weaker = rates[differences < 0]
    return PairSummary(
        n_pairs=len(pairs),
        n_missing=n_missing,
        positive_flip_rate_min=float(rates.min()),
        positive_flip_rate_median=float(np.median(rates)),
        positive_flip_rate_max=float(rates.max()),
        n_weaker_teacher=len(weaker),
        positive_flip_rate_min_weaker=float(weaker.min()) if len(weaker) else None,
        positive_flip_rate_median_weaker=float(np.median(weaker)) if len(weaker) else None,
        entropy_median_nats=float(np.median(entropies)),
        difference_and_positive_flips=spearman(differences, rates),
        difference_and_entropy=spearman(differences, entropies),
    )


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Spearman's rank correlation of two lists [N], ties by their mean rank; None where one of them is constant."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else None


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)
