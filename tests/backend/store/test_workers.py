"""The supervisors' registry."""

from __future__ import annotations

from backend.store import workers
from backend.store.session import Store


def test_a_supervisor_is_one_row_however_often_it_says_hello(store: Store) -> None:
    with store.write() as connection:
        workers.announce(connection, "w1", host="h", pid=7, queues=["gpu", "cpu"], devices=[{"index": 0}])
    with store.write() as connection:
        workers.announce(connection, "w1", host="h", pid=7, queues=["cpu"], versions={"torch": "2"})
        [one] = workers.list_workers(connection)
    assert (one.queues, one.devices, one.versions, one.pid) == (("cpu",), (), {"torch": "2"}, 7)
    assert one.started_at is not None
    assert one.seen_at is not None
    assert one.seen_at >= one.started_at  # SQLite's clock ticks in milliseconds
    assert 0 <= one.seen_s_ago < 60


def test_a_new_process_under_an_old_name_starts_anew(store: Store) -> None:
    for pid in (7, 8):
        with store.write() as connection:
            workers.announce(connection, "w1", host="h", pid=pid, queues=["cpu"])
    with store.read() as connection:
        [one] = workers.list_workers(connection)
    assert one.pid == 8
    assert one.started_at is not None
    assert one.seen_at is not None
    assert (one.seen_at - one.started_at).total_seconds() < 0.001


def test_who_left_or_was_not_seen_lately_is_not_listed(store: Store) -> None:
    with store.write() as connection:
        workers.announce(connection, "w1", host="h", pid=7, queues=["cpu"])
        workers.announce(connection, "w2", host="h", pid=8, queues=["cpu"])
        workers.leave(connection, "w1")
        workers.leave(connection, "w1")
        assert [one.name for one in workers.list_workers(connection)] == ["w2"]
        assert workers.list_workers(connection, seen_within_s=-1.0) == []
