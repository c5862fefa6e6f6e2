"""T8: SIGTERM to a worker in the middle of a job.

It exits with 0 within the minute, the job goes on elsewhere from its checkpoint at no charge, and ends in the bits of an
undisturbed run.
"""

import sys
import time

from tests.reliability.harness import arguments, check_exact, laboratory, sleep_digest, verdict

STEPS = 60


def main() -> int:
    options = arguments(__doc__, count=20)
    chance = options.random
    began = time.monotonic()
    breaches: list[str] = []
    slowest, drained = 0.0, 0
    with laboratory(options.db, without=options.without) as lab:
        ids = []
        while drained < options.count:
            if not ids or lab.job(ids[-1]).state == "succeeded":
                ids += lab.submit({"steps": STEPS, "step_s": 0.05})
            worker = lab.worker()
            one = ids[-1]
            before = lab.job(one).progress.step
            if not lab.until(lambda one=one: lab.job(one).state != "queued", 60):
                breaches.append("the job did not start")
                break
            time.sleep(chance.uniform(0.0, 1.5))
            asked = time.monotonic()
            lab.processes[-1].terminate()
            worker.wait(90)
            slowest = max(slowest, time.monotonic() - asked)
            drained += 1
            job = lab.job(one)
            if worker.returncode != 0:
                breaches.append(f"the worker exited with {worker.returncode}")
            if job.state not in ("queued", "succeeded") or (job.state == "queued" and job.cause != "drained"):
                breaches.append(f"{one} is {job.state} ({job.cause}: {job.message})")
            if job.state == "queued" and job.attempt != 0:
                breaches.append(f"draining was charged: attempt {job.attempt}")
            if job.progress.step < before:
                breaches.append(f"fell back from step {before} to {job.progress.step}")
        lab.worker()
        if not lab.wait(ids, 60):
            breaches.append("not every job ended")
        breaches += check_exact(lab, ids, sleep_digest(STEPS))
        breaches += [f"attempt {lab.job(one).attempt}" for one in ids if lab.job(one).attempt != 1]
        if slowest > 60:
            breaches.append(f"draining took {slowest:.0f} s")
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict(
        "drain", options, breaches, drained=drained, jobs=len(ids), slowest_s=round(slowest, 2), seconds=seconds
    )


if __name__ == "__main__":
    sys.exit(main())
