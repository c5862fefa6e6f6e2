"""The numbers of /metrics, on SQLite and on Postgres."""

from backend.domain.jobs import Cause
from backend.store import workers
from backend.store.queries.attempts import last_cause, to_work
from backend.store.queries.metrics import read_metrics
from backend.store.session import Store
from tests.services.driver import Driver


def test_an_empty_store(database_url):
    store = Store.open(database_url)
    with store.read() as connection:
        found = read_metrics(connection)
    assert set(found.jobs.values()) == {0}
    assert found.queue_depth == {"gpu": 0, "cpu": 0}
    assert (found.oldest_queued_s, found.oldest_heartbeat_s, found.attempts, found.workers) == (None, None, 0, 0)
    store.close()


def test_counts_ages_and_losses(database_url):
    store = Store.open(database_url)
    driver = Driver(store)
    driver.add(3)
    driver.add(2, queue="gpu")
    driver.study(2)
    driver.claimed()
    driver.fail(driver.claimed(), Cause.BAD_INPUT)
    with store.write() as connection:
        workers.announce(connection, "w", host="h", pid=1, queues=["cpu"])
    with store.read() as connection:
        found = read_metrics(connection)
    assert (found.jobs["failed"], found.jobs["running"], sum(found.jobs.values())) == (1, 1, 8)
    assert sum(found.queue_depth.values()) == 5
    assert sum(found.running.values()) == 1
    assert found.attempts == 2
    assert found.losses == {"bad_input": 1}
    assert found.workers == 1
    assert 0 <= found.oldest_heartbeat_s < 60
    assert 0 <= found.oldest_queued_s < 60
    assert found.expired_leases == 0
    store.close()


def test_what_attaching_has_to_work(database_url):
    store = Store.open(database_url)
    driver = Driver(store)
    first = driver.add_one()
    second = driver.add_one(after=(first,))
    parent, children = driver.study(2)
    last = driver.add_one(after=(second, parent))
    driver.add_one()
    with store.read() as connection:
        assert to_work(connection, second) == [first, second]
        assert sorted(to_work(connection, parent)) == sorted(children)
        assert set(to_work(connection, last)) == {first, second, *children, last}
    driver.publish(driver.claimed(job_id=first))
    with store.read() as connection:
        assert to_work(connection, second) == [second]
    store.close()


def test_the_cause_of_the_attempt_before(database_url):
    store = Store.open(database_url)
    driver = Driver(store)
    one = driver.add_one()
    with store.read() as connection:
        assert last_cause(connection, one) is None
    driver.fail(driver.claimed(), Cause.HOST_OOM)
    driver.claimed()
    with store.read() as connection:
        assert last_cause(connection, one) == "host_oom"
    store.close()
