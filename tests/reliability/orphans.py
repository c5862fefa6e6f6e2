"""A supervisor dies at once while its job cannot notice, and on a system whose kernel does not tell.

First scene: the job's process is stopped (SIGSTOP), so that it can look after nothing, and its supervisor is killed:
the kernel alone ends the process (`--without pdeathsig`: it stays, and would go on when continued). Second scene: as
on a system without parent-death signals, the job finds out by looking (`--without parent_poll`: it computes on).
"""

import contextlib
import os
import signal
import sys
import time

from tests.reliability.harness import arguments, laboratory, verdict

GONE_S = 4.0


def main() -> int:
    options = arguments(__doc__, count=2)
    began = time.monotonic()
    breaches: list[str] = []
    slowest = {"stopped": 0.0, "untold": 0.0}
    for _ in range(options.count):
        for scene in slowest:
            without = options.without if scene == "stopped" else [*options.without, "pdeathsig"]
            gone_s = _scene(options.db, without, stopped=scene == "stopped")
            slowest[scene] = max(slowest[scene], round(gone_s, 2))
            if gone_s >= GONE_S:
                breaches.append(f"{scene}: a job's process outlived its supervisor by {GONE_S:.0f} s")
    seconds = round(time.monotonic() - began, 1)
    return verdict("orphans", options, breaches, runs=options.count, slowest_s=slowest, seconds=seconds)


def _scene(db: str, without: list[str], *, stopped: bool) -> float:
    """Seconds until the processes of the job were gone after `kill -9` of their supervisor."""
    with laboratory(db, without=without) as lab:
        worker = lab.start()
        lab.submit({"steps": 600, "step_s": 0.1})
        if not lab.until(lambda: bool(lab.job_processes()) and "starts" in lab.log_text(), 60):
            raise RuntimeError("the job did not start")
        running = set(lab.job_processes())
        for pid in running if stopped else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        worker.kill()
        worker.wait()
        struck = time.monotonic()
        lab.until(lambda: not running & lab.alive().keys(), GONE_S)
        return time.monotonic() - struck


if __name__ == "__main__":
    sys.exit(main())
