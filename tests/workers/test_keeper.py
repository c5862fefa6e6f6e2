"""The thread that renews leases: what it tells, and when it may take jobs away."""

import time

import pytest

from backend.domain.errors import StoreUnavailable
from backend.settings import Settings
from backend.store import jobs
from backend.store.job_records import new_id
from backend.store.session import Store
from backend.store.tables import jobs as job_table
from backend.store.workers import list_workers
from workers.keeper import Keeper


class Flaky:
    """A store that can be away."""

    def __init__(self, store):
        self.store, self.away = store, False

    def write(self):
        return self._open(self.store.write)

    def read(self):
        return self._open(self.store.read)

    def _open(self, how):
        if self.away:
            raise StoreUnavailable("away")
        return how()


@pytest.fixture
def store(sqlite_url):
    opened = Flaky(Store.open(sqlite_url))
    yield opened
    opened.store.close()


@pytest.fixture
def make(store, tmp_path):
    made = []

    def keeper(announcement=None, **changes):
        values = {"heartbeat_s": 0.05, "lease_s": 5.0, "reaper_s": 0.05, "reaper_guard_s": 0.5, **changes}
        one = Keeper(Settings(data_dir=tmp_path, **values), store, lambda: None, announcement)
        made.append(one)
        return one

    yield keeper
    for one in made:
        one.stop()


def claim(store, lease_s=5.0):
    one = new_id()
    with store.write() as connection:
        jobs.add(connection, [jobs.NewJob("sleep", "cpu", {}, one)])
        found = jobs.claim(connection, worker="w", host="h", lease_s=lease_s)
    return found


def until(true, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


def lease(store, job_id):
    with store.read() as connection:
        return connection.scalar(
            job_table.select().with_only_columns(job_table.c.lease_until).where(job_table.c.id == job_id)
        )


def test_leases_are_renewed(store, make):
    one = claim(store, lease_s=1.0)
    before = lease(store, one.job.id)
    keeper = make()
    keeper.hold(one.job.id, one.fence)
    keeper.start()
    assert until(lambda: lease(store, one.job.id) > before + 3.0)
    assert not keeper.notices


def test_a_cancel_is_told_once(store, make):
    one = claim(store)
    keeper = make(heartbeat_s=100.0, reaper_s=100.0)
    keeper.settings = keeper.settings.model_copy(update={"heartbeat_s": 0.05})
    keeper.hold(one.job.id, one.fence)
    keeper.start()
    with store.write() as connection:
        jobs.cancel(connection, one.job.id)
    assert until(lambda: bool(keeper.notices))
    time.sleep(0.3)
    assert list(keeper.notices) == [(one.job.id, one.fence, "cancel")]


def test_a_lease_that_went_to_another_is_told_as_lost(store, make):
    one = claim(store)
    with store.write() as connection:
        jobs.release(connection, one.job.id, one.fence)
    keeper = make()
    keeper.hold(one.job.id, one.fence)
    keeper.start()
    assert until(lambda: (one.job.id, one.fence, "lost") in keeper.notices)


def test_nobody_is_reaped_until_the_store_was_reachable_for_the_guard_without_a_break(store, make):
    one = claim(store, lease_s=0.01)
    keeper = make(reaper_guard_s=1.0)
    keeper.start()
    assert until(lambda: keeper.reachable_since is not None)
    time.sleep(0.5)
    store.away = True
    assert until(lambda: keeper.reachable_since is None)
    store.away = False
    assert until(lambda: keeper.reachable_since is not None)
    back = time.monotonic()
    assert until(lambda: lease(store, one.job.id) is None)
    assert time.monotonic() - back > 0.8


def test_without_the_guard_a_job_is_taken_away_at_once(store, make, tmp_path):
    one = claim(store, lease_s=0.01)
    settings = Settings(data_dir=tmp_path, disabled_guards="reaper_guard")
    unguarded = Flaky(Store.open(str(store.store.url), settings=settings))
    keeper = make(reaper_guard_s=60.0)
    keeper.store = unguarded
    keeper.start()
    assert until(lambda: lease(store, one.job.id) is None, 3.0)
    keeper.stop()
    unguarded.store.close()


def test_a_worker_announces_itself_and_leaves(store, make):
    keeper = make({"name": "me", "host": "h", "pid": 7, "queues": ["cpu"]})
    keeper.start()

    def names():
        with store.read() as connection:
            return [one.name for one in list_workers(connection)]

    assert until(lambda: names() == ["me"])
    keeper.stop()
    assert names() == []


def test_a_fault_of_its_own_is_not_swallowed(store, make, monkeypatch):
    keeper = make()
    monkeypatch.setattr(keeper, "_look", lambda: 1 / 0)
    keeper.start()
    assert until(lambda: isinstance(keeper.failure, ZeroDivisionError))
