"""A job without torch, for tests and for trying a deployment: counts steps, keeps a checkpoint, fails when told to.

Its result is a running hash over the steps, so that a resumed run can be compared with an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

from backend.domain.errors import NonFiniteLoss
from backend.domain.progress import Progress
from backend.domain.specs import SleepSpec
from workers.lifecycle import RunningJob


class OutOfMemoryError(RuntimeError):
    """Stands for torch's error of the same name, in a process without torch."""


def run(job: RunningJob) -> dict[str, Any]:
    """Count to `steps`. `fault` strikes before `fault_step` is counted (0: at the first step)."""
    spec: SleepSpec = job.spec
    state = job.resume_state() or {"step": 0, "digest": ""}
    job.checkpoint_with(lambda: dict(state))
    for step in range(state["step"] + 1, spec.steps + 1):
        if spec.fault != "none" and step >= spec.fault_step:
            _strike(spec.fault, step)
        time.sleep(spec.step_s)
        state = {"step": step, "digest": hashlib.sha256(f"{state['digest']}{step}".encode()).hexdigest()}
        job.record(Progress(step=step, total=spec.steps, metrics={"level": step / spec.steps}))
    result = {"steps": spec.steps, "digest": state["digest"]}
    job.attach("digest.json", json.dumps(result).encode(), "application/json")
    return result


def _strike(fault: str, step: int) -> None:
    if fault == "exit":
        os._exit(3)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "raise":
        raise RuntimeError(f"asked to fail at step {step}")
    if fault == "cuda_oom":
        raise OutOfMemoryError("CUDA out of memory (asked for)")
    if fault == "host_oom":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, resource.RLIM_INFINITY))
        bytearray(2**30)
    if fault == "nan":
        raise NonFiniteLoss(step, "asked", float("nan"))
    if fault == "block":
        # Deaf to everything but SIGKILL, as a process stuck in the kernel or in a broken library.
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
        while True:
            time.sleep(3600)
