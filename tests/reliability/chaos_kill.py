"""T1: `kill -9` of a job's process, of its supervisor, or of both, at random moments.

Every job must end once, in the bits of an undisturbed run, leaving no temporary file and no process. `--work transfer`
does it to real transfers (KL+DP between tiny timm models on digits), comparing the students' weights by SHA-256;
`--work sleep` to jobs without torch, which start in milliseconds.
"""

import contextlib
import os
import signal
import sys
import time
from uuid import UUID

from tests.reliability.harness import Lab, arguments, check_exact, laboratory, sleep_digest, verdict

WEIGHTS = "student/model.safetensors"


def main() -> int:
    options = arguments(__doc__, count=20, jobs=6, workers=2, steps=40, work="sleep")
    transfers = options.work == "transfer"
    began = time.monotonic()
    changes = {"checkpoint_steps": 5} if transfers else {}
    with laboratory(options.db, without=options.without, **changes) as lab:
        crew = [lab.worker() for _ in range(options.workers)]
        expected = _undisturbed(lab) if transfers else ""
        ids: list[UUID] = []

        def submit(count: int) -> None:
            spec = {"steps": options.steps, "step_s": 0.1}
            ids.extend(lab.submit_transfers(count, epochs=4) if transfers else lab.submit(spec, count))

        submit(options.jobs)
        kills, orphans = _kill(lab, crew, options, ids, submit)
        finished = lab.wait(ids, 240)
        breaches = [] if finished else ["not every job ended"]
        if transfers:
            breaches += _check_students(lab, ids, expected)
        else:
            breaches += check_exact(lab, ids, sleep_digest(options.steps))
        breaches += [f"{orphans} supervisors left processes behind"] if orphans else []
        attempts = [lab.job(one).attempt for one in ids]
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict(
        "chaos_kill",
        options,
        breaches,
        work=options.work,
        jobs=len(ids),
        kills=kills,
        attempts=attempts,
        seconds=seconds,
    )


def _kill(lab: Lab, crew, options, ids, submit) -> tuple[dict[str, int], int]:
    """Strike `count` times; returns how often at what, and how many supervisors left processes behind."""
    chance = options.random
    kills = {"child": 0, "supervisor": 0, "both": 0}
    orphans = 0
    while sum(kills.values()) < options.count:
        time.sleep(chance.uniform(0.1, 1.2))
        if lab.at_risk():
            continue
        running = lab.job_processes()
        if not running:
            if lab.wait(ids, 0.01):
                submit(2)
            continue
        what = chance.choice(list(kills))
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
    return kills, orphans


def _undisturbed(lab: Lab) -> str:
    """The checksum of the student that nobody disturbs."""
    lab.catalog_zoo()
    (one,) = lab.submit_transfers(1, epochs=4)
    if not lab.wait([one], 120) or lab.job(one).state != "succeeded":
        raise RuntimeError(f"the undisturbed transfer did not succeed: {lab.job(one).message}")
    return lab.published(one)[WEIGHTS][0]


def _check_students(lab: Lab, ids, expected: str) -> list[str]:
    breaches = []
    for one in ids:
        job, files = lab.job(one), lab.published(one)
        if job.state != "succeeded":
            breaches.append(f"{one} is {job.state} ({job.cause}: {job.message})")
        elif files.get(WEIGHTS) != [expected]:
            breaches.append(f"{one} ended in other bits: {files.get(WEIGHTS)}")
        if (times := lab.completions(one)) > 1:
            breaches.append(f"{one} was completed {times} times")
    return breaches


if __name__ == "__main__":
    sys.exit(main())
