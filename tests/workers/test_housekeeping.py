"""Housekeeping takes back the jobs of silent workers and removes leftovers, without torch."""

import subprocess
import sys
import threading
import time

from backend.settings import Settings
from backend.store import artifacts
from tests.services.driver import Driver
from workers.housekeeping import keep_house, sweep


def quick(tmp_path, url):
    return Settings(
        data_dir=tmp_path,
        database_url=url,
        lease_s=0.5,
        heartbeat_s=0.1,
        reaper_s=0.1,
        reaper_guard_s=0.2,
        retry_base_s=0.0,
    )


def test_a_silent_workers_job_goes_back_to_the_queue(sqlite_url, store, tmp_path):
    driver = Driver(store)
    job = driver.add_one()
    driver.claimed(job_id=job)
    driver.expire(job)
    settings = quick(tmp_path, str(store.url.render_as_string(hide_password=False)))
    stop = threading.Event()
    keeper = threading.Thread(target=keep_house, args=(settings, stop.is_set))
    keeper.start()
    until = time.monotonic() + 20
    while driver.state(job) != "queued" and time.monotonic() < until:
        time.sleep(0.05)
    stop.set()
    keeper.join(timeout=20)
    assert driver.state(job) == "queued"
    assert not keeper.is_alive()


def test_sweeping_a_fresh_store_removes_nothing(store, tmp_path):
    settings = Settings(data_dir=tmp_path)
    uri, _, _ = artifacts.put(settings.artifacts, "scans/part.parquet", b"x")
    assert sweep(settings, store) == 0
    assert artifacts.exists(uri)


def test_it_starts_without_torch():
    code = "import sys, workers.housekeeping; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
