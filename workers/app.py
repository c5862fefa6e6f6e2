"""Celery as a doorbell: a message carries a job's id, and whoever hears it looks whether there is something to claim.

    python -m workers.app --queues gpu,cpu --concurrency 1        a worker (`zoograft worker` starts this with a broker)
    celery -A workers.app worker -Q gpu -P prefork -c 1           the same by hand; set REMAP_SIGTERM=SIGQUIT

Early acknowledgement, JSON, no result backend, no prefetching, no remote control: a message that is lost, doubled or
late changes nothing. Each pool process is a torch-free supervisor whose jobs are processes of their own; it dies with
Celery's main process, and they die with it. Should the broker be silent while jobs wait, the worker's safety net looks
into the database by itself.
"""

from __future__ import annotations

import argparse
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any
from uuid import UUID

import structlog
from celery import Celery, signals
from kombu import Exchange, Queue

from backend import logs
from backend.domain.errors import StoreUnavailable
from backend.queue import QUEUES, TASK
from backend.settings import Settings, environment
from backend.store import jobs
from backend.store.session import Store
from workers.devices import find_gpus
from workers.keeper import Keeper
from workers.processes import die_with_parent
from workers.supervisor import Supervisor, prepare

log = structlog.get_logger()

SOFT_SHUTDOWN_S = 45.0
NET_S = 10.0


def create_app(settings: Settings) -> Celery:
    """The Celery application: two queues and one task, `zoograft.look(job_id)`."""
    app = Celery("zoograft", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        task_acks_late=False,
        worker_disable_prefetch=str(settings.broker_url).startswith("redis"),
        worker_prefetch_multiplier=1,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_enable_remote_control=False,
        worker_soft_shutdown_timeout=SOFT_SHUTDOWN_S,
        worker_hijack_root_logger=False,
        task_queues=[Queue(name, Exchange(name, type="direct"), routing_key=name) for name in QUEUES],
        task_default_queue="cpu",
        task_create_missing_queues=False,
    )
    worker = Worker(settings)
    worker.connect()
    app.task(name=TASK, ignore_result=True, shared=False)(worker.look)
    app.zoograft_worker = worker  # signal receivers are weak: somebody must hold them
    return app


