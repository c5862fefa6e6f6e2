"""T16: sixteen connections list jobs and submit new ones, as fast as they are answered, while two transfers train.

Every answer is a 2xx, the slowest hundredth waits less than 250 ms, what was accepted is stored, and the two jobs' leases
are renewed on time: never 30 s apart, with the lease and heartbeat of a real installation (90 and 15 s). One request in
ten submits. `--count` is the number of connections.
"""

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import select

from backend.settings import Settings
from backend.store import jobs
from backend.store.tables import jobs as job_table
from tests.reliability.chaos_kill import WORKS
from tests.reliability.harness import Lab, arguments, laboratory, verdict
from tests.reliability.web import web

MOST_S = 0.250
BEATS_APART_S = 30.0
SUBMITS = 0.1
TRANSFER = WORKS["transfer"]
REAL = {name: Settings.model_fields[name].default for name in ("lease_s", "heartbeat_s", "reaper_guard_s", "reaper_s")}


class Client:
    """One kept-alive connection; speaks just enough HTTP/1.1 to cost next to nothing beside the server."""

    def __init__(self, url: str) -> None:
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port
        body = json.dumps({"kind": "sleep", "spec": {"steps": 1}, "priority": -9}).encode()
        host = f"Host: {self.host}:{self.port}\r\n".encode()
        self.list = b"GET /api/v1/jobs?limit=50 HTTP/1.1\r\n" + host + b"\r\n"
        about = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self.submit = b"POST /api/v1/jobs HTTP/1.1\r\n" + host + about + body

    async def run(self, until: float, chance: Any, waits: dict[str, list[float]], statuses: Counter[str]) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            while time.perf_counter() < until:
                what = "submit" if chance.random() < SUBMITS else "list"
                began = time.perf_counter()
                writer.write(getattr(self, what))
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
                await reader.readexactly(int(fields[b"content-length"]))
                waits[what].append(time.perf_counter() - began)
                statuses[f"{what} {head.split(b' ', 2)[1].decode()}"] += 1
        finally:
            writer.close()


class Beats:
    """Watches from beside how often the leases of some jobs are renewed."""

    def __init__(self, lab: Lab, ids: list[UUID]) -> None:
        self.lab, self.ids, self.most_apart_s, self.seen = lab, ids, 0.0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Beats":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        last: dict[UUID, float] = {}
        query = select(job_table.c.id, job_table.c.lease_until).where(job_table.c.id.in_(self.ids))
        while not self._stop.wait(0.25):
            with self.lab.store.read() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                if row.lease_until is None:
                    continue
                beat = row.lease_until - self.lab.settings.lease_s
                before = last.setdefault(row.id, beat)
                self.seen += beat != before
                self.most_apart_s = max(self.most_apart_s, beat - before, time.time() - beat)
                last[row.id] = beat


def main() -> int:
    options = arguments(__doc__, count=16, load_s=30.0)
    breaches: list[str] = []
    waits: dict[str, list[float]] = {"list": [], "submit": []}
    statuses: Counter[str] = Counter()
    changes = {**REAL, "poll_s": 0.5, "checkpoint_s": 10.0}
    with laboratory(options.db, without=options.without, **changes) as lab, web(lab) as server:
        for _ in range(2):
            lab.worker()
        lab.catalog_zoo()
        before = lab.count_jobs()
        ids = lab.submit_saving({**TRANSFER, "method": {**TRANSFER["method"], "epochs": 5000}}, 2, "transfer")
        if not lab.until(lambda: all(lab.job(one).progress.step > 0 for one in ids), 60):
            raise RuntimeError(f"the transfers did not start: {[lab.job(one).message for one in ids]}")
        steps = [lab.job(one).progress.step for one in ids]

        async def crowd() -> None:
            client, until = Client(server.url), time.perf_counter() + options.load_s
            await asyncio.gather(*(client.run(until, options.random, waits, statuses) for _ in range(options.count)))

        with Beats(lab, ids) as beats:
            asyncio.run(crowd())
        for one, step in zip(ids, steps, strict=True):
            job = lab.job(one)
            if (job.state, job.attempt) != ("running", 1) or job.progress.step <= step:
                breaches.append(f"a transfer is {job.state}, attempt {job.attempt}, step {step} → {job.progress.step}")
        stored = lab.count_jobs() - before - len(ids)
        with lab.store.write() as connection:
            for one in ids:
                jobs.cancel(connection, one)
        lab.wait(ids, 15)
        lab.stop_workers()
    bad = {status: times for status, times in statuses.items() if not status.split()[1].startswith("2")}
    breaches += [f"answers that are no 2xx: {bad}"] if bad else []
    if stored != statuses["submit 202"]:
        breaches.append(f"{statuses['submit 202']} submissions were accepted, {stored} are stored")
    p99 = {what: sorted(seconds)[max(0, int(0.99 * len(seconds)) - 1)] for what, seconds in waits.items() if seconds}
    breaches += [f"p99 of {what} is {1000 * s:.0f} ms" for what, s in p99.items() if s >= MOST_S]
    if beats.most_apart_s > BEATS_APART_S:
        breaches.append(f"two heartbeats were {beats.most_apart_s:.1f} s apart")
    return verdict(
        "load",
        options,
        breaches,
        requests=sum(statuses.values()),
        per_s=round(sum(statuses.values()) / options.load_s, 1),
        p99_ms={what: round(1000 * s) for what, s in p99.items()},
        submitted=stored,
        beats=beats.seen,
        most_apart_s=round(beats.most_apart_s, 1),
    )


if __name__ == "__main__":
    sys.exit(main())
