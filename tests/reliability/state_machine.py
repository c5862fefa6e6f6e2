"""T19: jobs as a state machine. Hypothesis draws submissions, claims, beats, checkpoints, publications, failures, drains,
cancels, expiries, reaps and crashes in any order, by living and by dead attempts, and compares every row with a model.

Terminal states never change, nothing completes twice, tokens only grow, whoever lost a lease writes nothing, and in the
end no row is stuck. Without `fence` it finds a sequence that breaks this.
"""

import contextlib
import random
import sys
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, Phase, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select, update

from backend.domain.errors import CancelRequested, LostLease
from backend.domain.jobs import RETRIED, Cause
from backend.store.job_records import Claim
from backend.store.session import Store
from backend.store.tables import jobs as job_table
from tests.reliability.harness import arguments, laboratory, verdict
from tests.services.driver import Driver

ENDED = ("succeeded", "failed", "cancelled")
CAUSES = [Cause.WORKER_LOST, Cause.IO_TRANSIENT, Cause.DISK_FULL, Cause.STALLED, Cause.BAD_INPUT, Cause.NONFINITE_LOSS]


@dataclass
class Expected:
    """What the model says of a job."""

    state: str = "queued"
    fence: int = 0
    attempt: int = 0
    losses: int = 0
    step: int | None = None
    expired: bool = False
    priority: int = 0
    after: tuple[UUID, ...] = ()
    claims: list[Claim] = field(default_factory=list)


