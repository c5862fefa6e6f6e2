"""The order in which samples are met: a pure function of (seed, epoch), so that training resumes anywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def epoch_order(n_samples: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The positions 0..n_samples-1 in the order of one epoch (0-based)."""
    return np.random.default_rng([seed, epoch]).permutation(n_samples).astype(np.int64)


def batch_bounds(n_samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Where each batch of an epoch begins and ends.

    The last, incomplete batch is kept. One of a single sample is merged into the batch before it (BatchNorm has no
    variance of one sample), so that every sample is met once in every epoch.
    """
    starts = list(range(0, n_samples, batch_size))
    if len(starts) > 1 and batch_size > 1 and n_samples - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n_samples], strict=True))
