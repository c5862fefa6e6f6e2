"""T5: concurrent submissions, every key twice; then every second key again with another body.

Exactly the distinct jobs exist, everybody is told the same job, and another body is refused. Without `idempotency`,
duplicates become jobs of their own.
"""

import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

from backend import submission
from backend.domain.errors import KeyReused, ZoograftError
from backend.settings import Settings
from backend.store.session import Store
from tests.reliability.harness import arguments, laboratory, verdict
from tests.services.driver import Driver


def storm(store: Store, settings: Settings, count: int, threads: int, chance: Any) -> tuple[list[str], dict[str, Any]]:
    """`count` submissions over half as many keys, at once; returns breaches and counts."""
    keys = [f"key-{one}" for one in range(count // 2)] * 2
    chance.shuffle(keys)
    answers: dict[str, list[tuple[UUID, bool]]] = defaultdict(list)
    took, breaches, refused = [], [], 0

    def send(key: str, steps: int) -> tuple[str, submission.Submitted | ZoograftError, float]:
        began = time.monotonic()
        try:
            outcome: submission.Submitted | ZoograftError = submission.submit(
                store, settings, "sleep", {"steps": steps}, idempotency_key=key
            )
        except ZoograftError as error:
            outcome = error
        return key, outcome, time.monotonic() - began

    with ThreadPoolExecutor(threads) as pool:
        for key, outcome, seconds in pool.map(lambda key: send(key, int(key.split("-")[1]) + 1), keys):
            took.append(seconds)
            if isinstance(outcome, ZoograftError):
                breaches.append(f"{key}: {outcome.message}")
            else:
                answers[key].append((outcome.job.id, outcome.replayed))
        for key, outcome, _ in pool.map(lambda key: send(key, 10_000), keys[: count // 4]):
            if isinstance(outcome, KeyReused):
                refused += 1
            else:
                breaches.append(f"{key}: another body was not refused but {outcome}"[:200])
    for key, got in answers.items():
        if len({job_id for job_id, _ in got}) != 1:
            breaches.append(f"{key} became several jobs")
        if sorted(replayed for _, replayed in got) != [False, True]:
            breaches.append(f"{key}: not one new and one replayed answer")
    stored = Driver(store).count()
    if stored != count // 2:
        breaches.append(f"{stored} jobs exist, not {count // 2}")
    p95_s = sorted(took)[int(0.95 * (len(took) - 1))]
    return breaches, {"submissions": count, "jobs": stored, "refused": refused, "p95_s": round(p95_s, 3)}


def main() -> int:
    options = arguments(__doc__, count=200, threads=200)
    with laboratory(options.db, without=options.without) as lab:
        breaches, counts = storm(lab.store, lab.settings, options.count, options.threads, options.random)
    return verdict("dup_submit", options, breaches, **counts)


if __name__ == "__main__":
    sys.exit(main())
