"""One history of tables: it ends at what the code declares, on both databases."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from backend.domain.errors import StoreUnavailable
from backend.store import migrate
from backend.store.session import Store
from backend.store.tables import metadata
from tests.services.servers import create_database, drop_database


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    url = create_database(request.getfixturevalue("postgres_server"))
    yield url
    drop_database(url)


def test_from_nothing_to_the_newest_and_again(empty_url: str) -> None:
    assert migrate.current(empty_url) is None
    assert migrate.upgrade(empty_url) == migrate.head()
    assert migrate.current(empty_url) == migrate.head(empty_url)
    assert migrate.upgrade(empty_url) == migrate.head()


def test_the_history_ends_at_the_tables_of_the_code(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    store = Store.open(empty_url)
    with store.read() as connection, warnings.catch_warnings():
        # The one index with an order, `priority DESC`, cannot be read back from SQLite.
        warnings.filterwarnings("ignore", message="autogenerate skipping metadata-specified expression-based index")
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)
        assert [one for one in differences if "ix_jobs_queued" not in str(one)] == []
        catalog = "sqlite_master" if store.dialect == "sqlite" else "pg_indexes"
        column = "sql" if store.dialect == "sqlite" else "indexdef"
        definitions = list(connection.scalars(text(f"SELECT {column} FROM {catalog}")))
        assert sum("ix_jobs_queued" in str(one) and "DESC" in str(one) for one in definitions) == 1
    store.close()


def test_there_and_back_again(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    store = Store.open(empty_url)
    with store.write() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with store.read() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    store.close()
    assert migrate.upgrade(empty_url) == migrate.head()


def test_several_processes_may_migrate_at_once(empty_url: str) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            migrate.upgrade(empty_url)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert migrate.current(empty_url) == migrate.head()


def test_code_that_needs_newer_tables_says_so(empty_url: str) -> None:
    store = Store.open(empty_url)
    with pytest.raises(StoreUnavailable, match="zoograft migrate"):
        migrate.require_head(store)
    migrate.upgrade(empty_url)
    migrate.require_head(store)
    store.close()
