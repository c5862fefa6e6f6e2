"""What a job is: its states, the transitions between them, and why it ended.

The row in the store is the truth; a message only says "look at job 7". `backend.store.jobs` is the only writer.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from backend.domain.records import Record


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ACTIVE = frozenset({JobState.RUNNING, JobState.CANCELLING})

# From each state, where a job may go. An expired lease leads from running to queued, from cancelling to cancelled.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLING, JobState.QUEUED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class Cause(StrEnum):
    """Why an attempt ended without success; decides whether it is tried again."""

    WORKER_LOST = "worker_lost"
    DRAINED = "drained"
    STALLED = "stalled"
    STORE_UNAVAILABLE = "store_unavailable"
    IO_TRANSIENT = "io_transient"
    DISK_FULL = "disk_full"
    HOST_OOM = "host_oom"
    CUDA_OOM = "cuda_oom"
    NONFINITE_LOSS = "nonfinite_loss"
    BAD_INPUT = "bad_input"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    MISSING_EXTRA = "missing_extra"
    POISON = "poison"
    CANCELLED = "cancelled"
    DEPENDENCY = "dependency"
    ERROR = "error"


RETRIED = frozenset(
    {
        Cause.WORKER_LOST,
        Cause.DRAINED,
        Cause.STALLED,
        Cause.STORE_UNAVAILABLE,
        Cause.IO_TRANSIENT,
        Cause.DISK_FULL,
        Cause.HOST_OOM,
    }
)

JobKind = Literal[
    "sync", "register", "scan", "flips", "finetune", "transfer", "remem", "kdep", "analysis", "study", "sleep"
]


class JobProgress(Record):
    step: int = 0
    total: int = 0


class Job(Record):
    """A job as everyone sees it: REST, `--json`, dashboard and workers alike."""

    id: UUID
    kind: str
    state: JobState
    spec: dict[str, Any]
    priority: int = 0
    attempt: int = 0
    progress: JobProgress = Field(default_factory=JobProgress)
    cause: str | None = None
    message: str | None = None
    result: dict[str, Any] | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    retry_of: UUID | None = None
    parent: UUID | None = None
    after: tuple[UUID, ...] = ()
    worker: str | None = None


class JobEvent(Record):
    """One line of a job's history. `state` events carry from/to and cause, `metric` events step and values."""

    id: int
    job_id: UUID
    type: Literal["state", "progress", "metric", "log"]
    attempt: int
    at: datetime
    data: dict[str, Any]


class Artifact(Record):
    """A file that a job published: where, how large, and what it must hash to."""

    id: UUID
    job_id: UUID | None
    name: str
    uri: str
    size: int
    sha256: str
    media_type: str = "application/octet-stream"
    created_at: datetime
