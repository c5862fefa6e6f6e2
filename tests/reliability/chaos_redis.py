"""T4: Redis is killed and comes back with nothing, is flushed while jobs wait, and is down while jobs are submitted.

Submitting never fails (202 from the REST API itself), and every job is completed exactly once: the rows are the outbox,
the dispatcher rings again, and the workers' safety net looks into the database. Doubled and late messages do nothing.
"""

import sys
import time
from uuid import UUID

import httpx
import redis

from backend.queue import ring
from tests.reliability.harness import Lab, arguments, check_exact, laboratory, sleep_digest, verdict
from tests.services.servers import free_port

STEPS = 10


def main() -> int:
    options = arguments(__doc__, count=5, submits=50, workers=2)
    options.db = "postgres+redis"
    chance = options.random
    began = time.monotonic()
    with laboratory(options.db, without=options.without) as lab:
        assert lab.redis is not None
        for _ in range(options.workers):
            lab.worker()
        web, base = _serve(lab)
        ids = lab.submit({"steps": STEPS, "step_s": 0.1}, 8)
        for _ in range(options.count):
            time.sleep(chance.uniform(0.5, 1.5))
            lab.redis.kill()
            time.sleep(chance.uniform(0.0, 0.5))
            lab.redis.restart()
        redis.Redis.from_url(lab.redis.url()).flushall()
        doubled = [(one, "cpu") for one in ids for _ in range(3)]
        ring(lab.settings, doubled)
        lab.redis.kill()
        codes: dict[int, int] = {}
        with httpx.Client(base_url=base, timeout=30) as client:
            for _ in range(options.submits):
                spec = {"steps": STEPS, "step_s": 0.0}
                answer = client.post("/api/v1/jobs", json={"kind": "sleep", "spec": spec})
                codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
                if answer.status_code == 202:
                    ids.append(UUID(answer.json()["id"]))
        lab.redis.restart()
        finished = lab.wait(ids, 180)
        ring(lab.settings, doubled)  # late: everything has ended
        time.sleep(1.0)
        breaches = [] if finished else ["not every job ended"]
        breaches += [] if codes == {202: options.submits} else [f"submissions were answered {codes}"]
        breaches += check_exact(lab, ids, sleep_digest(STEPS))
        attempts = max(lab.job(one).attempt for one in ids)
        breaches += [f"a job needed {attempts} attempts"] if attempts > 1 else []
        web.terminate()
        web.wait()
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict("chaos_redis", options, breaches, kills=options.count, jobs=len(ids), answers=codes, seconds=seconds)


def _serve(lab: Lab):
    """The REST API as a process, and its address."""
    port = free_port()
    web = lab.start("web", "--port", str(port), module="backend.cli.main")
    base = f"http://127.0.0.1:{port}"

    def up() -> bool:
        try:
            return httpx.get(f"{base}/healthz", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    if not lab.until(up, 60):
        raise RuntimeError(f"the API did not start: {(lab.folder / 'workers.log').read_text()[-2000:]}")
    return web, base


if __name__ == "__main__":
    sys.exit(main())
