"""Made ahead, and otherwise the same."""

import threading

import pytest

from workers.science.prefetch import prefetched


def test_items_and_order_are_those_of_the_source():
    assert list(prefetched(iter(range(100)), depth=3)) == list(range(100))
    assert list(prefetched(iter(()))) == []


def test_items_are_made_while_the_first_is_used():
    made = threading.Semaphore(0)

    def source():
        for i in range(10):
            made.release()
            yield i

    stream = prefetched(source(), depth=2)
    assert next(stream) == 0
    for _ in range(3):  # the first, and two more without being asked
        assert made.acquire(timeout=5)
    stream.close()


def test_an_error_comes_where_it_belongs():
    def source():
        yield 1
        raise ValueError("broken image")

    stream = prefetched(source())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken image"):
        next(stream)


def test_closing_stops_the_thread():
    count = 0

    def source():
        nonlocal count
        while True:
            count += 1
            yield count

    before = threading.active_count()
    stream = prefetched(source(), depth=2)
    assert next(stream) == 1
    stream.close()
    assert threading.active_count() == before
    assert count <= 5
