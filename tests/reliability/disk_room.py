"""A worker whose disk has too little room for checkpoints takes no job; one with room takes it, at no charge.

Without the guard (`--without disk`) the first one takes it, and would run into the full disk.
"""

import sys
import time

from tests.reliability.harness import arguments, check_exact, laboratory, sleep_digest, verdict

MORE_THAN_ANY_DISK = 10**18
LOOKS_S = 2.0


def main() -> int:
    options = arguments(__doc__, count=3)
    began = time.monotonic()
    breaches: list[str] = []
    with laboratory(options.db, without=options.without) as lab:
        short = lab.start(min_free_bytes=MORE_THAN_ANY_DISK)
        ids = lab.submit({"steps": 2}, options.count)

        def taken() -> bool:
            return any(lab.job(one).attempt for one in ids)

        lab.until(lambda: taken() or "too little disk" in lab.log_text(), 30)
        lab.until(taken, LOOKS_S)
        breaches += [f"taken without room: {one}" for one in ids if lab.job(one).attempt]
        breaches += [] if "too little disk" in lab.log_text() else ["the worker does not say why it takes no job"]
        if not breaches:
            lab.worker()
            breaches += [] if lab.wait(ids, 60) else ["not every job ended"]
            breaches += check_exact(lab, ids, sleep_digest(2))
            breaches += [f"attempt {lab.job(one).attempt}" for one in ids if lab.job(one).attempt != 1]
            lab.stop_workers()
            breaches += [] if short.returncode == 0 else [f"the worker without room exited with {short.returncode}"]
            breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict("disk_room", options, breaches, jobs=options.count, seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
