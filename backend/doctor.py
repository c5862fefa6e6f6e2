"""`zoograft doctor`: is everything there that a working installation needs, and what to do where it is not.

Torch is asked in a process of its own (`python -m workers.devices`), so that this stays light enough for the web image.
"""

from __future__ import annotations

import importlib.metadata
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

from pydantic import computed_field
from sqlalchemy import select, text

from backend.domain.errors import ZoograftError
from backend.domain.records import Record
from backend.logs import hide_credentials
from backend.settings import Settings
from backend.store import migrate
from backend.store.artifacts import least_room
from backend.store.queries.attempts import stranded
from backend.store.session import FIRST_SAFE_WAL, Store, db_now
from backend.store.workers import list_workers

DRIFT_S = 1.0
DEVICES_S = 120.0
VERSION_OF = {
    "sqlite": "SELECT 'SQLite ' || sqlite_version()",
    "postgresql": "SELECT 'PostgreSQL ' || current_setting('server_version')",
}
PACKAGES = ("torch", "timm", "torchvision", "safetensors", "celery", "sqlalchemy", "fastapi", "dash", "numpy")
State = Literal["ok", "warning", "failed", "skipped"]


class Check(Record):
    """One finding: what was looked at, how it stands, and what to do where it does not."""

    name: str
    state: State
    detail: str
    remedy: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether nothing needs doing."""
        return self.state in ("ok", "skipped")

    @property
    def message(self) -> str:
        """Finding and remedy in one line."""
        return self.detail if self.remedy is None else f"{self.detail}; {self.remedy}"


def check(settings: Settings) -> list[Check]:
    """Every finding, in the order of who needs whom. Never raises: what cannot be looked at is a finding too."""
    looks: tuple[tuple[str, Callable[[Settings], Check]], ...] = (
        ("versions", _versions),
        ("disk", _disk),
        ("sqlite", _sqlite),
        ("database", _database),
        ("migration", _migration),
        ("clock", _clock),
        ("broker", _broker),
        ("workers", _workers),
        ("devices", _devices),
    )
    findings = []
    for name, look in looks:
        try:
            findings.append(look(settings))
        except ZoograftError as error:
            findings.append(Check(name=name, state="failed", detail=hide_credentials(error.message)))
        except Exception as error:  # the rim of a diagnosis: whatever breaks is what we were asked to find
            detail = hide_credentials(f"{type(error).__name__}: {error}")
            findings.append(Check(name=name, state="failed", detail=detail[:500]))
    return findings


def _versions(settings: Settings) -> Check:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    python = ".".join(str(part) for part in sys.version_info[:3])
    detail = ", ".join([f"Python {python}", *(f"{name} {version}" for name, version in found.items())])
    if "torch" not in found or "timm" not in found:
        remedy = "to run jobs here: pip install 'zoograft[workers]'"
        return Check(name="versions", state="warning", detail=f"{detail}; torch or timm is missing", remedy=remedy)
    return Check(name="versions", state="ok", detail=detail)


def _disk(settings: Settings) -> Check:
    free, folder = least_room(settings.data_dir, settings.artifacts)
    detail = f"{free / 1e9:.1f} GB free at {folder}"
    if free < settings.min_free_bytes:
        name = "ZOOGRAFT_DATA_DIR" if folder == settings.data_dir else "ZOOGRAFT_ARTIFACTS_URL"
        remedy = f"free some, or move {name}: below {settings.min_free_bytes / 1e9:.1f} GB no job is taken"
        return Check(name="disk", state="failed", detail=detail, remedy=remedy)
    return Check(name="disk", state="ok", detail=detail)


def _sqlite(settings: Settings) -> Check:
    if not settings.embedded:
        return Check(name="sqlite", state="skipped", detail="the store is Postgres")
    version = sqlite3.sqlite_version
    safe = sqlite3.sqlite_version_info >= FIRST_SAFE_WAL
    reason = "WAL journal" if safe else "DELETE journal, because WAL before 3.51.3 can corrupt a database"
    return Check(name="sqlite", state="ok", detail=f"SQLite {version}, {reason}")


def _database(settings: Settings) -> Check:
    store = Store.open(settings.database, settings=settings)
    try:
        began = time.monotonic()
        with store.read() as connection:
            version = str(connection.scalar(text(VERSION_OF[store.dialect])))
        took_ms = (time.monotonic() - began) * 1e3
    except ZoograftError as error:
        remedy = "start it, or check ZOOGRAFT_DATABASE_URL"
        return Check(name="database", state="failed", detail=hide_credentials(error.message), remedy=remedy)
    finally:
        store.close()
    where = store.url.render_as_string(hide_password=True)
    return Check(name="database", state="ok", detail=f"{where} ({version}) answered in {took_ms:.0f} ms")


def _migration(settings: Settings) -> Check:
    found, needed = migrate.current(settings.database), migrate.head()
    if found == needed:
        return Check(name="migration", state="ok", detail=f"at head ({needed})")
    state: State = "warning" if settings.embedded else "failed"
    detail = f"the database is at {found or 'no revision'}, this code needs {needed}"
    return Check(name="migration", state=state, detail=detail, remedy="run: zoograft migrate")


def _clock(settings: Settings) -> Check:
    if settings.embedded:
        return Check(name="clock", state="skipped", detail="store and workers share this machine's clock")
    store = Store.open(settings.database, settings=settings)
    try:
        with store.read() as connection:
            before = time.time()
            theirs = float(connection.scalar(select(db_now())) or 0.0)
            after = time.time()
    finally:
        store.close()
    drift_s = theirs - (before + after) / 2
    detail = f"the database's clock is {abs(drift_s):.2f} s {'ahead of' if drift_s > 0 else 'behind'} this machine's"
    if abs(drift_s) > DRIFT_S + (after - before) / 2:
        remedy = "leases do not mind, but shown times do: synchronise the clocks (NTP)"
        return Check(name="clock", state="warning", detail=detail, remedy=remedy)
    return Check(name="clock", state="ok", detail=detail)


def _broker(settings: Settings) -> Check:
    if settings.broker_url is None:
        return Check(name="broker", state="skipped", detail="none is set; supervisors ask the database")
    if not settings.broker_url.startswith(("redis://", "rediss://")):
        where = hide_credentials(settings.broker_url)
        return Check(name="broker", state="warning", detail=f"{where} is no Redis", remedy="Redis is what is tested")
    import redis

    client = redis.Redis.from_url(settings.broker_url, socket_connect_timeout=3, socket_timeout=3)
    try:
        client.ping()
        memory: dict[str, Any] = client.info("memory")
        policy = str(memory.get("maxmemory_policy"))
        version = client.info("server").get("redis_version")
    except redis.RedisError as error:
        detail = hide_credentials(str(error))
        remedy = "start it, or check ZOOGRAFT_BROKER_URL; jobs wait in the database meanwhile"
        return Check(name="broker", state="failed", detail=detail, remedy=remedy)
    finally:
        client.close()
    if policy != "noeviction":
        remedy = "set: maxmemory-policy noeviction (any other drops messages silently)"
        return Check(name="broker", state="failed", detail=f"Redis evicts: {policy}", remedy=remedy)
    return Check(name="broker", state="ok", detail=f"Redis {version} answers, {policy}")


def _workers(settings: Settings) -> Check:
    store = Store.open(settings.database, settings=settings)
    try:
        with store.read() as connection:
            found = list_workers(connection, seen_within_s=120.0)
            waiting = stranded(connection)
    finally:
        store.close()
    if not found:
        remedy = "queued jobs wait until one runs: zoograft up, or zoograft worker"
        return Check(name="workers", state="warning", detail="none was seen in the last two minutes", remedy=remedy)
    shown = ", ".join(f"{one.name} ({'+'.join(one.queues)})" for one in found[:10])
    detail = f"{len(found)} at work: {shown}"
    if waiting:
        detail = f"{waiting} queued jobs ask for a CUDA device that no worker has; {detail}"
        remedy = "start a worker on a machine that has it, or cancel them and ask for device auto"
        return Check(name="workers", state="warning", detail=detail, remedy=remedy)
    ours = importlib.metadata.version("zoograft")
    others = sorted({str(one.versions.get("zoograft")) for one in found} - {ours})
    if others:
        detail = f"zoograft {', '.join(others)} at work beside {ours} here; {detail}"
        return Check(name="workers", state="warning", detail=detail, remedy="install one version everywhere")
    return Check(name="workers", state="ok", detail=detail)


def _devices(settings: Settings) -> Check:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.devices"], capture_output=True, text=True, timeout=DEVICES_S, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return Check(name="devices", state="warning", detail=f"torch did not answer: {type(error).__name__}")
    if found.get("error"):
        remedy = "for models: pip install 'zoograft[workers]'; for a GPU: check its driver (nvidia-smi)"
        return Check(name="devices", state="warning", detail=str(found["error"])[:300], remedy=remedy)
    gpus = found["devices"]
    if not gpus:
        return Check(name="devices", state="ok", detail=f"torch {found['torch']}, no CUDA device: jobs run on the CPU")
    shown = ", ".join(f"cuda:{one['index']} {one['name']} ({one['memory_bytes'] / 2**30:.0f} GiB)" for one in gpus)
    return Check(name="devices", state="ok", detail=f"torch {found['torch']}, {shown}")
