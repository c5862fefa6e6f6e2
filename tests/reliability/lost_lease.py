"""A lease is lost while its holder lives: another worker takes the job over, and the first must know it.

The first one's process is ended within moments, its worker goes on to other jobs, and what the second one publishes
stands alone. Without the guard (`--without loss_signal`) the process computes on for nobody; only the fence then keeps
its writes out.
"""

import sys
import time

from tests.reliability.harness import Lab, arguments, laboratory, verdict
from tests.services.driver import Driver

ENDED_S = 3.0


def main() -> int:
    options = arguments(__doc__, count=5)
    began = time.monotonic()
    breaches: list[str] = []
    slowest = 0.0
    with laboratory(options.db, without=options.without) as lab:
        lab.worker()
        for _ in range(options.count):
            slowest = max(slowest, _lose(lab, breaches))
            if breaches:
                break
        (other,) = lab.submit({"steps": 1}, priority=9)
        if not breaches and not (lab.wait([other], 20) and lab.job(other).state == "succeeded"):
            breaches.append("the worker that lost its lease takes no other job")
        if not breaches:
            lab.stop_workers()
            breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict("lost_lease", options, breaches, runs=options.count, slowest_s=round(slowest, 2), seconds=seconds)


def _lose(lab: Lab, breaches: list[str]) -> float:
    """Take a running job over; seconds until its first process was gone."""
    (one,) = lab.submit({"steps": 600, "step_s": 0.1})
    if not lab.until(lambda: lab.job(one).progress.step > 2 and bool(lab.job_processes()), 60):
        raise RuntimeError("the job did not start")
    running = set(lab.job_processes())
    second = Driver(lab.store, worker="second")
    claim = second.take_over(one)
    taken = time.monotonic()
    if not lab.until(lambda: not running & lab.alive().keys(), ENDED_S):
        breaches.append(f"{ENDED_S:.0f} s after its lease was lost a process still computes")
    gone_s = time.monotonic() - taken
    second.publish(claim)
    job = lab.job(one)
    if (job.state, job.attempt, job.result) != ("succeeded", 2, {"by": claim.fence}) or lab.completions(one) != 1:
        breaches.append(f"{one} is {job.state} with {job.result} after {lab.completions(one)} completions")
    return gone_s


if __name__ == "__main__":
    sys.exit(main())
