"""What a queued job waits for, in words, on both databases."""

from backend.domain.jobs import Cause
from backend.store import workers
from backend.store.jobs import RetryPolicy
from backend.store.queries.attempts import stranded, waiting_for
from backend.store.session import Store
from tests.services.driver import Driver

GPU = {"index": 1, "uuid": "GPU-x", "name": "pretended", "memory_bytes": 2**30}


def announce(store: Store, name: str, queues: tuple[str, ...] = ("gpu", "cpu"), devices: tuple[dict, ...] = ()) -> None:
    with store.write() as connection:
        workers.announce(connection, name, host="h", pid=1, queues=queues, devices=devices)


def why(store: Store, job_id) -> str | None:
    with store.read() as connection:
        return waiting_for(connection, job_id)


def test_for_anybody_to_work(store: Store) -> None:
    driver = Driver(store)
    one = driver.add_one()
    assert "none is at work" in str(why(store, one))
    announce(store, "w", queues=("gpu",))
    assert "queue cpu" in str(why(store, one))
    announce(store, "w", queues=("cpu",))
    assert why(store, one) is None


def test_for_a_device(store: Store) -> None:
    driver = Driver(store)
    announce(store, "w")
    any_gpu, second, third, several = (
        driver.add_one(queue="gpu", device=device) for device in ("cuda", "cuda:1", "cuda:2", "cuda:set")
    )
    assert why(store, driver.add_one(queue="gpu")) is None
    told = str(why(store, any_gpu))
    assert "a worker with CUDA, which none of the 1 at work has" in told
    assert "device auto" in told
    with store.read() as connection:
        assert stranded(connection) == 4
    announce(store, "v", devices=(GPU,))
    assert [why(store, one) for one in (any_gpu, second, several)] == [None] * 3
    assert "a worker with cuda:2" in str(why(store, third))
    with store.read() as connection:
        assert stranded(connection) == 1


def test_a_study_waits_for_what_its_children_wait_for(store: Store) -> None:
    driver = Driver(store)
    announce(store, "w")
    study = driver.add_one(kind="study", spec={})
    driver.add_one(parent=study)
    assert why(store, study) is None
    driver.add_one(parent=study, queue="gpu", device="cuda")
    assert "CUDA" in str(why(store, study))


def test_for_other_jobs_and_for_the_next_try(store: Store) -> None:
    driver = Driver(store, retry=RetryPolicy(base_s=60.0))
    announce(store, "w")
    first = driver.add_one()
    second = driver.add_one(after=(first,))
    assert str(first) in str(why(store, second))
    claim = driver.claimed(job_id=first)
    assert why(store, first) is None
    driver.fail(claim, Cause.IO_TRANSIENT)
    assert "UTC for the next try (io_transient)" in str(why(store, first))
    driver.cancel(first)
    assert why(store, first) is None
