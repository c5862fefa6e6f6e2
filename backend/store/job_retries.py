"""What becomes of an attempt that ended without a result: another try after a pause, or the end. Private to
`backend.store.jobs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from backend.domain.jobs import RETRIED, TERMINAL, Cause, JobState
from backend.store.job_moves import move, settle
from backend.store.session import db_now
from backend.store.tables import job_events, jobs

if TYPE_CHECKING:
    from backend.settings import Settings

# These do not count towards poison: draining is nobody's fault, and a full disk waits for its owner.
FREE_OF_CHARGE = frozenset({Cause.DRAINED, Cause.DISK_FULL})


@dataclass(frozen=True)
class RetryPolicy:
    """Which pause before the next attempt, and how many losses in a row without checkpoint progress are poison."""

    base_s: float = 5.0
    max_s: float = 600.0
    poison_after: int = 3

    @classmethod
    def of(cls, settings: Settings) -> RetryPolicy:
        return cls(settings.retry_base_s, settings.retry_max_s)

    def pause_s(self, losses: int) -> float:
        """Doubles with each loss in a row: 5, 10, 20, … up to ten minutes."""
        return float(min(self.max_s, self.base_s * 2.0 ** min(max(losses, 1) - 1, 60)))


def give_up(
    connection: Connection,
    row: Mapping[Any, Any],
    cause: Cause,
    message: str,
    retry: RetryPolicy,
    details: Mapping[str, Any] | None,
) -> JobState:
    """Where an attempt that ended without a result leads."""
    state, which = JobState(row["state"]), [jobs.c.id == row["id"], jobs.c.fence == row["fence"]]
    if state in TERMINAL:  # only without the fence
        return state
    why: dict[str, Any] = {"cause": cause, "message": message, "details": details}
    losses = row["losses"] + (cause not in FREE_OF_CHARGE)
    if state is JobState.CANCELLING and cause in RETRIED:
        moved = move(connection, which, state, JobState.CANCELLED, **why, shown=Cause.CANCELLED)
    elif cause not in RETRIED or state is JobState.CANCELLING or _second_time(connection, row, cause):
        moved = move(connection, which, state, JobState.FAILED, **why)
    elif losses >= retry.poison_after and cause not in FREE_OF_CHARGE:
        text = f"lost {losses} times in a row without checkpoint progress; last: {cause.value}: {message}"
        why |= {"cause": Cause.POISON, "message": text, "details": {"last_cause": cause.value, **(details or {})}}
        moved = move(connection, which, state, JobState.FAILED, **why, values={"losses": losses})
    else:
        pause_s = retry.pause_s(row["attempt"] if cause is Cause.DISK_FULL else losses)
        values: dict[str, Any] = {"losses": losses, "not_before": db_now() + pause_s}
        if cause is Cause.DRAINED:
            values |= {"not_before": db_now(), "attempt": jobs.c.attempt - 1}
        moved = move(connection, which, state, JobState.QUEUED, **why, values=values)
    settle(connection, moved)
    return moved[0].target


def _second_time(connection: Connection, row: Mapping[Any, Any], cause: Cause) -> bool:
    """Running out of host memory deserves one retry (without loader processes), not two."""
    if cause is not Cause.HOST_OOM:
        return False
    query = select(job_events.c.data).where(job_events.c.job_id == row["id"], job_events.c.type == "state")
    return any(data.get("cause") == cause.value for data in connection.scalars(query))
