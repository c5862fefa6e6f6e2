"""A laboratory for chaos: one store (and broker) of its own, workers as real processes, and the checks on what is left.

Every script prints one JSON line with its counts and `breaches`, and exits 1 when there is one. Ports and folders are
random, everything is on loopback, and only processes that were started here (they carry the laboratory's folder in
their environment) are ever signalled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import func, select

from backend.domain.errors import StoreUnavailable
from backend.domain.jobs import TERMINAL, Job
from backend.queue import Dispatcher, device_for, queue_for
from backend.settings import GUARDS, Settings
from backend.store import jobs, migrate
from backend.store.job_records import new_id
from backend.store.session import Store
from backend.store.tables import artifacts as artifacts_table
from backend.store.tables import job_events
from backend.store.tables import jobs as jobs_table
from tests.services.servers import PostgresServer, RedisServer

STORES = ("sqlite", "postgres", "postgres+redis")
# Short enough to see an expired lease in a test, in the proportions of the real ones (lease 6 × heartbeat, guard 2 ×).
FAST = {
    "lease_s": 3.0,
    "heartbeat_s": 0.5,
    "reaper_guard_s": 6.0,
    "reaper_s": 0.5,
    "poll_s": 0.1,
    "retry_base_s": 0.1,
    "retry_max_s": 0.4,
    "checkpoint_s": 0.2,
    "min_free_bytes": 0,
    "warm": False,
    "threads": 1,
}


class Lab:
    """A store, perhaps a broker, and settings for processes that use them. `close` ends and removes everything."""

    def __init__(
        self, db: str, *, without: Sequence[str] = (), server_environment: dict[str, str] | None = None, **changes: Any
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="zoograft-lab-"))
        self.postgres = PostgresServer() if db.startswith("postgres") else None
        self.redis = RedisServer() if db.endswith("+redis") else None
        self.processes: list[subprocess.Popen[bytes]] = []
        values: dict[str, Any] = {**FAST, **changes, "data_dir": str(self.folder)}
        if without:
            values["disabled_guards"] = ",".join(without)
        if self.postgres:
            os.environ.update(server_environment or {})
            self.postgres.start()
            for name in server_environment or ():
                del os.environ[name]
            values["database_url"] = self.postgres.fresh_database()
        if self.redis:
            self.redis.start()
            values["broker_url"] = self.redis.url()
        self.values = values
        self.settings = Settings(**values)
        migrate.upgrade(self.settings.database)
        self.store = Store.open(self.settings.database, settings=self.settings)
        self.dispatcher = Dispatcher(self.store, self.settings, every_s=0.5).start() if self.redis else None

    # --- workers ---------------------------------------------------------------------------------------------------

    def environment(self, **changes: Any) -> dict[str, str]:
        named = {f"ZOOGRAFT_{name.upper()}": str(value) for name, value in {**self.values, **changes}.items()}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ZOOGRAFT_")}
        return {**clean, **named, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(self, *arguments: str, module: str = "workers.supervisor", prefix: Sequence[str] = (), **changes: Any):
        """Start a worker as a process of its own; its output goes to the laboratory's folder."""
        with open(self.folder / "workers.log", "ab") as output:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module, *arguments],
                env=self.environment(**changes),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def worker(self, **changes: Any) -> subprocess.Popen[bytes]:
        """A worker of the kind that this laboratory's store calls for."""
        return self.start(module="workers.app" if self.redis else "workers.supervisor", **changes)

    def alive(self) -> dict[int, tuple[int, str]]:
        """Every process of this laboratory: number → (parent, command)."""
        mark = f"ZOOGRAFT_DATA_DIR={self.folder}\0".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError, IndexError, ValueError):
                if mark not in (entry / "environ").read_bytes():
                    continue
                fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
                if fields[0] != "Z":
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(entry.name)] = (int(fields[1]), command)
        return found

    def freeze(self, tries: int = 50) -> list[int]:
        """SIGSTOP every process of the laboratory, at a moment when none holds SQLite's one write lock: stopped there,
        it would stop everybody, and nobody could take over anything.
        """
        for _ in range(tries):
            stopped = list(self.alive())
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            if self.store.dialect != "sqlite" or self._writable():
                return stopped
            self.thaw(stopped)
            time.sleep(0.05)
        raise RuntimeError("could not stop the workers between two transactions")

    def thaw(self, stopped: Sequence[int]) -> None:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _writable(self) -> bool:
        probe = sqlite3.connect(str(self.store.url.database), timeout=0.2, isolation_level=None)
        try:
            probe.execute("BEGIN EXCLUSIVE")
            probe.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
        finally:
            probe.close()
        return True

    def descendants(self, root: int) -> set[int]:
        """Every process that a worker has started, directly or through others."""
        alive = self.alive()
        found = {root}
        while True:
            more = {pid for pid, (parent, _) in alive.items() if parent in found} - found
            if not more:
                return found - {root}
            found |= more

    def job_processes(self) -> list[int]:
        """The processes that jobs run in: children of a fork server."""
        alive = self.alive()
        servers = {
            pid
            for pid, (parent, command) in alive.items()
            if "workers.forkserver" in command and _is_server(alive, parent)
        }
        return sorted(pid for pid, (parent, _) in alive.items() if parent in servers)

    # --- jobs ------------------------------------------------------------------------------------------------------

    def submit(self, spec: dict[str, Any], count: int = 1, kind: str = "sleep", **options: Any) -> list[UUID]:
        ids = [new_id() for _ in range(count)]
        queue, device = queue_for(kind, spec), device_for(spec)
        with self.store.write() as connection:
            jobs.add(connection, [jobs.NewJob(kind, queue, spec, one, device=device, **options) for one in ids])
        if self.dispatcher:
            self.dispatcher.wake()
        return ids

    def catalog_zoo(self) -> None:
        """Two tiny timm models and digits, catalogued by jobs as a user's would be. Needs a worker."""
        made = [
            self.submit({"dataset": {"name": "digits", "source": "digits"}}, kind="register"),
            *(
                self.submit({"model": _tiny_model(name)}, kind="register")
                for name in ("test_resnet", "test_efficientnet")
            ),
        ]
        ids = [one for ids in made for one in ids]
        if not self.wait(ids, 120):
            raise RuntimeError("the catalog was not made")
        wrong = [str(self.job(one).message) for one in ids if self.job(one).state != "succeeded"]
        if wrong:
            raise RuntimeError(f"the catalog was not made: {wrong}")

    def submit_saving(self, spec: dict[str, Any], count: int, kind: str) -> list[UUID]:
        """Jobs that are alike but for the name of what they save."""
        return [self.submit({**spec, "save_as": f"saved-{new_id()}"}, kind=kind)[0] for _ in range(count)]

    def job(self, job_id: UUID) -> Job:
        with self.store.read() as connection:
            return jobs.get(connection, job_id)

    def wait(self, ids: Sequence[UUID], timeout_s: float, every_s: float = 0.1) -> bool:
        """Until all have ended; False when time is up."""
        return self.until(lambda: all(self.job(one).state in TERMINAL for one in ids), timeout_s, every_s)

    def until(self, true: Callable[[], bool], timeout_s: float, every_s: float = 0.05) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(StoreUnavailable):
                if true():
                    return True
            time.sleep(every_s)
        return False

    def completions(self, job_id: UUID) -> int:
        """How often a job was completed: once, or the fence has failed."""
        with self.store.read() as connection:
            query = select(job_events.c.data).where(job_events.c.job_id == job_id, job_events.c.type == "state")
            return sum(data["to"] == "succeeded" for data in connection.scalars(query))

    def published(self, job_id: UUID) -> dict[str, list[str]]:
        """Published files of a job: name → checksums (one, or it was published twice)."""
        found: dict[str, list[str]] = {}
        with self.store.read() as connection:
            query = select(artifacts_table).where(artifacts_table.c.job_id == job_id)
            for row in connection.execute(query).mappings():
                found.setdefault(row["name"], []).append(row["sha256"])
        return found

    def at_risk(self) -> bool:
        """Whether one more loss would be a job's third in a row: then it is rightly given up as poison."""
        with self.store.read() as connection:
            query = select(jobs_table.c.id).where(jobs_table.c.losses >= 2, jobs_table.c.finished_at.is_(None))
            return connection.scalar(query.limit(1)) is not None

    def losses(self) -> int:
        """How many attempts were taken away or lost."""
        with self.store.read() as connection:
            query = select(job_events.c.data).where(job_events.c.type == "state")
            return sum(data.get("cause") == "worker_lost" for data in connection.scalars(query))

    def count_jobs(self) -> int:
        with self.store.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(jobs_table)) or 0)

    # --- what must not be left -------------------------------------------------------------------------------------

    def stop_workers(self, timeout_s: float = 30.0) -> None:
        """SIGTERM to every worker that still runs, and wait."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout_s)

    def leftovers(self) -> list[str]:
        """Processes and temporary files that should be gone, after a moment for the kernel."""
        self.until(lambda: not self.alive(), 5.0)
        processes = [f"process {pid}: {command.strip()[-80:]}" for pid, (_, command) in self.alive().items()]
        stored = Path(self.settings.artifacts)
        files = [str(path) for path in stored.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
        return processes + files

    def log_text(self) -> str:
        """Everything that workers and jobs have written."""
        texts = [path.read_text(errors="replace") for path in self.folder.rglob("*.log")]
        return "\n".join(texts)

    def close(self) -> None:
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()
        if self.dispatcher:
            self.dispatcher.stop()
        self.store.close()
        for server in (self.postgres, self.redis):
            if server:
                server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _tiny_model(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": name,
        "kwargs": {"num_classes": 10},
        "input_size": [3, 32, 32],
        "init_seed": 1,
    }


def _is_server(alive: dict[int, tuple[int, str]], parent: int) -> bool:
    """Whether a fork server's parent is a worker: a job's process has the same command line as its server."""
    return "workers.forkserver" not in alive.get(parent, (0, ""))[1]


@contextlib.contextmanager
def laboratory(db: str, **options: Any) -> Iterator[Lab]:
    lab = Lab(db, **options)
    try:
        yield lab
    finally:
        lab.close()


def arguments(description: str, count: int, **extra: Any) -> argparse.Namespace:
    """The options that every script has; `--without` takes a guard away, and the script must then fail."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--db", choices=STORES, default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--without", default="", help="guards to switch off, by commas")
    for name, default in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    options.without = [one for one in options.without.split(",") if one]
    if unknown := set(options.without) - GUARDS.keys():
        parser.error(f"unknown guards {sorted(unknown)}; known are {sorted(GUARDS)}")
    options.random = random.Random(options.seed)
    return options


