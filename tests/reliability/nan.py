"""T13: a loss or a state that is not finite.

The job fails as `nonfinite_loss` naming the step and the term, is not tried again, and its last checkpoint is finite;
neighbours finish; no NaN enters an event.
"""

import math
import sys
import time

from sqlalchemy import select

from backend.store.tables import job_events
from tests.reliability.harness import arguments, check_exact, laboratory, sleep_digest, verdict


def main() -> int:
    options = arguments(__doc__, count=30)
    chance = options.random
    began = time.monotonic()
    breaches: list[str] = []
    with laboratory(options.db, without=options.without) as lab:
        for _ in range(2):
            lab.worker()
        steps = {
            lab.submit({"steps": 9, "fault": "nan", "fault_step": step})[0]: step
            for step in _steps(chance, options.count)
        }
        healthy = lab.submit({"steps": 9}, 5)
        if not lab.wait([*steps, *healthy], 180):
            breaches.append("not every job ended")
        for one, step in steps.items():
            job = lab.job(one)
            if (job.state, job.cause, job.attempt) != ("failed", "nonfinite_loss", 1):
                breaches.append(f"{job.state}, {job.cause} after {job.attempt} attempts")
            if f"step {step}" not in str(job.message) or "'asked'" not in str(job.message):
                breaches.append(f"the message names neither step nor term: {job.message}")
        breaches += check_exact(lab, healthy, sleep_digest(9))
        with lab.store.read() as connection:
            for data in connection.scalars(select(job_events.c.data).where(job_events.c.type == "metric")):
                if not all(math.isfinite(value) for value in data["values"].values()):
                    breaches.append(f"an event holds {data}")
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict("nan", options, breaches, jobs=len(steps), healthy=len(healthy), seconds=seconds)


def _steps(chance, count: int) -> list[int]:
    return [chance.randint(1, 9) for _ in range(count)]


if __name__ == "__main__":
    sys.exit(main())
