"""A short hand for tests that work jobs at the level of the store: every call is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, select, update

from backend.domain.jobs import Cause, Job, JobState
from backend.store import jobs
from backend.store.job_records import Checkpoint, Claim, FileRecord, new_ids
from backend.store.jobs import NewJob, RetryPolicy
from backend.store.session import Store, db_now
from backend.store.tables import artifacts as artifact_table
from backend.store.tables import job_events as event_table
from backend.store.tables import jobs as job_table

LEASE_S = 60.0
AT_ONCE = RetryPolicy(base_s=0.0)


class Driver:
    """Submits, works and looks at jobs of one store."""

    def __init__(self, store: Store, *, retry: RetryPolicy = AT_ONCE, worker: str = "worker-1") -> None:
        self.store, self.retry, self.worker = store, retry, worker

    def add(self, count: int = 1, **values: Any) -> list[UUID]:
        ids = new_ids(count)
        with self.store.write() as connection:
            filled = {"kind": "sleep", "queue": "cpu", "spec": {"steps": 1}, **values}
            jobs.add(connection, [NewJob(id=job_id, **filled) for job_id in ids])
        return ids

    def add_one(self, **values: Any) -> UUID:
        return self.add(1, **values)[0]

    def study(self, children: int = 2) -> tuple[UUID, list[UUID]]:
        parent = self.add_one(kind="study", spec={})
        return parent, self.add(children, parent=parent)

    def claim(self, **options: Any) -> Claim | None:
        arguments = {"worker": self.worker, "host": "host-1", "lease_s": LEASE_S, **options}
        with self.store.write() as connection:
            return jobs.claim(connection, **arguments)

    def claimed(self, **options: Any) -> Claim:
        claim = self.claim(**options)
        assert claim is not None
        return claim

    def beat(self, claim: Claim) -> jobs.Beat | None:
        with self.store.write() as connection:
            return jobs.heartbeat(connection, claim.job.id, claim.fence, LEASE_S)

    def checkpoint(self, claim: Claim, step: int, name: str = "") -> tuple[Checkpoint, ...]:
        new = Checkpoint(f"file-{name or step}", f"{step:064x}", step)
        with self.store.write() as connection:
            return jobs.point_to_checkpoint(connection, claim.job.id, claim.fence, new)

    def publish(self, claim: Claim, result: Any = None, files: Sequence[FileRecord] = ()) -> None:
        with self.store.write() as connection:
            jobs.hold(connection, claim.job.id, claim.fence)
            jobs.succeed(connection, claim.job.id, claim.fence, result or {"by": claim.fence}, files)

    def fail(self, claim: Claim, cause: Cause, message: str = "because", **details: Any) -> JobState:
        with self.store.write() as connection:
            return jobs.fail(
                connection, claim.job.id, claim.fence, cause, message, retry=self.retry, details=details or None
            )

    def release(self, claim: Claim) -> JobState:
        with self.store.write() as connection:
            return jobs.release(connection, claim.job.id, claim.fence)

    def stopped(self, claim: Claim) -> None:
        with self.store.write() as connection:
            jobs.finish_cancelled(connection, claim.job.id, claim.fence)

    def cancel(self, job_id: UUID) -> Job:
        with self.store.write() as connection:
            return jobs.cancel(connection, job_id)

    def reap(self, *, guard_s: float = 0.0, reachable_s: float = 1e9) -> list[UUID]:
        with self.store.write() as connection:
            return jobs.reap(connection, retry=self.retry, guard_s=guard_s, reachable_s=reachable_s)

    def expire(self, job_id: UUID) -> None:
        """Let the lease have run out a second ago: what time would do."""
        with self.store.write() as connection:
            _expire(connection, job_id)

    def take_over(self, job_id: UUID) -> Claim:
        """Let a lease run out, reap it and claim its job, in one transaction: no heartbeat or worker comes between."""
        with self.store.write() as connection:
            _expire(connection, job_id)
            jobs.reap(connection, retry=self.retry, guard_s=0.0, reachable_s=1e9)
            claim = jobs.claim(connection, worker=self.worker, host="host-1", lease_s=LEASE_S, job_id=job_id)
        assert claim is not None
        return claim

    def get(self, job_id: UUID) -> Job:
        with self.store.read() as connection:
            return jobs.get(connection, job_id)

    def state(self, job_id: UUID) -> str:
        return self.get(job_id).state.value

    def column(self, job_id: UUID, name: str) -> Any:
        with self.store.read() as connection:
            return connection.scalar(select(job_table.c[name]).where(job_table.c.id == job_id))

    def events(self, job_id: UUID, kind: str = "state") -> list[dict[str, Any]]:
        query = select(event_table.c.data).where(event_table.c.job_id == job_id, event_table.c.type == kind)
        with self.store.read() as connection:
            return list(connection.scalars(query.order_by(event_table.c.id)))

    def path(self, job_id: UUID) -> list[str]:
        """The states a job went through, from its events."""
        return [event["to"] for event in self.events(job_id)]

    def completions(self, job_id: UUID) -> int:
        return self.path(job_id).count("succeeded")

    def files(self, job_id: UUID) -> list[str]:
        with self.store.read() as connection:
            query = select(artifact_table.c.uri).where(artifact_table.c.job_id == job_id)
            return list(connection.scalars(query.order_by(artifact_table.c.uri)))

    def count(self) -> int:
        with self.store.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(job_table)) or 0)

    def now(self) -> float:
        with self.store.read() as connection:
            return float(connection.scalar(select(db_now())) or 0.0)


def _expire(connection: Connection, job_id: UUID) -> None:
    leased = [job_table.c.id == job_id, job_table.c.lease_until.is_not(None)]
    connection.execute(update(job_table).where(*leased).values(lease_until=db_now() - 1.0))
