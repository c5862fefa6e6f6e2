"""Doctor names what is wrong and what to do, for each part that can be."""

from importlib.metadata import version

import pytest

from backend import doctor
from backend.settings import Settings
from backend.store import artifacts, workers
from backend.store.session import Store
from tests.services.driver import Driver


@pytest.fixture(autouse=True)
def _quick_devices(monkeypatch):
    """Torch is asked once, in its own test."""
    monkeypatch.setattr(doctor, "_devices", lambda settings: doctor.Check(name="devices", state="ok", detail=""))


def findings(settings):
    return {one.name: one for one in doctor.check(settings)}


def test_a_fresh_embedded_installation(tmp_path, sqlite_url):
    found = findings(Settings(data_dir=tmp_path, database_url=sqlite_url))
    assert {name: one.state for name, one in found.items()} == {
        "versions": "ok",
        "disk": "ok",
        "sqlite": "ok",
        "database": "ok",
        "migration": "ok",
        "clock": "skipped",
        "broker": "skipped",
        "workers": "warning",
        "devices": "ok",
    }
    assert "zoograft up" in found["workers"].message


def test_a_database_that_is_away_is_named_without_its_password(tmp_path):
    url = "postgresql+psycopg://user:geheim@127.0.0.1:1/x"
    found = findings(Settings(data_dir=tmp_path, database_url=url))
    assert found["database"].state == "failed"
    assert "ZOOGRAFT_DATABASE_URL" in found["database"].message
    assert "geheim" not in "".join(one.message for one in found.values())


def test_postgres_at_head_with_a_clock_in_step(tmp_path, postgres_url):
    found = findings(Settings(data_dir=tmp_path, database_url=postgres_url))
    assert {found[name].state for name in ("database", "migration", "clock")} == {"ok"}


def test_a_clock_that_is_off_is_a_warning(tmp_path, postgres_url, monkeypatch):
    real = doctor.time.time
    monkeypatch.setattr(doctor.time, "time", lambda: real() + 5)
    found = findings(Settings(data_dir=tmp_path, database_url=postgres_url))
    assert found["clock"].state == "warning"
    assert "NTP" in found["clock"].message


def test_a_database_that_was_never_migrated(tmp_path):
    url = f"sqlite:///{tmp_path / 'new.db'}"
    found = findings(Settings(data_dir=tmp_path, database_url=url))
    assert found["migration"].state == "warning"
    assert found["migration"].remedy == "run: zoograft migrate"


def test_a_full_disk(tmp_path, sqlite_url):
    found = findings(Settings(data_dir=tmp_path, database_url=sqlite_url, min_free_bytes=10**18))
    assert found["disk"].state == "failed"


def test_a_full_disk_of_the_artifacts(tmp_path, sqlite_url, monkeypatch):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    settings = Settings(data_dir=tmp_path / "data", database_url=sqlite_url, artifacts_url=f"file://{shelf}/not/yet")
    real = artifacts.shutil.disk_usage
    roomy = real(tmp_path)
    monkeypatch.setattr(
        artifacts.shutil, "disk_usage", lambda path: roomy._replace(free=7 if path == shelf else 10**13)
    )
    found = findings(settings)["disk"]
    assert found.state == "failed"
    assert "ZOOGRAFT_ARTIFACTS_URL" in found.message
    away = settings.model_copy(update={"artifacts_url": "s3://bucket/prefix"})
    assert artifacts.least_room(away.data_dir, away.artifacts_url) == (10**13, away.data_dir)


def test_workers_of_another_version_and_jobs_that_none_can_take(tmp_path, sqlite_url):
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url)
    driver = Driver(Store.open(sqlite_url))

    def announce(**versions):
        with driver.store.write() as connection:
            workers.announce(connection, "w", host="h", pid=1, queues=("gpu", "cpu"), versions=versions)
        return findings(settings)["workers"]

    assert announce(zoograft=version("zoograft")).state == "ok"
    old = announce(zoograft="0.0.1")
    assert (old.state, "0.0.1 at work beside" in old.message) == ("warning", True)
    driver.add_one(queue="gpu", device="cuda")
    stuck = announce(zoograft=version("zoograft"))
    assert (stuck.state, "1 queued jobs ask for a CUDA device" in stuck.message) == ("warning", True)
    driver.store.close()


def test_a_broker_that_is_away_and_one_that_evicts(tmp_path, sqlite_url, redis_url):
    import redis

    base = Settings(data_dir=tmp_path, database_url=sqlite_url, broker_url=redis_url)
    assert findings(base)["broker"].state == "ok"
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            found = findings(base)["broker"]
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert (found.state, "noeviction" in found.message) == ("failed", True)
    away = base.model_copy(update={"broker_url": "redis://:geheim@127.0.0.1:1/0"})
    found = findings(away)["broker"]
    assert found.state == "failed"
    assert "geheim" not in found.message


def test_devices_are_asked_in_another_process(tmp_path, monkeypatch):
    monkeypatch.undo()
    found = doctor._devices(Settings(data_dir=tmp_path))
    assert found.state == "ok"
    assert "torch" in found.detail
