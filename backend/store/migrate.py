"""Bring a database to the newest tables, and say where it stands. One linear history for SQLite and Postgres."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import migrations
from backend.domain.errors import StoreUnavailable
from backend.store.session import Store

# Any number will do, as long as every process that migrates takes the same one.
MIGRATION_LOCK = 7_304_221_901


def upgrade(url: str) -> str:
    """Migrate to the newest revision, in one transaction; returns it. Harmless when there is nothing to do, and when
    several processes do it at once.

    Raises:
        StoreUnavailable: The database cannot be reached.
    """
    store = Store.open(url)
    try:
        with store.write() as connection:
            if store.dialect == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return head()
    finally:
        store.close()


def head(url: str | None = None) -> str:
    """The revision that this code needs; the same for every database."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def current(url: str) -> str | None:
    """The revision that a database is at; None when it was never migrated.

    Raises:
        StoreUnavailable: The database cannot be reached.
    """
    store = Store.open(url)
    try:
        return revision_of(store)
    finally:
        store.close()


def revision_of(store: Store) -> str | None:
    """As `current`, through a store that is already open."""
    with store.read() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def require_head(store: Store) -> None:
    """Raises StoreUnavailable, saying what to run, when the tables are not those that this code needs."""
    found, needed = revision_of(store), head()
    if found != needed:
        raise StoreUnavailable(f"the database is at revision {found}, this code needs {needed}; run: zoograft migrate")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config
