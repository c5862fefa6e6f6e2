"""T20: the store fails at its n-th call, for each n: before a statement, before a commit, and after a commit whose
answer gets lost. Whoever then does what a worker does (try again, stop when the lease is lost, let the reaper work)
arrives at the same end: the job succeeded once, with one set of files and every metric once.

Without `fence` and `idempotency` it does not.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from backend import submission
from backend.domain.errors import LostLease, StoreUnavailable
from backend.domain.jobs import Cause
from backend.settings import Settings
from backend.store import job_reads, jobs
from backend.store.job_records import Checkpoint, Claim, FileRecord
from backend.store.session import Store
from tests.reliability.harness import arguments, laboratory, verdict
from tests.services.driver import AT_ONCE, LEASE_S, Driver

T = TypeVar("T")
EXPECTED = {"answer": 42}
METRICS: list[tuple[Any, dict[str, Any]]] = [("metric", {"step": step, "loss": 1.0 / step}) for step in (1, 2, 3)]


class Faulty(Store):
    """A store that fails at its n-th call, once. Calls are counted from `arm`."""

    calls, fail_at, fired = 0, -1, ""

    @classmethod
    def over(cls, store: Store) -> "Faulty":
        faulty = cls(store.url, store._writer, store._reader)
        for engine in (store._writer, store._reader):
            event.listen(engine, "before_cursor_execute", lambda *_: faulty.call("statement"))
        event.listen(store._writer, "commit", lambda _: faulty.call("commit"))
        return faulty

    def arm(self, fail_at: int) -> None:
        self.calls, self.fail_at, self.fired = 0, fail_at, ""

    def call(self, what: str) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            self.fired = what
            raise OperationalError("(injected)", None, ConnectionError(f"injected at {what} {self.calls}"))

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with super().write() as connection:
            yield connection
        try:
            self.call("answer")
        except OperationalError as error:
            raise StoreUnavailable("injected: committed, but the answer got lost") from error


class Worker:
    """What submitters and workers do about a store that fails: the same thing again, a few times."""

    def __init__(self, store: Faulty, quiet: Store, settings: Settings) -> None:
        self.store, self.settings, self.quiet = store, settings, Driver(quiet)

    def again(self, action: Callable[[], T]) -> T:
        for _ in range(3):
            try:
                return action()
            except StoreUnavailable:
                continue
        return action()

    def submit(self, key: str, **options: Any) -> UUID:
        return self.again(
            lambda: (
                submission.submit(
                    self.store, self.settings, "sleep", {"steps": 1}, idempotency_key=key, **options
                ).job.id
            )
        )

    def claim(self, job_id: UUID) -> Claim | None:
        def once() -> Claim | None:
            with self.store.write() as connection:
                return jobs.claim(connection, worker="w", host="h", lease_s=LEASE_S, job_id=job_id)

        return self.again(once)

    def report(self, claim: Claim) -> None:
        sent = 0

        def once() -> None:
            nonlocal sent
            resent, sent = sent, len(METRICS)
            with self.store.write() as connection:
                kept = jobs.unsent(connection, claim.job.id, claim.fence, METRICS, resent)
                jobs.add_events(connection, claim.job.id, claim.fence, claim.job.attempt, kept)  # type: ignore[arg-type]
                jobs.record_progress(connection, claim.job.id, claim.fence, 3, 4)
                new = Checkpoint(f"{claim.job.id}/{claim.fence}/3", "0" * 64, 3)
                jobs.point_to_checkpoint(connection, claim.job.id, claim.fence, new)

        self.again(once)

    def beat(self, claim: Claim) -> None:
        def once() -> None:
            with self.store.write() as connection:
                if jobs.heartbeat(connection, claim.job.id, claim.fence, LEASE_S) is None:
                    raise LostLease("no heartbeat")

        self.again(once)

    def publish(self, claim: Claim) -> None:
        def once() -> None:
            with self.store.write() as connection:
                file = FileRecord("student", f"{claim.job.id}/{claim.fence}/student", 1, "0" * 64)
                jobs.succeed(connection, claim.job.id, claim.fence, EXPECTED, [file])

        self.again(once)

    def reap(self, job_id: UUID) -> None:
        """Time passes: a lease that nobody renews runs out."""

        def once() -> None:
            with self.store.write() as connection:
                jobs.reap(connection, retry=AT_ONCE, guard_s=0.0, reachable_s=1e9)

        if self.quiet.column(job_id, "lease_until") is not None:
            self.quiet.expire(job_id)
        self.again(once)

    def work(self, job_id: UUID, stumble: Cause | None = None) -> None:
        """Until the job has ended: claim, report, publish; what is lost comes back through the reaper."""
        for _ in range(8):
            if self.quiet.state(job_id) in ("succeeded", "failed", "cancelled"):
                return
            claim = self.claim(job_id)
            if claim is None:
                self.again(lambda: self.reap(job_id))
                continue
            try:
                self.report(claim)
                self.beat(claim)
                if stumble is not None:
                    cause, stumble = stumble, None
                    self.again(lambda claim=claim, cause=cause: self.fail(claim, cause))
                    continue
                self.publish(claim)
            except LostLease:
                continue

    def fail(self, claim: Claim, cause: Cause) -> None:
        with self.store.write() as connection:
            jobs.fail(connection, claim.job.id, claim.fence, cause, "stumbled", retry=AT_ONCE)


def succeeds(worker: Worker, key: str) -> list[str]:
    job_id = worker.submit(key)
    worker.work(job_id)
    return check(worker.quiet, job_id, "succeeded")


def stumbles_then_succeeds(worker: Worker, key: str) -> list[str]:
    job_id = worker.submit(key)
    worker.work(job_id, Cause.IO_TRANSIENT)
    return check(worker.quiet, job_id, "succeeded", every_metric=False)


def is_cancelled(worker: Worker, key: str) -> list[str]:
    job_id = worker.submit(key)
    claim = worker.claim(job_id)
    worker.again(lambda: submission.cancel(worker.store, worker.settings, job_id))
    if claim is not None:

        def stop() -> None:
            with worker.store.write() as connection:
                jobs.finish_cancelled(connection, job_id, claim.fence)

        with suppress(LostLease):
            worker.again(stop)
    else:
        worker.reap(job_id)
    return check(worker.quiet, job_id, "cancelled")


def study_fails_with_its_first_child(worker: Worker, key: str) -> list[str]:
    children = [submission.Child("a", "sleep", {}), submission.Child("b", "sleep", {}, ("a",))]
    study = worker.again(
        lambda: submission.submit_study(worker.store, worker.settings, {}, children, idempotency_key=key)
    ).job.id
    with worker.quiet.store.read() as connection:
        first, second = (child.id for child in job_reads.children_of(connection, study))
    for _ in range(6):
        if worker.quiet.state(first) == "failed":
            break
        claim = worker.claim(first)
        try:
            if claim is None:
                worker.reap(first)
            else:
                worker.again(lambda claim=claim: worker.fail(claim, Cause.BAD_INPUT))
        except LostLease:
            continue
    breaches = check(worker.quiet, first, "failed") + check(worker.quiet, second, "cancelled")
    return breaches + check(worker.quiet, study, "failed")


SCENARIOS: tuple[Callable[[Worker, str], list[str]], ...] = (
    succeeds,
    stumbles_then_succeeds,
    is_cancelled,
    study_fails_with_its_first_child,
)


def check(driver: Driver, job_id: UUID, end: str, *, every_metric: bool = True) -> list[str]:
    """What must be true in the end, whatever failed on the way."""
    job, path = driver.get(job_id), driver.path(job_id)
    breaches = [] if job.state == end else [f"ended as {job.state} ({job.cause}: {job.message}), not {end}"]
    if sum(state in ("succeeded", "failed", "cancelled") for state in path) != 1:
        breaches.append(f"went through {path}")
    if end == "succeeded":
        if job.result != EXPECTED:
            breaches.append(f"result {job.result}")
        if driver.completions(job_id) != 1 or len(driver.files(job_id)) != 1:
            breaches.append(f"{driver.completions(job_id)} completions, files {driver.files(job_id)}")
        fence = driver.column(job_id, "fence")
        mine = [one["step"] for one in driver.events(job_id, "metric")]
        if every_metric and (len(mine) % len(METRICS) or len(mine) > len(METRICS) * fence or not mine):
            breaches.append(f"metrics {mine} of {fence} attempts")
        if every_metric and fence == 1 and mine != [1, 2, 3]:
            breaches.append(f"metrics {mine} of one attempt")
    return breaches


def inject(
    store: Store, settings: Settings, *, first: int = 1, stride: int = 1, rounds: int = 500
) -> tuple[list[str], dict[str, Any]]:
    """On the store that `settings` lead to, `store` to look at it undisturbed: every scenario with a failure at each n-th call, until it ends before it comes to the n-th."""
    faulty = Faulty.over(Store.open(settings.database, settings=settings))
    breaches: list[str] = []
    points: dict[str, int] = {}
    fired: dict[str, int] = {}
    for scenario in SCENARIOS:
        for n in range(first, rounds, stride):
            before = Driver(store).count()
            faulty.arm(n)
            try:
                found = scenario(Worker(faulty, store, settings), f"{scenario.__name__}-{n}")
            except Exception as error:
                found = [f"{type(error).__name__}: {error}"[:300]]
            what, faulty.fail_at = faulty.fired, -1
            added = Driver(store).count() - before
            if added != (3 if scenario is study_fails_with_its_first_child else 1):
                found.append(f"{added} jobs were made")
            breaches += [f"{scenario.__name__}, {what} {n}: {one}" for one in found]
            if not what:
                points[scenario.__name__] = n - 1
                break
            fired[what] = fired.get(what, 0) + 1
    faulty.close()
    return breaches, {"points": points, **fired}


def main() -> int:
    options = arguments(__doc__, count=500, stride=1)
    with laboratory(options.db, without=options.without) as lab:
        breaches, counts = inject(lab.store, lab.settings, stride=options.stride, rounds=options.count)
    return verdict("fault_injection", options, breaches, **counts)


if __name__ == "__main__":
    sys.exit(main())
