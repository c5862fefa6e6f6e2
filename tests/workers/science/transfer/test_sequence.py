"""The turns of several teachers."""

from workers.science.transfer.sequence import sequence_order

ACCURACIES = {"b": 0.7, "a": 0.9, "d": 0.7, "c": 0.5}


def test_orders():
    assert sequence_order(ACCURACIES, "given") == ["b", "a", "d", "c"]
    assert sequence_order(ACCURACIES, "ascending") == ["c", "b", "d", "a"]
    assert sequence_order(ACCURACIES, "descending") == ["a", "b", "d", "c"]


def test_random_is_fixed_by_the_seed():
    orders = {tuple(sequence_order(ACCURACIES, "random", seed)) for seed in range(40)}
    assert len(orders) > 10
    assert all(sorted(order) == sorted(ACCURACIES) for order in orders)
    assert sequence_order(ACCURACIES, "random", 7) == sequence_order(ACCURACIES, "random", 7)
