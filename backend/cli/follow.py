"""Submit and attach: the job goes into the store, a supervisor of our own runs it, and we follow its rows.

Ctrl-C cancels the job and waits for it to stop: exit 130. `--detach` leaves the job to whoever works the queue.
"""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from backend.cli.output import note, print_fields, print_json
from backend.domain.errors import MissingExtra, StoreUnavailable, ZoograftError
from backend.domain.jobs import TERMINAL, Job, JobEvent, JobState
from backend.settings import Settings, cores_in_slots, environment

if TYPE_CHECKING:
    from backend.store.session import Store

Detach = Annotated[bool, typer.Option("--detach", help="Queue it and return; a running supervisor takes it.")]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="auto, cpu, cuda or cuda:N; for transfer and finetune also cuda:0,1, cuda:all or cpu:2."
    ),
]

TORCH_FREE = frozenset({"flips", "sleep"})
INTERRUPTED, TERMINATED = 130, 143
BAD_INPUT_CAUSES = frozenset({"bad_input", "not_found", "missing_extra"})
POLL_S = 0.2
PLAIN_EVERY_S = 2.0
PATIENCE_S = 3.0
RESTARTS = 3


class Stopped(Exception):
    """Asked to stop by Ctrl-C (130) or by a signal (143)."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run_job(kind: str, spec: dict[str, Any], *, json: bool, detach: bool, what: str | None = None) -> Job:
    """Submit a job; unless detached, run and follow it to its end. Exits 1 or 2 where it failed, 130 on Ctrl-C.

    Raises:
        BadInput, NotFound, MissingExtra: before anything is stored.
    """
    from backend import submission
    from backend.cli.opening import open_store

    if not detach:
        require_workers(kind, what or kind)
    with open_store() as (settings, store):
        job = submission.submit(store, settings, kind, without_none(spec)).job
        if detach:
            show_queued(job, json=json)
            return job
        return attach(settings, store, job, json=json)


def without_none(spec: dict[str, Any]) -> dict[str, Any]:
    """Options that were not given are left to the spec's defaults."""
    return {key: value for key, value in spec.items() if value is not None}


def require_workers(kind: str, what: str) -> None:
    """Raises MissingExtra where torch or timm are not installed and this kind of job needs them."""
    if kind in TORCH_FREE:
        return
    if any(importlib.util.find_spec(module) is None for module in ("torch", "timm")):
        raise MissingExtra(what, "workers")


def show_queued(job: Job, *, json: bool) -> None:
    if json:
        print_json(job)
    else:
        print(job.id)
        note(f"queued; follow it: zoograft jobs logs {job.id} --follow")


def attach(settings: Settings, store: Store, job: Job, *, json: bool, finish_it: bool = True) -> Job:
    """Run a stored job in a supervisor of our own, follow it, and show its result. Exits as `run_job`.

    With `finish_it` false the caller shows the result, and calls `finish` for the exit.
    """
    from backend import submission

    with _signals(), _supervisor(settings, job.id) as supervisor, _Progress(job.kind) as progress:
        try:
            ended = _follow(store, job.id, supervisor, progress)
        except Stopped as stop:
            note("stopping…")
            submission.cancel(store, settings, job.id)
            ended = _wait(store, job.id, settings.cancel_grace_s + 7)
            raise_code = stop.code
        else:
            raise_code = 0
    if raise_code:
        if ended.kind == "study":
            kept = f"what its jobs finished is kept: zoograft jobs retry {ended.id}, then zoograft worker"
        else:
            kept = f"its checkpoint, if it wrote one, stays: zoograft jobs resume {ended.id}, then zoograft worker"
        note(f"{ended.kind} {ended.state}; {kept}")
        if json:
            print_json(ended)
        raise typer.Exit(raise_code)
    if finish_it:
        finish(ended, json=json)
    return ended


def finish(job: Job, *, json: bool, silent: bool = False) -> None:
    """Show how a job ended (unless that was `silent`ly done); exits 2 where its input was bad, 1 where it failed."""
    if json and not silent:
        print_json(job)
    elif job.state == JobState.SUCCEEDED and job.result and not silent:
        print_fields(job.result)
    if job.state == JobState.SUCCEEDED:
        return
    note(f"{job.kind} {job.state}: {job.cause or ''}: {job.message or ''}".rstrip(": "))
    raise typer.Exit(2 if job.cause in BAD_INPUT_CAUSES else 1)


def follow_only(store: Store, id: UUID) -> Job:
    """Follow a job that somebody else runs, to its end; Ctrl-C only stops looking."""
    from backend.store.queries import jobs as queries

    with store.read() as connection:
        job = queries.job(connection, id)
    with _Progress(job.kind) as progress:
        return _follow(store, id, None, progress)


def _follow(store: Store, id: UUID, supervisor: _Supervisor | None, progress: _Progress) -> Job:
    from backend.store.queries import jobs as queries

    last = 0
    away = False
    patience = _Patience(supervisor)
    while True:
        try:
            with store.read() as connection:
                job = queries.job(connection, id)
                events = queries.events(connection, id, after_id=last, types=("log", "progress", "state"))
                why = patience.ask(connection, job)
        except StoreUnavailable:
            if not away:
                note("the database does not answer; still trying")
            away = True
            time.sleep(1.0)
            continue
        away = False
        if why is not None:
            progress.say(f"{progress.title}: {why}")
        for event in events:
            last = event.id
            progress.hear(event)
        progress.show(job)
        if job.state in TERMINAL and not events:
            return job
        if not events:
            if supervisor is not None:
                supervisor.check()
            time.sleep(POLL_S)


