"""T5: 200 concurrent submissions over HTTP, every key twice: as many jobs as keys; then the same keys with other bodies.

`--without idempotency` takes the unique index's guard away where the store allows it; the counts then do not fit.
"""

import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.reliability.harness import arguments, laboratory, verdict
from tests.reliability.web import p95, web


def main() -> int:
    options = arguments(__doc__, count=200, others=50, p95_s=1.5)
    keys = [f"key-{options.seed}-{i // 2}" for i in range(options.count)]
    breaches: list[str] = []
    with laboratory(options.db, without=options.without) as lab, web(lab) as server:
        parallel = min(50, options.count)
        client = httpx.Client(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=parallel))
        barrier = threading.Barrier(parallel)
        waited: list[float] = []

        def submit(number: int) -> tuple[int, str, str]:
            if number < barrier.parties:
                barrier.wait(30)
            key = keys[number]
            body = {"kind": "sleep", "spec": {"steps": int(key.rsplit("-", 1)[1])}}
            began = time.perf_counter()
            answer = client.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": key})
            waited.append(time.perf_counter() - began)
            return answer.status_code, key, answer.json().get("id", answer.text)

        with ThreadPoolExecutor(barrier.parties) as pool:
            answers = list(pool.map(submit, range(options.count)))
        statuses = Counter(status for status, _, _ in answers)
        by_key: dict[str, set[str]] = {}
        for _, key, id in answers:
            by_key.setdefault(key, set()).add(id)
        distinct = len({id for ids in by_key.values() for id in ids})
        refused = Counter(
            client.post(
                "/api/v1/jobs",
                json={"kind": "sleep", "spec": {"steps": 999_999}},
                headers={"Idempotency-Key": keys[i % len(keys)]},
            ).status_code
            for i in range(options.others)
        )
        stored = 0
        cursor: dict[str, str] = {}
        while True:
            page = server.client.get("/api/v1/jobs", params={"limit": "200", **cursor}).json()
            stored += len(page["items"])
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
    wanted = len(set(keys))
    if set(statuses) - {200, 202}:
        breaches.append(f"answers {dict(statuses)}")
    if statuses[202] != wanted:
        breaches.append(f"{statuses[202]} new jobs for {wanted} keys")
    if any(len(ids) != 1 for ids in by_key.values()) or distinct != wanted or stored != wanted:
        breaches.append(f"{wanted} keys, {distinct} jobs answered, {stored} stored")
    if refused != {422: options.others}:
        breaches.append(f"other bodies: {dict(refused)}")
    if p95(waited) >= options.p95_s:
        breaches.append(f"p95 {p95(waited):.2f} s")
    return verdict(
        "dup_submit",
        options,
        breaches,
        submitted=options.count,
        jobs=stored,
        replayed=statuses[200],
        refused=refused[422],
        p95_ms=round(1000 * p95(waited)),
    )


if __name__ == "__main__":
    sys.exit(main())
