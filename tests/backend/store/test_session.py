"""The way into the database: the rules for SQLite, the clock, and what an unreachable database looks like."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from backend.domain.errors import BadInput, StoreUnavailable
from backend.settings import Settings
from backend.store import session
from backend.store.session import Store, db_now, network_file_system, parse_url
from tests.services.servers import PostgresServer, free_port


def test_what_was_committed_is_read_and_what_raised_is_not(store: Store) -> None:
    with store.write() as connection:
        connection.execute(text("CREATE TABLE notes (line text)"))
        connection.execute(text("INSERT INTO notes VALUES ('kept')"))

    def breaks() -> None:
        with store.write() as connection:
            connection.execute(text("INSERT INTO notes VALUES ('lost')"))
            raise KeyError

    with pytest.raises(KeyError):
        breaks()
    with store.read() as connection:
        assert connection.execute(text("SELECT line FROM notes")).all() == [("kept",)]


def test_readers_cannot_write(store: Store) -> None:
    with pytest.raises((DBAPIError, StoreUnavailable), match=r"readonly|read-only"), store.read() as connection:
        connection.execute(text("CREATE TABLE notes (line text)"))


def test_the_clock_is_the_databases_and_counts_seconds_since_1970(store: Store) -> None:
    with store.read() as connection:
        first = connection.scalar(select(db_now()))
        time.sleep(0.05)
        second = connection.scalar(select(db_now()))
    assert isinstance(first, float)
    assert abs(first - time.time()) < 5
    assert 0.03 < second - first < 5


def test_sqlite_rules(sqlite_url: str) -> None:
    store = Store.open(sqlite_url)
    expected = "wal" if sqlite3.sqlite_version_info >= (3, 51, 3) else "delete"
    with store.write() as connection:
        for pragma, value in {"foreign_keys": 1, "synchronous": 2, "busy_timeout": 30_000}.items():
            assert connection.scalar(text(f"PRAGMA {pragma}")) == value
        assert connection.scalar(text("PRAGMA journal_mode")) == expected
    with store.read() as connection:
        assert connection.scalar(text("PRAGMA query_only")) == 1
    store.close()


@pytest.mark.parametrize(("version", "mode"), [((3, 51, 2), "delete"), ((3, 51, 3), "wal"), ((3, 40, 1), "delete")])
def test_wal_only_where_it_does_not_corrupt(
    version: tuple[int, ...], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.sqlite3, "sqlite_version_info", version)
    store = Store.open(f"sqlite:///{tmp_path}/new.db")
    with store.write() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == mode
    store.close()


def increments(store: Store, threads: int, times: int) -> list[Exception]:
    """Each thread reads, then writes what it read plus one, in one transaction."""
    failures: list[Exception] = []

    def work() -> None:
        for _ in range(times):
            try:
                with store.write() as connection:
                    value = connection.scalar(text("SELECT value FROM counter"))
                    time.sleep(0.001)
                    connection.execute(text("UPDATE counter SET value = :new"), {"new": value + 1})
            except StoreUnavailable as error:
                failures.append(error)

    with store.write() as connection:
        connection.execute(text("CREATE TABLE counter (value integer)"))
        connection.execute(text("INSERT INTO counter VALUES (0)"))
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return failures


def test_writers_that_read_first_all_get_through(sqlite_url: str) -> None:
    store = Store.open(sqlite_url)
    assert increments(store, 4, 15) == []
    with store.read() as connection:
        assert connection.scalar(text("SELECT value FROM counter")) == 60
    store.close()


def test_without_begin_immediate_they_fail_at_once(sqlite_url: str, tmp_path: Path) -> None:
    store = Store.open(sqlite_url, settings=Settings(data_dir=tmp_path, disabled_guards="immediate"))
    failures = increments(store, 4, 15)
    assert failures
    assert "locked" in str(failures[0])
    store.close()


def test_a_writer_that_never_gets_its_turn_is_told_so_and_the_next_one_waits_as_long(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "BUSY_TIMEOUT_S", 0.3)
    first, second = Store.open(sqlite_url), Store.open(sqlite_url)
    with first.write():
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="locked"), second.write():
                pass
            assert time.monotonic() - began >= 0.3
    with second.write() as connection:
        assert connection.scalar(text("PRAGMA busy_timeout")) == 300, "for a commit that waits for readers"
    first.close()
    second.close()


def test_readers_do_not_wait_for_an_open_write_transaction(store: Store) -> None:
    with store.write() as connection:
        connection.execute(text("CREATE TABLE notes (line text)"))
    with store.write() as connection:
        connection.execute(text("INSERT INTO notes VALUES ('pending')"))
        started = time.monotonic()
        with store.read() as reading:
            assert reading.execute(text("SELECT * FROM notes")).all() == []
        assert time.monotonic() - started < 2


def test_a_database_that_does_not_answer_is_unavailable() -> None:
    store = Store.open(f"postgresql+psycopg://nobody:secret@127.0.0.1:{free_port()}/none")
    with pytest.raises(StoreUnavailable) as caught, store.read():
        pass
    assert "secret" not in str(caught.value)
    store.close()


def test_postgres_going_away_and_coming_back() -> None:
    server = PostgresServer()
    try:
        server.start()
        store = Store.open(server.url())
        with store.write() as connection:
            connection.execute(text("SELECT 1"))

        def broken() -> None:
            with store.write() as connection:
                server.immediate()
                connection.execute(text("SELECT 1"))

        with pytest.raises(StoreUnavailable):
            broken()
        with pytest.raises(StoreUnavailable), store.read():
            pass
        server.start()
        with store.write() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        store.close()
    finally:
        server.stop()


def test_a_forgotten_transaction_is_ended_by_the_server(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "IDLE_TRANSACTION_S", 1)
    store = Store.open(postgres_url)

    def sleeps() -> None:
        with store.write() as connection:
            connection.execute(text("SELECT 1"))
            time.sleep(1.6)
            connection.execute(text("SELECT 1"))

    with pytest.raises(StoreUnavailable):
        sleeps()
    store.close()


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "mysql://host/db", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"],
)
def test_urls_that_cannot_work_are_refused_with_what_would(url: str) -> None:
    with pytest.raises(BadInput, match="database_url"):
        Store.open(url)


def test_passwords_are_not_shown() -> None:
    with pytest.raises(BadInput) as caught:
        Store.open("mysql://user:hunter2@host/db")
    assert "hunter2" not in str(caught.value)


def test_plain_postgres_urls_mean_psycopg_3() -> None:
    assert parse_url("postgresql://u:p@h/d").drivername == "postgresql+psycopg"
    assert parse_url("postgres://u:p@h/d").drivername == "postgresql+psycopg"


MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/local xfs rw 0 0
//nas/share /mnt/with\\040space cifs rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/zoograft.db", None),
        ("/home/me/zoograft.db", "nfs4"),
        ("/home/local/zoograft.db", None),
        ("/homestead/zoograft.db", None),
        ("/mnt/with space/zoograft.db", "cifs"),
    ],
)
def test_network_file_systems_are_recognised(path: str, kind: str | None) -> None:
    assert network_file_system(Path(path), MOUNTS) == kind


def test_a_store_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "network_file_system", lambda path, mounts: "nfs4")
    with pytest.raises(BadInput, match=r"nfs4.*Postgres"):
        Store.open(f"sqlite:///{tmp_path}/x.db")


def test_two_stores_see_one_database(open_store: Callable[..., Store]) -> None:
    first, second = open_store(), open_store()
    with first.write() as connection:
        connection.execute(text("CREATE TABLE notes (line text)"))
    with second.read() as connection:
        assert connection.execute(text("SELECT * FROM notes")).all() == []
