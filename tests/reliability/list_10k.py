"""T15: keyset pages over 10,000 jobs: the first page, deep ones and filtered ones at p95 < 50 ms in the store."""

import sys
import time
from collections.abc import Callable

from backend.store.queries import jobs as queries
from backend.store.queries.paging import Page
from tests.reliability.harness import arguments, laboratory, verdict
from tests.reliability.web import p95

PROMISE_S = 0.050


def main() -> int:
    options = arguments(__doc__, count=10_000, requests=200)
    breaches: list[str] = []
    with laboratory(options.db, without=options.without) as lab:
        for start in range(0, options.count, 1000):
            lab.submit({"steps": 1}, min(1000, options.count - start))
        timings = {}
        cursor: str | None = None
        seen: set[str] = set()
        deep: list[float] = []
        while True:  # every page once, to the end
            seconds, page = _timed(lambda c=cursor: _page(lab, cursor=c))
            deep.append(seconds)
            seen |= {str(job.id) for job in page.items}
            cursor = page.next_cursor
            if cursor is None:
                break
        if len(seen) != options.count:
            breaches.append(f"the pages hold {len(seen)} of {options.count} jobs")
        timings["deep"] = deep
        timings["first"] = [_timed(lambda: _page(lab))[0] for _ in range(options.requests)]
        timings["filtered"] = [
            _timed(lambda: _page(lab, state=("queued",), kind=("sleep",)))[0] for _ in range(options.requests)
        ]
        timings["nothing"] = [_timed(lambda: _page(lab, state=("failed",)))[0] for _ in range(options.requests)]
    shown = {name: round(1000 * p95(seconds), 1) for name, seconds in timings.items()}
    breaches += [f"{name}: p95 {ms} ms" for name, ms in shown.items() if ms > 1000 * PROMISE_S]
    return verdict("list_10k", options, breaches, jobs=options.count, p95_ms=shown)


def _page(lab, **query):
    with lab.store.read() as connection:
        return queries.jobs(connection, limit=50, **query)


def _timed(ask: Callable[[], Page]) -> tuple[float, Page]:
    began = time.perf_counter()
    page = ask()
    return time.perf_counter() - began, page


if __name__ == "__main__":
    sys.exit(main())
