"""The order in which samples are met: a pure function of (seed, epoch), so that training resumes anywhere."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def epoch_order(n_samples: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The positions 0..n_samples-1 in the order of one epoch (0-based)."""
    return np.random.default_rng([seed, epoch]).permutation(n_samples).astype(np.int64)


def share_bounds(first: int, last: int, rank: int, ranks: int) -> tuple[int, int]:
    """One rank's part of a batch that lies at first … last: nearly equal, in the order of the ranks."""
    n = last - first
    return first + n * rank // ranks, first + n * (rank + 1) // ranks


def batch_bounds(n_samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Where each batch of an epoch begins and ends.

    As few batches as hold all samples, of sizes that differ by one at most: none is larger than `batch_size`, every
    sample is met once in every epoch, and BatchNorm never meets a remainder of a few samples, which wrecks its running
    statistics. Where `batch_size` divides `n_samples` all batches have that size.
    """
    n_batches = -(-n_samples // batch_size)
    if n_batches > 1 and batch_size > 1 and n_samples // n_batches < 2:
        n_batches -= 1  # no batch of a single sample: one is a sample larger instead
    edges = [round(i * n_samples / n_batches) for i in range(n_batches + 1)] if n_batches else [0]
    return list(pairwise(edges))
