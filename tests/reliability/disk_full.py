"""T10: the disk that artifacts lie on fills up under a job and is freed later.

The job waits as `disk_full`, its last checkpoint stays whole, nothing half-written and no temporary file remains, the
store's own file stays sound, and the job ends in the bits of an undisturbed run once there is room. Needs root, for a
small disk (tmpfs) of its own; without, the script says so and exits with 77.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from backend.store import artifacts
from backend.store.job_records import Checkpoint
from tests.reliability.harness import Lab, arguments, check_exact, laboratory, sleep_digest, verdict

STEPS = 40


def main() -> int:
    options = arguments(__doc__, count=10)
    began = time.monotonic()
    disk = Path(tempfile.mkdtemp(prefix="zoograft-disk-"))
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=False).returncode:
        print('{"test": "disk_full", "skipped": "mounting a small disk needs root"}')
        return 77
    breaches: list[str] = []
    full = 0
    try:
        with laboratory(options.db, without=options.without, artifacts_url=str(disk), retry_max_s=0.2) as lab:
            worker = lab.worker()
            for _ in range(options.count):
                full += _fill_once(lab, disk, breaches)
            worker.terminate()
            worker.wait(60)
            breaches += _unsound(lab)
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
        shutil.rmtree(disk, ignore_errors=True)
    if full < options.count:
        breaches.append(f"the disk was felt in {full} of {options.count} runs")
    seconds = round(time.monotonic() - began, 1)
    return verdict("disk_full", options, breaches, runs=options.count, felt=full, seconds=seconds)


def _fill_once(lab: Lab, disk: Path, breaches: list[str]) -> bool:
    (one,) = lab.submit({"steps": STEPS, "step_s": 0.05})
    if not lab.until(lambda: bool(_pointers(lab, one)), 60):
        breaches.append("no checkpoint was written")
        return False
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    felt = lab.until(lambda: lab.job(one).cause == "disk_full", 20)
    for pointer in _pointers(lab, one):
        try:
            artifacts.fetch(pointer.uri, pointer.sha256)
        except (OSError, ValueError) as error:
            breaches.append(f"a checkpoint broke: {error}")
    breaches.extend(f"temporary file {path}" for path in disk.rglob(".*") if path.is_file())
    filler.unlink()
    if not lab.wait([one], 60):
        breaches.append("the job did not go on when the disk was freed")
    breaches += check_exact(lab, [one], sleep_digest(STEPS))
    return felt


def _pointers(lab: Lab, job_id) -> tuple[Checkpoint, ...]:
    from sqlalchemy import select

    from backend.store.job_records import to_checkpoints
    from backend.store.tables import jobs

    with lab.store.read() as connection:
        return to_checkpoints(connection.scalar(select(jobs.c.checkpoint).where(jobs.c.id == job_id)))


def _unsound(lab: Lab) -> list[str]:
    if lab.store.dialect != "sqlite":
        return []
    with sqlite3.connect(str(lab.store.url.database)) as connection:
        (answer,) = connection.execute("PRAGMA integrity_check").fetchone()
    return [] if answer == "ok" else [f"integrity_check: {answer}"]


if __name__ == "__main__":
    sys.exit(main())
