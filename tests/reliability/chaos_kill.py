"""T1: `kill -9` of a job's process, of its supervisor, or of both, at random moments.

Every job must end once, in the bits of an undisturbed run, leaving no temporary file and no process.
"""

import contextlib
import os
import signal
import sys
import time

from tests.reliability.harness import arguments, check_exact, laboratory, sleep_digest, verdict


def main() -> int:
    options = arguments(__doc__, count=20, jobs=6, workers=2, steps=40)
    chance = options.random
    began = time.monotonic()
    orphans = 0
    kills = {"child": 0, "supervisor": 0, "both": 0}
    with laboratory(options.db, without=options.without, heartbeat_s=0.5) as lab:
        crew = [lab.worker() for _ in range(options.workers)]
        ids = lab.submit({"steps": options.steps, "step_s": 0.1}, options.jobs)
        while sum(kills.values()) < options.count:
            time.sleep(chance.uniform(0.1, 1.2))
            if lab.at_risk():
                continue
            running = lab.job_processes()
            if not running:
                if lab.wait(ids, 0.01):
                    ids += lab.submit({"steps": options.steps, "step_s": 0.1}, 2)
                continue
            what = chance.choice(["child", "supervisor", "both"])
            if what != "supervisor":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(running), signal.SIGKILL)
            if what != "child":
                number = chance.randrange(len(crew))
                family = lab.descendants(crew[number].pid)
                crew[number].kill()
                crew[number].wait()
                if not lab.until(lambda family=family: not family & lab.alive().keys(), 3.0):
                    orphans += 1
                crew[number] = lab.worker()
            kills[what] += 1
        finished = lab.wait(ids, 120)
        breaches = [] if finished else ["not every job ended"]
        breaches += check_exact(lab, ids, sleep_digest(options.steps))
        breaches += [f"{orphans} supervisors left processes behind"] if orphans else []
        attempts = [lab.job(one).attempt for one in ids]
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict("chaos_kill", options, breaches, jobs=len(ids), kills=kills, attempts=attempts, seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
