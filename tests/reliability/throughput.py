"""A thousand tiny jobs over four supervisors: each completed once, and how many a second."""

import sys
import time

from tests.reliability.harness import arguments, check_exact, laboratory, sleep_digest, verdict


def main() -> int:
    options = arguments(__doc__, count=1000, workers=4)
    with laboratory(options.db, without=options.without, lease_s=30.0, heartbeat_s=5.0, reaper_guard_s=60.0) as lab:
        ids = lab.submit({"steps": 1}, options.count)
        began = time.monotonic()
        for _ in range(options.workers):
            lab.worker()
        finished = lab.wait(ids[-1:], 600, 0.5) and lab.wait(ids, 600, 1.0)
        seconds = time.monotonic() - began
        breaches = [] if finished else ["not every job ended"]
        breaches += check_exact(lab, ids, sleep_digest(1))
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
    return verdict(
        "throughput",
        options,
        breaches,
        jobs=options.count,
        supervisors=options.workers,
        jobs_per_s=round(options.count / seconds, 1),
        seconds=round(seconds, 1),
    )


if __name__ == "__main__":
    sys.exit(main())
