"""Every sample once an epoch, in an order fixed by seed and epoch."""

import numpy as np
import pytest

from workers.science.order import batch_bounds, epoch_order


def test_an_epoch_meets_every_sample_once_in_its_own_order():
    orders = [epoch_order(50, seed=1, epoch=e) for e in range(3)]
    for order in orders:
        assert sorted(order) == list(range(50))
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[2], epoch_order(50, seed=1, epoch=2))
    assert not np.array_equal(orders[0], epoch_order(50, seed=2, epoch=0))


@pytest.mark.parametrize(
    "n, size, bounds",
    [
        (6, 3, [(0, 3), (3, 6)]),
        (8, 3, [(0, 3), (3, 5), (5, 8)]),
        (7, 3, [(0, 2), (2, 5), (5, 7)]),
        (3, 2, [(0, 3)]),  # rather one too many than one alone
        (1, 3, [(0, 1)]),
        (3, 1, [(0, 1), (1, 2), (2, 3)]),
        (0, 3, []),
    ],
)
def test_bounds(n, size, bounds):
    assert batch_bounds(n, size) == bounds


@pytest.mark.parametrize("n", [2, 63, 64, 65, 129, 900])
@pytest.mark.parametrize("size", [2, 7, 64])
def test_batches_are_nearly_equal_and_never_single(n, size):
    sizes = [stop - start for start, stop in batch_bounds(n, size)]
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    assert max(sizes) <= size + (size == 2)
