"""T3: Postgres is stopped at once (`immediate`), killed, and stays away longer than any lease, while jobs run.

Nobody may take a healthy worker's job (no attempt is charged), and every result is exact; REST says 503 and when to
come again, and answers again within five seconds. Without the reaper's guard
(`--without reaper_guard`) the outage makes healthy jobs look dead.
"""

import sys
import time

from tests.reliability.harness import arguments, check_exact, laboratory, sleep_digest, verdict
from tests.reliability.web import Web, web


def main() -> int:
    options = arguments(__doc__, count=5, jobs=6, workers=2, outage_s=60.0, steps=60, heartbeat_s=0.5)
    options.db = "postgres+redis" if options.db.endswith("redis") else "postgres"
    chance = options.random
    began = time.monotonic()
    with (
        laboratory(options.db, without=options.without, heartbeat_s=options.heartbeat_s) as lab,
        web(lab) as server,
    ):
        assert lab.postgres is not None
        for _ in range(options.workers):
            lab.worker()
        ids = lab.submit({"steps": options.steps, "step_s": 0.1}, options.jobs)
        if not lab.until(lambda: bool(lab.job_processes()), 60):
            raise RuntimeError("no job started")
        for number in range(2 * options.count):
            time.sleep(chance.uniform(0.5, 2.0))
            if number % 2:
                lab.postgres.immediate()
            else:
                lab.postgres.kill()
            time.sleep(chance.uniform(0.0, 1.0))
            lab.postgres.restart()
        if lab.wait(ids, 0.01):
            ids += lab.submit({"steps": options.steps, "step_s": 0.1}, options.workers)
        time.sleep(1.5)
        lab.postgres.immediate()
        breaches = _check_away(server)
        time.sleep(options.outage_s)
        lab.postgres.restart()
        back = time.monotonic()
        answered = lab.until(lambda: _status(server, "/readyz") == _status(server, f"/api/v1/jobs/{ids[0]}") == 200, 10)
        recovery_s = round(time.monotonic() - back, 2)
        breaches += [] if lab.wait(ids, 240) else ["not every job ended"]
        breaches += [] if answered and recovery_s < 5 else [f"REST took {recovery_s} s to answer again"]
        breaches += check_exact(lab, ids, sleep_digest(options.steps))
        attempts = [lab.job(one).attempt for one in ids]
        reaps = lab.losses()
        breaches += [f"{reaps} healthy attempts were taken away"] if reaps else []
        breaches += [f"attempts {attempts}"] if any(attempt != 1 for attempt in attempts) else []
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict(
        "chaos_pg",
        options,
        breaches,
        restarts=2 * options.count,
        outage_s=options.outage_s,
        jobs=len(ids),
        attempts=attempts,
        reaps=reaps,
        recovery_s=recovery_s,
        seconds=seconds,
    )


def _status(server: Web, path: str) -> int:
    return server.client.get(path).status_code


def _check_away(server: Web) -> list[str]:
    """What the web process says while there is no database."""
    found = {path: server.client.get(path) for path in ("/api/v1/jobs", "/readyz", "/healthz")}
    statuses = {path: answer.status_code for path, answer in found.items()}
    breaches = [] if statuses == {"/api/v1/jobs": 503, "/readyz": 503, "/healthz": 200} else [f"answers {statuses}"]
    return breaches + ([] if "retry-after" in found["/api/v1/jobs"].headers else ["503 without Retry-After"])


if __name__ == "__main__":
    sys.exit(main())