class Worker:
    """What the processes of one Celery worker share: whether to drain, and whether somebody is busy."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._drain = mmap.mmap(-1, 1)  # shared with the pool processes that are forked later
        self._busy = settings.data_dir / "cache" / f"celery-{os.getpid()}.busy"
        self._main = os.getpid()
        self._supervisor: Supervisor | None = None
        self._queues: tuple[str, ...] = QUEUES
        self._stop = threading.Event()

    def connect(self) -> None:
        signals.worker_init.connect(self.on_init)
        signals.worker_ready.connect(self.on_ready)
        signals.worker_process_init.connect(self.on_process)

    @property
    def draining(self) -> bool:
        return self._drain[0] != 0

    # --- in the main process ---------------------------------------------------------------------------------------

    def on_init(self, sender: Any = None, **_: Any) -> None:
        logs.configure(self.settings)
        chosen = tuple(getattr(getattr(sender, "app", None), "amqp", None).queues.consume_from or QUEUES)
        self._queues = tuple(name for name in QUEUES if name in chosen) or QUEUES
        prepare(self.settings)

    def on_ready(self, **_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            self._drain_before(number)
        threading.Thread(target=self._net, name="safety-net", daemon=True).start()

    def _drain_before(self, number: signal.Signals) -> None:
        theirs = signal.getsignal(number)

        def handle(received: int, frame: Any) -> None:
            self._drain[0] = 1
            self._stop.set()
            signal.signal(number, theirs)  # asked again, Celery has its way at once
            threading.Thread(target=self._leave, name="leave", daemon=True).start()

        signal.signal(number, handle)

    def _leave(self) -> None:
        """Go when the jobs have stopped, and take the pool along (parent-death signal). Celery's own shutdown waits
        inside a signal handler, which blocks the loop that would see a task end: one ring that arrives at the wrong
        moment and it waits for ever. Nothing is lost by not asking it: rings are acknowledged early and come again.
        """
        deadline = time.monotonic() + min(SOFT_SHUTDOWN_S, self.settings.drain_s)
        time.sleep(0.3)  # a message that is just being handed to a pool process
        while not self._idle() and time.monotonic() < deadline:
            time.sleep(0.1)
        log.info("leaves", idle=self._idle())
        self._busy.unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _net(self) -> None:
        """Work the database directly while messages do not come: jobs that two looks in a row found waiting, with
        nobody busy. A late message then finds nothing to claim.
        """
        store = Store.open(self.settings.database, settings=self.settings)
        # Takes back the jobs of dead workers, also before the first message has come.
        keeper = Keeper(self.settings, store, lambda: None)
        keeper.start()
        cuda = "gpu" in self._queues and bool(find_gpus())
        seen: set[UUID] = set()
        while not self._stop.wait(NET_S):
            try:
                with store.read() as connection:
                    waiting = {
                        one for one, queue in jobs.claimable(connection, 100, cuda=cuda) if queue in self._queues
                    }
            except StoreUnavailable:
                continue
            if waiting & seen and self._idle():
                log.info("no message came; working from the database", waiting=len(waiting))
                self._work_once()
            seen = waiting
        keeper.stop()
        store.close()

    def _work_once(self) -> None:
        command = [sys.executable, "-m", "workers.supervisor", "--once", "--queues", ",".join(self._queues)]
        process = subprocess.Popen(command, env=environment(ZOOGRAFT_WARM="0"))
        while process.poll() is None:
            if self._stop.wait(0.5):
                process.send_signal(signal.SIGTERM)
                process.wait()

    def _open_busy(self) -> IO[str]:
        self._busy.parent.mkdir(parents=True, exist_ok=True)
        return open(self._busy, "a")

    def _idle(self) -> bool:
        """Whether no pool process is at work: each holds a shared lock on the file while it is, until it dies."""
        with self._open_busy() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    # --- in a pool process -----------------------------------------------------------------------------------------

    def on_process(self, **_: Any) -> None:
        if self.settings.guard("pdeathsig"):
            die_with_parent(self._main)

    def look(self, job_id: str) -> None:
        """The task: claim this job if it waits, and work it."""
        try:
            wanted = UUID(job_id)
        except (ValueError, TypeError, AttributeError):
            log.warning("a message that names no job", message=repr(job_id)[:200])
            return
        if self.draining:
            return
        if self._supervisor is None:
            gpus = find_gpus() if "gpu" in self._queues else []
            self._supervisor = Supervisor(
                self.settings, queues=self._queues, gpus=gpus, draining=lambda: self.draining
            ).__enter__()
        with self._open_busy() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            self._supervisor.work(wanted)


def __getattr__(name: str) -> Any:
    """`app`, made when Celery's command line asks for it; importing this module reads no settings."""
    if name in ("app", "celery"):
        made = globals()["app"] = globals()["celery"] = create_app(Settings())
        return made
    raise AttributeError(name)


def main() -> None:
    """Become a Celery worker, with the options that the promises rest on."""
    parser = argparse.ArgumentParser(prog="python -m workers.app", description="A Celery worker for Zoograft's jobs.")
    parser.add_argument("--queues", default=",".join(QUEUES))
    parser.add_argument("--concurrency", type=int, default=1, help="jobs at a time: one per GPU")
    options = parser.parse_args()
    if Settings().broker_url is None:
        parser.error("ZOOGRAFT_BROKER_URL is not set; without a broker run: python -m workers.supervisor")
    command = [sys.executable, "-m", "celery", "--app", "workers.app", "worker", "--queues", options.queues]
    command += ["--pool", "prefork", "--concurrency", str(options.concurrency), "--loglevel", "WARNING"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--hostname", f"{os.getpid()}@%h"]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment(REMAP_SIGTERM="SIGQUIT"))


if __name__ == "__main__":
    main()
