"""Jobs that go deaf at a step: their processes live, their supervisors beat for them, and no step ever comes.

Each such attempt is ended as `stalled` and tried again; without progress three of them are poison. Slow but moving
neighbours are left alone. Without the guard (`--without stall`) a deaf job holds its worker for ever.
"""

import sys
import time

from tests.reliability.harness import arguments, check_exact, laboratory, sleep_digest, verdict

STALL_S = 2.0


def main() -> int:
    options = arguments(__doc__, count=2, workers=2)
    began = time.monotonic()
    breaches: list[str] = []
    with laboratory(options.db, without=options.without, stall_s=STALL_S) as lab:
        for _ in range(options.workers):
            lab.worker()
        lab.wait(lab.submit({"steps": 1}, options.workers), 60)  # everybody is up
        deaf = lab.submit({"steps": 4, "fault": "block", "fault_step": 1}, options.count)  # before any checkpoint
        slow = lab.submit({"steps": 4, "step_s": 0.5 * STALL_S}, 1)
        first = deaf[0]
        if not lab.until(lambda: lab.job(first).attempt > 1, 2 * STALL_S + 4.0):
            breaches.append(f"a deaf job still holds its worker after {2 * STALL_S + 4.0:.0f} s")
        elif not lab.wait([*deaf, *slow], 30.0 + 4.0 * STALL_S * options.count / options.workers):
            breaches.append("not every job ended")
        for one in deaf:
            job = lab.job(one)
            if (job.state, job.cause, job.attempt) != ("failed", "poison", 3) or "stalled" not in str(job.message):
                breaches.append(f"a deaf job is {job.state}, {job.cause} after {job.attempt} attempts: {job.message}")
        breaches += check_exact(lab, slow, sleep_digest(4))
        breaches += [f"a slow job took {lab.job(one).attempt} attempts" for one in slow if lab.job(one).attempt != 1]
        if not breaches:
            lab.stop_workers()
            breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict("stall", options, breaches, deaf=options.count, seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
