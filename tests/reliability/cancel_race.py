"""T7: cancel at random moments, before the claim, while loading, at a step, just before publishing, and while the job is
deaf to everything (blocked in a loader).

Every job ends in one terminal state, its processes are gone within the grace and a moment, and nothing is left over.
Without `cancel_kill` a deaf job keeps its process.
"""

import sys
import time
from uuid import UUID

from backend.domain.jobs import TERMINAL
from backend.store import jobs
from tests.reliability.harness import arguments, laboratory, verdict

GRACE_S = 1.0
FREED_S = GRACE_S + 2.0  # a look every second, and a moment to end the group


def main() -> int:
    options = arguments(__doc__, count=200, workers=2, deaf_share=0.15)
    chance = options.random
    began = time.monotonic()
    breaches: list[str] = []
    states: dict[str, int] = {}
    slowest = 0.0
    with laboratory(options.db, without=options.without, cancel_grace_s=GRACE_S, poll_s=0.05) as lab:
        for _ in range(options.workers):
            lab.worker()
        lab.wait(lab.submit({"steps": 1}, options.workers), 60)  # everybody is up
        left = options.count
        while left > 0:
            batch = min(left, 10)
            left -= batch
            deaf = [chance.random() < options.deaf_share for _ in range(batch)]
            ids = [
                lab.submit({"steps": 4, "step_s": 0.05, "fault": "block" if one else "none", "fault_step": 2})[0]
                for one in deaf
            ]
            asked: dict[UUID, float] = {}
            for one in chance.sample(ids, len(ids)):
                time.sleep(chance.uniform(0.0, 0.3))
                if deaf[ids.index(one)] and (chance.random() < 0.7 or options.deaf_share == 1):
                    lab.until(lambda one=one: lab.job(one).state == "running" and bool(lab.job_processes()), 5.0)
                    time.sleep(0.5)  # its two steps are over: it hears nothing any more
                with lab.store.write() as connection:
                    if jobs.cancel(connection, one).state not in TERMINAL:
                        asked[one] = time.monotonic()
            for one, at in asked.items():
                if not lab.until(lambda one=one: lab.job(one).state in TERMINAL, FREED_S + 3.0, 0.02):
                    breaches.append(f"{one} did not stop")
                slowest = max(slowest, time.monotonic() - at)
            for one, is_deaf in zip(ids, deaf, strict=True):
                job = lab.job(one)
                states[job.state] = states.get(job.state, 0) + 1
                if is_deaf and job.state != "cancelled":
                    breaches.append(f"a deaf job ended as {job.state}")
                if job.state not in ("cancelled", "succeeded"):
                    breaches.append(f"{one} ended as {job.state} ({job.cause}: {job.message})")
                if lab.completions(one) > (job.state == "succeeded"):
                    breaches.append(f"{one} is {job.state} but was completed")
            if breaches:
                break
        if slowest > 5.0:
            breaches.append(f"a cancel took {slowest:.1f} s")
        idle = lab.until(lambda: not lab.job_processes(), 5.0)
        breaches += [] if idle else [f"processes of cancelled jobs live on: {lab.job_processes()}"]
        if not breaches:
            lab.stop_workers()
            breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict("cancel_race", options, breaches, states=states, slowest_s=round(slowest, 2), seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
