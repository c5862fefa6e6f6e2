"""Only files that no row names, of jobs that ended long ago, are removed."""

from backend.store import artifacts
from backend.store.job_records import Checkpoint, FileRecord
from backend.store.jobs import point_to_checkpoint
from backend.store.leftovers import find_leftovers, remove_leftovers


def test_a_losing_attempt_is_swept_and_everything_wanted_stays(driver, store, tmp_path):
    base = str(tmp_path / "artifacts")
    ended, running = driver.add(2)
    first = driver.claimed(job_id=ended)
    lost, _, _ = artifacts.put(base, f"{ended}/{first.fence}/half.bin", b"lost attempt")
    kept_checkpoint, _, sha256 = artifacts.put(base, f"{ended}/{first.fence}/checkpoint-1.safetensors", b"state")
    with store.write() as connection:
        point_to_checkpoint(connection, ended, first.fence, Checkpoint(kept_checkpoint, sha256, 1))
    driver.expire(ended)
    driver.reap()
    second = driver.claimed(job_id=ended)
    published, size, sha256 = artifacts.put(base, f"{ended}/{second.fence}/result.bin", b"result")
    driver.publish(second, files=[FileRecord("result.bin", published, size, sha256)])
    other = driver.claimed(job_id=running)
    working, _, _ = artifacts.put(base, f"{running}/{other.fence}/part.bin", b"at work")
    stranger, _, _ = artifacts.put(base, "scans/part-0.parquet", b"not a job's")

    with store.read() as connection:
        assert find_leftovers(connection, base) == []  # it ended just now
        found = find_leftovers(connection, base, keep_s=-1.0)
    assert found == [lost]
    assert remove_leftovers(found) == 1
    assert not artifacts.exists(lost)
    for uri in (kept_checkpoint, published, working, stranger):
        assert artifacts.exists(uri)


def test_nothing_stored_is_nothing_to_sweep(store, tmp_path):
    with store.read() as connection:
        assert find_leftovers(connection, str(tmp_path / "nowhere")) == []
