"""T9: jobs that end their own process, run the machine out of memory, or run CUDA out of memory.

A killer stops at three losses as `poison`; out of host memory is tried once more, then fails; CUDA out of memory fails
with its cause (training halves its micro-batch before it comes to that). Healthy neighbours finish.
"""

import sys
import time

from tests.reliability.harness import arguments, check_exact, laboratory, sleep_digest, verdict

EXPECTED = {"kill": ("poison", 3), "exit": ("poison", 3), "host_oom": ("host_oom", 2), "cuda_oom": ("cuda_oom", 1)}


def main() -> int:
    options = arguments(__doc__, count=10, workers=2)
    began = time.monotonic()
    breaches: list[str] = []
    with laboratory(options.db, without=options.without) as lab:
        for _ in range(options.workers):
            lab.worker()
        faulty = {
            one: fault
            for fault in EXPECTED
            for one in lab.submit({"steps": 3, "fault": fault, "fault_step": 1}, options.count)  # before any checkpoint
        }
        healthy = lab.submit({"steps": 5, "step_s": 0.05}, options.count)
        if not lab.wait([*faulty, *healthy], 240):
            breaches.append("not every job ended")
        for one, fault in faulty.items():
            job = lab.job(one)
            if job.state != "failed" or (job.cause, job.attempt) != EXPECTED[fault]:
                breaches.append(
                    f"{fault}: {job.state}, {job.cause} after {job.attempt} attempts, not {EXPECTED[fault]}"
                )
        breaches += check_exact(lab, healthy, sleep_digest(5))
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict("poison", options, breaches, faulty=len(faulty), healthy=len(healthy), seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
