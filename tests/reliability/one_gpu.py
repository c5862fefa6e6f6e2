"""Two installations on one machine, each with its own store, share a GPU (a pretended one; nothing computes on it).

Their stores cannot keep them apart, a lock of the machine does: no two attempts ever hold the device at once. Without
the guard (`--without gpu_lock`) they do.

    python -m tests.reliability.one_gpu --serve UUID        a supervisor that believes it has this GPU
"""

import itertools
import secrets
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import select

from backend.settings import Settings
from backend.store import jobs
from backend.store.job_records import new_id
from backend.store.tables import jobs as job_table
from tests.reliability.harness import Lab, arguments, check_exact, laboratory, sleep_digest, verdict
from workers.devices import GPU
from workers.supervisor import Supervisor, drain_on_sigterm

STEPS = 10


def serve(uuid: str) -> int:
    gpu = GPU(0, uuid, "pretended", 2**30)
    return Supervisor(Settings(), queues=("gpu",), gpus=[gpu], draining=drain_on_sigterm()).serve()


def main() -> int:
    options = arguments(__doc__, count=2)
    began = time.monotonic()
    breaches: list[str] = []
    uuid = f"GPU-pretended-{secrets.token_hex(8)}"
    lock = Path(tempfile.gettempdir()) / f"zoograft-{uuid}.lock"
    try:
        with (
            laboratory(options.db, without=options.without) as first,
            laboratory(options.db, without=options.without) as second,
        ):
            labs = (first, second)
            ids = [_submit(lab, options.count) for lab in labs]
            for lab in labs:
                lab.start("--serve", uuid, module="tests.reliability.one_gpu")
            held = []
            for lab, own in zip(labs, ids, strict=True):
                if not lab.wait(own, 60):
                    breaches.append("not every job ended")
                breaches += check_exact(lab, own, sleep_digest(STEPS))
                held += _times(lab)
            held.sort()
            overlaps = sum(later[0] < earlier[1] for earlier, later in itertools.pairwise(held))
            breaches += [f"{overlaps} attempts began while another held the GPU"] if overlaps else []
            for lab in labs:
                lab.stop_workers()
                breaches += [f"left over: {one}" for one in lab.leftovers()]
    finally:
        lock.unlink(missing_ok=True)
    seconds = round(time.monotonic() - began, 1)
    return verdict("one_gpu", options, breaches, jobs=2 * options.count, seconds=seconds)


def _submit(lab: Lab, count: int):
    ids = [new_id() for _ in range(count)]
    spec = {"steps": STEPS, "step_s": 0.1}
    with lab.store.write() as connection:
        jobs.add(connection, [jobs.NewJob("sleep", "gpu", spec, one, device="cuda:0") for one in ids])
    return ids


def _times(lab: Lab) -> list[tuple[float, float]]:
    """From claim to publication, by the machine's clock; the device is held longer on either side."""
    with lab.store.read() as connection:
        rows = connection.execute(select(job_table.c.started_at, job_table.c.finished_at)).all()
    return [(float(row.started_at), float(row.finished_at)) for row in rows if row.finished_at is not None]


if __name__ == "__main__":
    sys.exit(serve(sys.argv[2]) if sys.argv[1:2] == ["--serve"] else main())