class _Patience:
    """After a moment of waiting says once what for, and again when that changes; our own supervisor is let to start."""

    def __init__(self, supervisor: _Supervisor | None) -> None:
        self.supervisor = supervisor
        self.told: str | None = None
        self.ask_at = time.monotonic() + PATIENCE_S

    def ask(self, connection: Any, job: Job) -> str | None:
        from backend.store.queries.attempts import waiting_for

        waits = job.state == JobState.QUEUED or (job.kind == "study" and job.state not in TERMINAL)
        if not waits or time.monotonic() < self.ask_at:
            return None
        self.ask_at = time.monotonic() + PATIENCE_S
        own = None if self.supervisor is None else self.supervisor.name
        before, self.told = self.told, waiting_for(connection, job.id, own=own)
        return None if self.told == before else self.told


def _wait(store: Store, id: UUID, seconds: float) -> Job:
    from backend.store.queries import jobs as queries

    until = time.monotonic() + seconds
    while True:
        with store.read() as connection:
            job = queries.job(connection, id)
        if job.state in TERMINAL or time.monotonic() > until:
            return job
        time.sleep(0.1)


class _Supervisor:
    """Our own supervisor of one job: a child in its own session, so that Ctrl-C reaches us alone."""

    def __init__(self, settings: Settings, id: UUID) -> None:
        self.command = [sys.executable, "-m", "workers.supervisor", "--job", str(id)]
        folder = settings.data_dir / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"supervisor-{id}.log"
        self.environment = environment(ZOOGRAFT_CPU_SLOTS=str(cores_in_slots(settings)))
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=self.environment,
            )

    def check(self) -> None:
        """Start it again where it ended before the job did.

        Raises:
            ZoograftError: it keeps ending.
        """
        code = self.process.poll()
        if code is None:
            return
        if self.starts > RESTARTS:
            raise ZoograftError(f"the supervisor ended {self.starts} times (exit {code}):\n{_tail(self.log)}")
        time.sleep(0.5 * self.starts)
        self.start()

    @property
    def name(self) -> str:
        """As it announces itself in the store."""
        return f"{socket.gethostname()}:{self.process.pid}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextmanager
def _supervisor(settings: Settings, id: UUID) -> Iterator[_Supervisor]:
    supervisor = _Supervisor(settings, id)
    try:
        yield supervisor
        # The job has ended; give the supervisor the moment it needs to end by itself.
        try:
            supervisor.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            supervisor.stop()
    finally:
        supervisor.stop()


@contextmanager
def _signals() -> Iterator[None]:
    """SIGINT, SIGTERM and a closed terminal stop the job; a second one ends us at once."""

    def stop(number: int, frame: object) -> None:
        for each in caught:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(INTERRUPTED if number == signal.SIGINT else TERMINATED)

    caught = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """A bar with speed and time left on a terminal; elsewhere a plain line every two seconds. Always on stderr."""

    def __init__(self, title: str) -> None:
        self.title, self.unit, self.message = title, "steps", ""
        self._began: tuple[float, int] | None = None
        self._printed = (0.0, -1)
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(compact=True),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=None, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def hear(self, event: JobEvent) -> None:
        """Log lines and changes of state become lines; progress events say what is counted."""
        if event.type == "progress":
            self.unit = str(event.data.get("unit") or self.unit)
            if event.data.get("message"):
                self.message = str(event.data["message"])
            return
        if event.type == "state":
            if event.data.get("cause") and event.data.get("to") in ("queued", "running"):
                self.say(f"{self.title}: {event.data['to']} again ({event.data['cause']})")
            return
        text = event.data.get("message")
        if text:
            self.say(str(text))

    def show(self, job: Job) -> None:
        step, total = job.progress.step, job.progress.total
        now = time.monotonic()
        if self._began is None or step < self._began[1]:
            self._began = (now, step) if step else None
        rate = self._rate(now, step)
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=self.title if step else f"{self.title}: {job.state}",
                completed=step,
                total=total or None,
                rate=f"{rate:.1f} {self.unit}/s" if rate else "",
            )
        elif step != self._printed[1] and step and (now - self._printed[0] >= PLAIN_EVERY_S or step == total):
            left = f", {_duration((total - step) / rate)} left" if rate and total > step else ""
            speed = f", {rate:.1f} {self.unit}/s" if rate else ""
            note(f"{self.title} {step}/{total} {self.unit}{speed}{left}")
            self._printed = (now, step)

    def _rate(self, now: float, step: int) -> float | None:
        if self._began is None or now - self._began[0] < 0.2 or step <= self._began[1]:
            return None
        return (step - self._began[1]) / (now - self._began[0])

    def say(self, text: str) -> None:
        """A line of its own, whatever else is shown."""
        if self._bar is not None:
            from rich.text import Text

            self._bar.console.print(Text(text))
        else:
            note(text)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
