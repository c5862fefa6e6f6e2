"""The way into the database: one engine for writers, another for readers, on SQLite and on Postgres.

SQLite: writers begin IMMEDIATE (a plain BEGIN that reads before it writes fails at once with "database is locked",
whatever the busy timeout) and take turns by chance, because SQLite's own waiting starves whoever waits longest: among
eight busy processes one waited 20 s for a lock that changed hands every 20 ms. Readers are deferred and may not write;
WAL only from 3.51.3 on, because older versions can corrupt a WAL database; `synchronous` FULL; no network file systems,
whose locks do not hold.
Postgres: psycopg 3; a transaction that a stopped process left open is ended by the server after thirty seconds.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Double, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from backend.domain.errors import BadInput, StoreUnavailable

if TYPE_CHECKING:
    from backend.settings import Settings

BUSY_TIMEOUT_S = 30.0
TURN_S = 0.004
CONNECT_TIMEOUT_S = 5
IDLE_TRANSACTION_S = 30
FIRST_SAFE_WAL = (3, 51, 3)
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone"}
)
URL_FORMS = "sqlite:////path/to/zoograft.db or postgresql+psycopg://user:password@host/database"


class db_now(FunctionElement[float]):
    """Seconds since 1970 UTC by the database's clock, at the moment of the statement."""

    type = Double()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(element: Any, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgres_now(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


class Store:
    """One database. Open it once per process (never across a fork) and pass it on.

    `write()` and `read()` give a Connection inside a transaction that commits when the block ends and rolls back when
    it raises. A database that cannot be reached raises StoreUnavailable; a commit that raised it may have happened.
    """

    def __init__(self, url: URL, writer: Engine, reader: Engine) -> None:
        self.url, self._writer, self._reader = url, writer, reader

    @classmethod
    def open(cls, url: str, *, settings: Settings | None = None) -> Store:
        """Connect lazily to a database URL.

        Raises:
            BadInput: A URL that is neither SQLite nor Postgres, an in-memory database, or SQLite on a network disk.
        """
        parsed = parse_url(url)
        disabled = frozenset(part.strip() for part in settings.disabled_guards.split(",")) if settings else frozenset()
        options = {"zoograft_disabled_guards": disabled}
        make = partial(create_engine, parsed, json_serializer=_to_json, execution_options=options, hide_parameters=True)
        if parsed.get_backend_name() == "sqlite":
            _check_sqlite_place(parsed)
            arguments: dict[str, Any] = {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
            writer, reader = (make(connect_args=arguments, pool_size=4, max_overflow=12) for _ in range(2))
            _sqlite_rules(writer, begin="BEGIN" if "immediate" in disabled else "BEGIN IMMEDIATE")
            _sqlite_rules(reader, begin="BEGIN", read_only=True)
        else:
            arguments = {
                "connect_timeout": CONNECT_TIMEOUT_S,
                "application_name": "zoograft",
                "options": f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_S}s",
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
            }
            writer = make(connect_args=arguments, pool_pre_ping=True, pool_size=4, max_overflow=12)
            reader = make(
                connect_args={**arguments, "options": arguments["options"] + " -c default_transaction_read_only=on"},
                pool_pre_ping=True,
                pool_size=4,
                max_overflow=12,
            )
        return cls(parsed, writer, reader)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.url.get_backend_name()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write; on SQLite it holds the write lock from its first moment."""
        with _translated(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, on an engine of its own, so that it never waits for writers' locks."""
        with _translated(), self._reader.begin() as connection:
            yield connection

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()


def parse_url(url: str) -> URL:
    """A database URL of a kind we run on; plain `postgresql://` means psycopg 3."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise BadInput("database_url", "(not shown)", URL_FORMS) from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    shown = parsed.render_as_string(hide_password=True)
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise BadInput("database_url", shown, URL_FORMS)
    if parsed.get_backend_name() == "sqlite" and (
        parsed.database in (None, "", ":memory:") or str(parsed.database).startswith("file:")
    ):
        raise BadInput("database_url", shown, "a file: several processes share the store")
    return parsed


def guarded(connection: Connection, name: str) -> bool:
    """Whether a guard is on; always, except in the tests that take it away."""
    return name not in connection.get_execution_options().get("zoograft_disabled_guards", ())


def network_file_system(path: Path, mounts: str) -> str | None:
    """The network file system that `path` lies on, read from the text of /proc/mounts, or None."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _check_sqlite_place(url: URL) -> None:
    path = Path(str(url.database)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    mounts = Path("/proc/mounts")
    kind = network_file_system(path.resolve(), mounts.read_text()) if mounts.exists() else None
    if kind:
        raise BadInput(
            "database_url",
            str(path),
            f"a local disk: this is a network file system ({kind}), where SQLite's locks do not hold; "
            "use Postgres, or set ZOOGRAFT_DATA_DIR to a local folder",
        )


def _sqlite_rules(engine: Engine, *, begin: str, read_only: bool = False) -> None:
    def on_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA synchronous = FULL")
        if not read_only:
            wanted = "WAL" if sqlite3.sqlite_version_info >= FIRST_SAFE_WAL else "DELETE"
            if cursor.execute("PRAGMA journal_mode").fetchone()[0].upper() != wanted:
                cursor.execute(f"PRAGMA journal_mode = {wanted}")
        else:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        if begin == "BEGIN":
            connection.exec_driver_sql(begin)
        else:
            _take_turn(connection, begin)

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


def _take_turn(connection: Connection, begin: str) -> None:
    """Begin a transaction that takes the write lock, trying again after short random pauses that hardly grow; SQLite's
    own grow to 100 ms, and newcomers overtake."""
    raw: Any = connection.connection.dbapi_connection
    raw.execute("PRAGMA busy_timeout = 0")
    try:
        try:
            connection.exec_driver_sql(begin)
        except OperationalError as error:
            if not _is_busy(error.orig):
                raise
            # Tried again without the engine around it, which costs ten times as much as the question.
            if not _begun_within(raw, begin, BUSY_TIMEOUT_S):
                connection.exec_driver_sql(begin)  # says what is in the way, as the engine does
    finally:
        raw.execute(f"PRAGMA busy_timeout = {1000 * BUSY_TIMEOUT_S:.0f}")


def _begun_within(raw: Any, begin: str, patience_s: float) -> bool:
    began = time.monotonic()
    while (waited_s := time.monotonic() - began) < patience_s:
        longest_s = TURN_S if waited_s < 1.0 else 3 * TURN_S
        time.sleep(random.uniform(longest_s / 8, longest_s))
        try:
            raw.execute(begin)
            return True
        except sqlite3.OperationalError as error:
            if not _is_busy(error):
                return False
    return False


def _is_busy(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


@contextmanager
def _translated() -> Iterator[None]:
    """A database that does not answer is StoreUnavailable; so is one that has no tables yet, with what to do."""
    try:
        yield
    except PoolTimeout as error:
        raise StoreUnavailable("too many transactions at once; try again") from error
    except DBAPIError as error:
        text = str(error.orig)
        if "no such table" in text or type(error.orig).__name__ == "UndefinedTable":
            raise StoreUnavailable("the database has no tables yet; run: zoograft migrate") from error
        lost = isinstance(error, OperationalError) or error.connection_invalidated
        if lost or (isinstance(error, InterfaceError) and not isinstance(error.orig, sqlite3.Error)):
            raise StoreUnavailable(
                f"the database does not answer: {text.strip() or type(error.orig).__name__}"
            ) from error
        raise
    except StatementError as error:
        if isinstance(error.orig, ValueError) and "JSON" in str(error.orig):
            raise BadInput("value", "(a number)", "finite: neither NaN nor infinity can be stored") from error
        raise


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