def machine(store: Store) -> type[RuleBasedStateMachine]:
    """The machine on one store; examples follow each other on it, each with jobs of its own."""

    class Jobs(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.driver = Driver(store)
            self.model: dict[UUID, Expected] = {}
            with store.write() as connection:  # an example that failed may have left jobs behind
                left = update(job_table).where(job_table.c.state.not_in(ENDED))
                connection.execute(left.values(state="cancelled", lease_until=None, finished_at=0.0))

        # --- the model -----------------------------------------------------------------------------------------

        def end(self, job_id: UUID, state: str) -> None:
            """A job ends; whoever waits for one that did not succeed is cancelled."""
            self.model[job_id].state = state
            if state != "succeeded":
                for other, expected in self.model.items():
                    if job_id in expected.after and expected.state == "queued":
                        self.end(other, "cancelled")

        def lose(self, job_id: UUID, cause: Cause) -> str:
            job = self.model[job_id]
            if cause not in RETRIED:
                self.end(job_id, "failed")
            elif job.state == "cancelling":
                self.end(job_id, "cancelled")
            else:
                job.losses += cause is not Cause.DISK_FULL
                if job.losses >= 3 and cause is not Cause.DISK_FULL:
                    self.end(job_id, "failed")
                else:
                    job.state = "queued"
            return job.state

        def claimable(self) -> list[UUID]:
            ready = [
                job_id
                for job_id, job in self.model.items()
                if job.state == "queued" and all(self.model[one].state == "succeeded" for one in job.after)
            ]
            return sorted(ready, key=lambda one: (-self.model[one].priority, one))

        def is_own(self, claim: Claim) -> bool:
            job = self.model[claim.job.id]
            return job.fence == claim.fence and job.state in ("running", "cancelling")

        def pick(self, data: st.DataObject) -> Claim:
            claims = [claim for job in self.model.values() for claim in job.claims]
            assume(claims)
            return data.draw(st.sampled_from(claims), label="attempt")

        # --- what may happen -----------------------------------------------------------------------------------

        @precondition(lambda self: len(self.model) < 8)
        @rule(priority=st.integers(-1, 1), data=st.data())
        def submit(self, priority: int, data: st.DataObject) -> None:
            may_follow = [one for one, job in self.model.items() if job.state not in ("failed", "cancelled")]
            chosen = data.draw(st.lists(st.sampled_from(may_follow), max_size=2, unique=True)) if may_follow else []
            job_id = self.driver.add_one(priority=priority, after=tuple(chosen))
            self.model[job_id] = Expected(priority=priority, after=tuple(chosen))

        @rule()
        def claim(self) -> None:
            ready = self.claimable()
            claim = self.driver.claim()
            if not ready:
                assert claim is None
                return
            assert claim is not None
            assert claim.job.id == ready[0]
            job = self.model[claim.job.id]
            job.state, job.expired = "running", False
            job.fence, job.attempt = job.fence + 1, job.attempt + 1
            assert (claim.fence, claim.job.attempt, claim.losses) == (job.fence, job.attempt, job.losses)
            assert [one.step for one in claim.checkpoints[:1]] == ([] if job.step is None else [job.step])
            job.claims.append(claim)

        @rule(data=st.data())
        def beat(self, data: st.DataObject) -> None:
            claim = self.pick(data)
            beat = self.driver.beat(claim)
            job = self.model[claim.job.id]
            if self.is_own(claim):
                assert beat is not None
                assert beat.cancel_requested == (job.state == "cancelling")
                job.expired = False
            else:
                assert beat is None

        @rule(data=st.data(), step=st.integers(1, 5))
        def checkpoint(self, data: st.DataObject, step: int) -> None:
            claim = self.pick(data)
            job = self.model[claim.job.id]
            if self.is_own(claim):
                self.driver.checkpoint(claim, step, name=f"{claim.fence}-{step}")
                if job.step is None or step > job.step:
                    job.losses = 0
                job.step = step
            else:
                self.refused(lambda: self.driver.checkpoint(claim, step))

        @rule(data=st.data())
        def publish(self, data: st.DataObject) -> None:
            claim = self.pick(data)
            job = self.model[claim.job.id]
            if self.is_own(claim) and job.state == "running":
                self.driver.publish(claim)
                self.end(claim.job.id, "succeeded")
            elif self.is_own(claim):
                with contextlib.suppress(CancelRequested):
                    self.driver.publish(claim)
                    raise AssertionError("published although it is being cancelled")
            else:
                self.refused(lambda: self.driver.publish(claim))

        @rule(data=st.data(), cause=st.sampled_from(CAUSES))
        def fail(self, data: st.DataObject, cause: Cause) -> None:
            claim = self.pick(data)
            if self.is_own(claim):
                assert self.driver.fail(claim, cause).value == self.lose(claim.job.id, cause)
            else:
                self.refused(lambda: self.driver.fail(claim, cause))

        @rule(data=st.data())
        def drain(self, data: st.DataObject) -> None:
            claim = self.pick(data)
            job = self.model[claim.job.id]
            if not self.is_own(claim):
                self.refused(lambda: self.driver.release(claim))
            elif job.state == "cancelling":
                self.driver.release(claim)
                self.end(claim.job.id, "cancelled")
            else:
                self.driver.release(claim)
                job.state, job.attempt = "queued", job.attempt - 1

        @rule(data=st.data())
        def stop(self, data: st.DataObject) -> None:
            claim = self.pick(data)
            if self.is_own(claim) and self.model[claim.job.id].state == "cancelling":
                self.driver.stopped(claim)
                self.end(claim.job.id, "cancelled")
            else:
                self.refused(lambda: self.driver.stopped(claim))

        @rule(data=st.data())
        def cancel(self, data: st.DataObject) -> None:
            assume(self.model)
            job_id = data.draw(st.sampled_from(list(self.model)), label="job")
            job = self.model[job_id]
            self.driver.cancel(job_id)
            if job.state == "queued":
                self.end(job_id, "cancelled")
            elif job.state == "running":
                job.state = "cancelling"

        @rule(data=st.data())
        def crash(self, data: st.DataObject) -> None:
            """A worker dies or is stopped: nobody renews its lease."""
            active = [one for one, job in self.model.items() if job.state in ("running", "cancelling")]
            assume(active)
            job_id = data.draw(st.sampled_from(active), label="job")
            self.driver.expire(job_id)
            self.model[job_id].expired = True

        @rule()
        def reap(self) -> None:
            dead = {one for one, job in self.model.items() if job.expired and job.state in ("running", "cancelling")}
            assert set(self.driver.reap()) == dead
            for job_id in dead:
                self.model[job_id].expired = False
                self.lose(job_id, Cause.WORKER_LOST)

        @precondition(lambda self: any(job.state in ("running", "cancelling") for job in self.model.values()))
        @rule()
        def outage(self) -> None:
            """The database is away for longer than a lease: all run out, the reaper keeps still, the living beat on."""
            held = [one for one, job in self.model.items() if job.state in ("running", "cancelling")]
            for job_id in held:
                self.driver.expire(job_id)
            assert self.driver.reap(guard_s=180.0, reachable_s=1.0) == []
            for job_id in held:
                if not self.model[job_id].expired:
                    assert self.driver.beat(self.model[job_id].claims[-1]) is not None

        def refused(self, write: Any) -> None:
            try:
                write()
            except LostLease:
                return
            raise AssertionError("a write of an attempt that is no longer its own went through")

        # --- what must always be true --------------------------------------------------------------------------

        @invariant()
        def rows_are_as_expected(self) -> None:
            columns = ("id", "state", "fence", "attempt", "losses", "lease_until", "finished_at")
            query = select(*(job_table.c[name] for name in columns)).where(job_table.c.id.in_(list(self.model)))
            with self.driver.store.read() as connection:
                rows = connection.execute(query).all()
            assert len(rows) == len(self.model)
            for row in rows:
                job = self.model[row.id]
                assert (row.state, row.fence, row.attempt) == (job.state, job.fence, job.attempt)
                assert row.losses <= max(job.losses, 3)
                assert (row.lease_until is not None) == (row.state in ("running", "cancelling"))
                assert (row.finished_at is not None) == (row.state in ENDED)

        def teardown(self) -> None:
            """Let everybody work on: no row is stuck, and each ended once."""
            for _ in range(4 * len(self.model) + 4):
                for job_id, job in self.model.items():
                    if job.state in ("running", "cancelling") and not job.expired:
                        self.driver.expire(job_id)
                        job.expired = True
                self.reap()
                while claim := self.driver.claim():
                    self.driver.publish(claim)
                    job = self.model[claim.job.id]
                    job.fence, job.attempt = claim.fence, claim.job.attempt
                    self.end(claim.job.id, "succeeded")
                if all(job.state in ENDED for job in self.model.values()):
                    break
            for job_id, job in self.model.items():
                assert job.state in ENDED, f"stuck in {job.state}"
                path = self.driver.path(job_id)
                assert sum(state in ENDED for state in path) == 1, path
                assert path[-1] == job.state
                fences = [event["fence"] for event in self.driver.events(job_id)]
                assert fences == sorted(fences)

    return Jobs


def explore(store: Store, *, examples: int, steps: int, start: int, shrink: bool = True) -> None:
    """Raises AssertionError (or what the store raised) with a sequence that breaks the model, the shortest it can find
    unless `shrink` is off."""
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(start)(machine(store)), settings=options)


def main() -> int:
    options = arguments(__doc__, count=500, steps=50)
    breaches: list[str] = []
    with laboratory(options.db, without=options.without) as lab:
        random.seed(options.seed)
        try:
            explore(lab.store, examples=options.count, steps=options.steps, start=options.seed)
        except Exception as error:
            notes = " | ".join(getattr(error, "__notes__", ()))
            breaches.append(f"{type(error).__name__}: {error} {notes}"[:2000])
    return verdict("state_machine", options, breaches, examples=options.count, steps=options.steps)


if __name__ == "__main__":
    sys.exit(main())
