"""Stores and brokers for every test: SQLite and real Postgres, real Redis. Loaded by tests/conftest.py.

ZOOGRAFT_TEST_POSTGRES_URL and ZOOGRAFT_TEST_REDIS_URL name servers to use instead of starting our own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.settings import Settings
from backend.store import migrate
from backend.store.session import Store
from tests.services.servers import Missing, PostgresServer, RedisServer, create_database, drop_database


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a running Postgres, one a session."""
    if url := os.environ.get("ZOOGRAFT_TEST_POSTGRES_URL"):
        yield url.replace("postgresql://", "postgresql+psycopg://", 1)
        return
    try:
        server = PostgresServer(options={"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
    except Missing as error:
        pytest.skip(str(error))
    try:
        server.start()
        yield server.url()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def _migrated_postgres(postgres_server: str) -> Iterator[str]:
    """The name of a migrated, empty database, to be copied."""
    url = create_database(postgres_server)
    migrate.upgrade(url)
    yield url.rsplit("/", 1)[1]
    drop_database(url)


@pytest.fixture(scope="session")
def _migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "zoograft.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def postgres_url(postgres_server: str, _migrated_postgres: str) -> Iterator[str]:
    """A migrated, empty Postgres database of this test alone."""
    url = create_database(postgres_server, _migrated_postgres)
    yield url
    drop_database(url)


@pytest.fixture
def sqlite_url(_migrated_sqlite: Path) -> Iterator[str]:
    """A migrated, empty SQLite database of this test alone, in memory where there is such a disk (syncs cost nothing)."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        path = Path(folder) / "zoograft.db"
        shutil.copyfile(_migrated_sqlite, path)
        yield f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database: the test runs on SQLite and on Postgres."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def open_store(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Open further stores on the same database, with settings of their own; closed in the end."""
    stores: list[Store] = []

    def make(**settings: object) -> Store:
        stores.append(Store.open(database_url, settings=Settings(data_dir=tmp_path, **settings)))  # type: ignore[arg-type]
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    """An open store on a migrated, empty database; the test runs on SQLite and on Postgres."""
    return open_store()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A running Redis of our own, one a session; tests that crash it start their own instead."""
    try:
        server = RedisServer()
    except Missing as error:
        pytest.skip(str(error))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty Redis."""
    import redis

    url = os.environ.get("ZOOGRAFT_TEST_REDIS_URL") or request.getfixturevalue("redis_server").url()
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return str(url)
