"""The process of one attempt: take the claim → load the task → run → publish; say how it ended.

    python -m workers.runner FD PARENT PDEATHSIG MODULE...      (a fresh interpreter, warmed by importing MODULE...)

Forked processes enter at `work`. The supervisor owns the claim and every transition but one: success is published here,
in the transaction that carries the artifacts. Everything else is reported on the socket (`outcome`) and exits.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from backend import logs
from backend.domain.device_choice import read_device
from backend.domain.errors import BadInput, CancelRequested, LostLease, ZoograftError
from backend.domain.jobs import Cause, Job
from backend.domain.specs import parse_spec
from backend.settings import Settings
from backend.store.job_records import Checkpoint
from backend.store.session import Store
from workers import tasks
from workers.lifecycle import Cancelled, Drained, RunningJob, StopFlags
from workers.processes import CANCEL, DRAIN, Channel, die_with_parent, step_back, watch_parent

log = structlog.get_logger()

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
PASSING_ERRORS = frozenset(
    {errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE}
    | {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EAGAIN, errno.ESTALE, errno.EBUSY}
)
PASSING_NAMES = frozenset({"ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError", "LocalEntryNotFoundError"})


def main() -> None:
    descriptor, parent, pdeathsig = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
    signal.pthread_sigmask(signal.SIG_BLOCK, {CANCEL, DRAIN})
    if pdeathsig:
        die_with_parent(parent)
    step_back()
    for module in sys.argv[4:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    code = work(Channel(socket.socket(fileno=descriptor)), parent=parent, pdeathsig=pdeathsig)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def work(channel: Channel, *, parent: int, pdeathsig: bool) -> int:
    """Wait for the claim and run it; the exit code says how: 0 as reported, 1 failed."""
    stop = StopFlags()
    stop.listen()
    channel.send({"ready": os.getpid()}, wait_s=5.0)
    claim = channel.wait()
    if claim is None:
        return 0
    settings = Settings.model_validate(claim["settings"])
    if settings.guard("parent_poll"):
        watch_parent(parent)
    if pdeathsig:
        _bind_descendants()
    job_record = Job.model_validate(claim["job"])
    scratch = Path(claim["scratch"])
    scratch.mkdir(parents=True, exist_ok=True)
    _write_to(Path(claim["log"]))
    logs.configure(settings)
    structlog.contextvars.bind_contextvars(job=str(job_record.id), attempt=job_record.attempt, kind=job_record.kind)
    if claim["threads"]:
        _set_threads(int(claim["threads"]))
    store = Store.open(settings.database, settings=settings)
    try:
        outcome = _attempt(claim, job_record, settings, store, scratch, stop, channel)
    finally:
        store.close()
    channel.send(outcome, wait_s=30.0)
    return 1 if outcome["outcome"] == "failed" else 0


def _attempt(
    claim: Mapping[str, Any],
    record: Job,
    settings: Settings,
    store: Store,
    scratch: Path,
    stop: StopFlags,
    channel: Channel,
) -> dict[str, Any]:
    try:
        spec = parse_spec(record.kind, record.spec)
        devices = resolve_devices(getattr(spec, "device", "auto"), claim["device"], claim.get("n_devices", 1))
        job = RunningJob(
            id=record.id,
            kind=record.kind,
            spec=spec,
            settings=settings,
            store=store,
            fence=claim["fence"],
            attempt=record.attempt,
            device=devices[0],
            scratch=scratch,
            checkpoints=tuple(Checkpoint(**one) for one in claim["checkpoints"]),
            spare_loaders=claim["last_cause"] != Cause.HOST_OOM,
            stop=stop,
            report=channel.send,
        )
        log.info("starts", device=job.device, devices=len(devices))
        if len(devices) == 1:
            result = tasks.load(record.kind)(job)
        else:
            from workers.team import gathered

            with gathered(job, claim, devices) as job.ranks:
                result = tasks.load(record.kind)(job)
        job.publish(result)
    except (Cancelled, CancelRequested):
        log.info("stopped: cancelled")
        return {"outcome": "cancelled"}
    except Drained:
        log.info("stopped: drained")
        return {"outcome": "drained"}
    except LostLease as error:
        log.warning("stopped: the attempt is no longer ours", error=error.message)
        return {"outcome": "lost"}
    except BaseException as error:  # the one rim of a job: every other end becomes a cause and a message
        cause, message = explain(error)
        log.error("failed", cause=cause.value, message=message)
        traceback.print_exc()
        return {"outcome": "failed", "cause": cause.value, "message": message}
    log.info("succeeded")
    return {"outcome": "succeeded"}


def explain(error: BaseException) -> tuple[Cause, str]:
    """Why an attempt failed, for the retry policy, and what to tell people."""
    text = str(error).strip() or type(error).__name__
    name = type(error).__name__
    if isinstance(error, ZoograftError):
        known = error.cause in {cause.value for cause in Cause}
        return (Cause(error.cause) if known else Cause.ERROR), error.message
    if name == "OutOfMemoryError" or "CUDA out of memory" in text:
        return Cause.CUDA_OOM, text
    if name == "NonFiniteState":
        return Cause.NONFINITE_LOSS, text
    loader_killed = "DataLoader worker" in text and "killed by signal" in text
    if isinstance(error, MemoryError) or loader_killed or "insufficient shared memory" in text:
        return Cause.HOST_OOM, f"out of memory: {text}"
    number = _os_error_number(error)
    if number in DISK_ERRORS:
        return Cause.DISK_FULL, f"the disk is full: {text}"
    if isinstance(error, ConnectionError | TimeoutError) or number in PASSING_ERRORS or name in PASSING_NAMES:
        return Cause.IO_TRANSIENT, f"{name}: {text}"
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "timm", "safetensors", "sklearn"):
        return Cause.MISSING_EXTRA, f"this job needs {error.name}: pip install 'zoograft[workers]'"
    return Cause.ERROR, f"{name}: {text}"


def resolve_devices(wanted: str, given: str, n_given: int = 1) -> tuple[str, ...]:
    """The devices of an attempt: what the spec asks for, within what the supervisor gives (`cpu` or `cuda:0`).

    Of several GPUs the process sees those that were asked for and no other, numbered from 0.

    Raises:
        BadInput: CUDA is asked for and there is none, or fewer devices than are asked for.
    """
    choice = read_device(wanted)
    if choice.family == "cpu":
        return ("cpu",) * choice.processes
    if choice.family == "cuda" and not given.startswith("cuda"):
        raise BadInput("spec.device", wanted, "auto or cpu: this worker has no CUDA device")
    if not choice.several:
        return (given,)
    if choice.indices is not None and len(choice.indices) != n_given:
        raise BadInput("spec.device", wanted, "GPUs that this worker has")
    return tuple(f"cuda:{number}" for number in range(n_given))


def _os_error_number(error: BaseException) -> int | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        seen = seen.__cause__
    return None


def _write_to(path: Path) -> None:
    """Let everything that is printed, by libraries in C too, land in the attempt's log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _bind_descendants() -> None:
    """Give every process this one forks (loaders) the parent-death signal too; the kernel clears it on a fork.

    Only for forks from the main thread: the signal follows the thread, and another thread may end before its children.
    """
    forking: list[int | None] = [None]

    def before() -> None:
        forking[0] = os.getpid() if threading.current_thread() is threading.main_thread() else None

    def after() -> None:
        if forking[0] is not None:
            die_with_parent(forking[0])

    os.register_at_fork(before=before, after_in_child=after)


def _set_threads(count: int) -> None:
    """Threads of the math libraries that are loaded; a fork server has loaded them with one."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
    with contextlib.suppress(ImportError):
        importlib.import_module("threadpoolctl").threadpool_limits(count)


if __name__ == "__main__":
    main()
