"""Attaching to a job that nobody can take says so after a moment, instead of waiting in silence."""

import threading
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
import typer

from backend import submission
from backend.cli import follow
from backend.settings import Settings
from backend.store.queries import jobs as queries
from backend.store.session import Store
from tests.backend.cli.conftest import Ran
from tests.services.driver import Driver

NOWHERE = 99  # no machine has so many


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PATIENCE_S", 0.5)


@pytest.fixture
def shared(postgres_url: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Settings, Store]]:
    """A store that other machines may share, so that a job can wait for one of them."""
    settings = Settings(data_dir=tmp_path / "data", database_url=postgres_url)
    for name, value in (("DATA_DIR", settings.data_dir), ("DATABASE_URL", postgres_url), ("WARM", "0")):
        monkeypatch.setenv(f"ZOOGRAFT_{name}", str(value))
    store = Store.open(postgres_url, settings=settings)
    yield settings, store
    store.close()


def test_attached_to_a_job_for_a_device_that_no_worker_has(
    shared: tuple[Settings, Store], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, store = shared
    one = Driver(store).add_one(queue="gpu", device=f"cuda:{NOWHERE}")
    shown = ""

    def end_it() -> None:
        nonlocal shown
        until = time.monotonic() + 30
        while "waiting" not in shown and time.monotonic() < until:
            time.sleep(0.1)
            shown += capsys.readouterr().err
        submission.cancel(store, settings, one)

    watcher = threading.Thread(target=end_it)
    watcher.start()
    with pytest.raises(typer.Exit) as ended:
        follow.attach(settings, store, job_of(store, one), json=False)
    watcher.join()
    assert ended.value.exit_code == 1
    assert shown.count("waiting") == 1
    assert f"sleep: waiting for a worker with cuda:{NOWHERE}, which none of the 1 at work has" in shown


def test_followed_while_nobody_is_at_work(
    sqlite_store: Store, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    job = submission.submit(sqlite_store, settings, "sleep", {}).job
    threading.Timer(1.5, submission.cancel, (sqlite_store, settings, job.id)).start()
    assert follow.follow_only(sqlite_store, job.id).state == "cancelled"
    assert capsys.readouterr().err.count("waiting for a worker, and none is at work") == 1


def test_a_queued_job_is_shown_with_what_it_waits_for(zoograft: Callable[..., Ran], sqlite_store: Store) -> None:
    one = Driver(sqlite_store).add_one()
    ran = zoograft("jobs", "show", one)
    assert "none is at work" in ran.err
    assert "none is at work" not in ran.out
    assert zoograft("jobs", "show", one, "--json").err == ""


def job_of(store: Store, job_id: UUID):
    with store.read() as connection:
        return queries.job(connection, job_id)