def verdict(name: str, options: argparse.Namespace, breaches: Sequence[str], **counts: Any) -> int:
    """Print the one line; the exit code."""
    line = {"test": name, "db": options.db, "seed": options.seed, **counts, "breaches": list(breaches)[:20]}
    print(json.dumps(line))
    return 1 if breaches else 0


def sleep_digest(steps: int) -> str:
    """What an undisturbed sleep job of so many steps ends with."""
    import hashlib

    digest = ""
    for step in range(1, steps + 1):
        digest = hashlib.sha256(f"{digest}{step}".encode()).hexdigest()
    return digest


def check_exact(lab: Lab, ids: Sequence[UUID], digest: str) -> list[str]:
    """Every job succeeded exactly once, with the undisturbed result and one set of files."""
    breaches = []
    for one in ids:
        job = lab.job(one)
        if job.state != "succeeded":
            breaches.append(f"{one} is {job.state} ({job.cause}: {job.message})")
        elif (job.result or {}).get("digest") != digest:
            breaches.append(f"{one} ended in {job.result}, not {digest[:12]}")
        if (times := lab.completions(one)) > 1:
            breaches.append(f"{one} was completed {times} times")
        if any(len(sums) > 1 for sums in lab.published(one).values()):
            breaches.append(f"{one} published a file twice")
    return breaches
