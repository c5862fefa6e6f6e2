"""T6: several processes claim and publish from one queue. No job twice, none missing, no transaction near the lease.

Without `immediate`, SQLite refuses transactions that read before they write, and claims fail.
"""

import multiprocessing
import sys
import time
from collections import Counter
from typing import Any

from backend.settings import Settings
from backend.store.session import Store
from tests.reliability.harness import arguments, laboratory, verdict
from tests.services.driver import Driver

LEASE_S = 60.0


def work(name: str, values: dict[str, Any], begin: Any, results: Any) -> None:
    """One process: claim, look, publish, until nothing is left; reports what it took and its longest transaction."""
    settings = Settings(**values)
    store = Store.open(settings.database, settings=settings)
    driver = Driver(store, worker=name)
    taken, longest_s, errors = [], 0.0, []
    begin.wait()
    try:
        while True:
            began = time.monotonic()
            claim = driver.claim(lease_s=LEASE_S)
            claimed = time.monotonic()
            if claim is None:
                break
            taken.append(str(claim.job.id))
            driver.publish(claim, {"worker": name})
            longest_s = max(longest_s, claimed - began, time.monotonic() - claimed)
    except Exception as error:
        errors.append(f"{name}: {type(error).__name__}: {error}"[:300])
    store.close()
    results.put((taken, longest_s, errors))


def race(store: Store, values: dict[str, Any], processes: int, count: int) -> tuple[list[str], dict[str, Any]]:
    """Run it on an empty store that `values` (settings) lead to; returns breaches and counts."""
    driver = Driver(store)
    ids = driver.add(count)
    context = multiprocessing.get_context("spawn")
    begin, results = context.Event(), context.Queue()
    workers = [context.Process(target=work, args=(f"w{one}", values, begin, results)) for one in range(processes)]
    for worker in workers:
        worker.start()
    time.sleep(0.2)
    began = time.monotonic()
    begin.set()
    reports = [results.get(timeout=300) for _ in workers]
    seconds = time.monotonic() - began
    for worker in workers:
        worker.join(30)
    taken = Counter(one for report in reports for one in report[0])
    longest_s = max(report[1] for report in reports)
    breaches = [error for report in reports for error in report[2]]
    breaches += [f"{one} was claimed {times} times" for one, times in taken.items() if times > 1]
    breaches += [f"{one} was never claimed" for one in ids if str(one) not in taken]
    if not breaches:
        breaches += [f"{one} was completed {done} times" for one in ids if (done := driver.completions(one)) != 1]
    if longest_s > LEASE_S / 6:
        breaches.append(f"a transaction took {longest_s:.1f} s of a lease of {LEASE_S:.0f} s")
    shares = sorted(len(report[0]) for report in reports)
    rate = round(count / seconds, 1)
    return breaches, {"jobs": count, "jobs_per_s": rate, "longest_s": round(longest_s, 3), "shares": shares}


def main() -> int:
    options = arguments(__doc__, count=1500, processes=8, min_rate=0.0)
    with laboratory(options.db, without=options.without) as lab:
        breaches, counts = race(lab.store, lab.values, options.processes, options.count)
    if counts["jobs_per_s"] < options.min_rate:
        breaches.append(f"{counts['jobs_per_s']} jobs/s, not {options.min_rate}")
    return verdict("claim_race", options, breaches, processes=options.processes, **counts)


if __name__ == "__main__":
    sys.exit(main())
