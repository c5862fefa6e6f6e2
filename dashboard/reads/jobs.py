"""Jobs, studies and workers: what was asked for, how far it is, what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from backend import studies as study_files
from backend.domain.jobs import Artifact, Job, JobEvent
from backend.domain.kdep_studies import KdepTable
from backend.domain.study_summary import StudyRow, StudyTable, study_row, summarise, with_controls
from backend.store import workers
from backend.store.queries import job_table
from backend.store.queries import jobs as job_queries
from backend.store.queries.job_table import JobRow
from backend.store.queries.jobs import Study
from backend.store.workers import Worker
from dashboard.reads.door import Door

WORKER_SEEN_S = 120.0
MOST_FOLLOWED = 16


class JobReads(Door):
    """Questions about jobs and studies."""

    def __init__(self, *door: Any) -> None:
        super().__init__(*door)
        self._reported: dict[UUID, tuple[int, list[dict[str, Any]]]] = {}
        self._transfers: dict[UUID, tuple[StudyRow, str]] = {}

    def job(self, id: UUID) -> Job:
        with self.store.read() as connection:
            return job_queries.job(connection, id)

    def job_rows(self, **wanted: Any) -> tuple[list[JobRow], int]:
        with self.store.read() as connection:
            return job_table.job_rows(connection, **wanted)

    def job_kinds(self) -> list[str]:
        with self.store.read() as connection:
            return job_table.kinds(connection)

    def any_open_job(self) -> bool:
        with self.store.read() as connection:
            return job_table.any_open(connection)

    def subject(self, job: Job) -> str:
        return job_table.subject(job.kind, job.spec)

    def children(self, id: UUID) -> dict[str, int]:
        """How many children of a study are in each state."""
        with self.store.read() as connection:
            return {state.value: count for state, count in job_queries.children(connection, id).items()}

    def log(self, id: UUID, count: int = 300) -> list[JobEvent]:
        with self.store.read() as connection:
            return job_table.log_tail(connection, id, count)

    def metrics(self, id: UUID) -> list[dict[str, Any]]:
        """What a job reported at its steps (`step`, `epoch`, `values`), in order, each step once.

        An attempt that goes on from a checkpoint repeats the steps behind it: the later report counts.
        """
        with self.store.read() as connection:
            last = job_table.last_event(connection, id)
            known = self._reported.get(id)
            if known is not None and known[0] == last:
                return known[1]
            events = job_table.metric_events(connection, id)
        reported = once_a_step(events)
        if len(self._reported) >= MOST_FOLLOWED:
            self._reported.clear()
        self._reported[id] = (last, reported)
        return reported

    def artifacts(self, id: UUID) -> list[Artifact]:
        with self.store.read() as connection:
            return list(job_queries.artifacts(connection, job_id=id, limit=200).items)

    def made_models(self, id: UUID) -> list[str]:
        with self.store.read() as connection:
            return job_table.made_models(connection, id)

    def retries(self, id: UUID) -> list[UUID]:
        with self.store.read() as connection:
            return job_table.retries_of(connection, id)

    def has_checkpoint(self, id: UUID) -> bool:
        with self.store.read() as connection:
            return job_table.has_checkpoint(connection, id)

    def owner_of(self, id: UUID) -> str:
        with self.store.read() as connection:
            return job_queries.owner_of(connection, id)

    def workers(self) -> list[Worker]:
        with self.store.read() as connection:
            return workers.list_workers(connection, seen_within_s=WORKER_SEEN_S)

    def transfers(self, teacher: str, student: str, dataset: str | None = None) -> list[Job]:
        with self.store.read() as connection:
            return job_table.transfers(connection, teacher=teacher, student=student, dataset=dataset)

    def transfer_rows(self, dataset: str | None = None) -> list[StudyRow]:
        """Every transfer that succeeded, whoever asked for it, with its control's Δ."""
        finished = self.kept(("transfers",), self._finished_transfers)
        return with_controls(row for row, on in finished if not dataset or on == dataset)

    def transfer_table(self, dataset: str | None = None) -> StudyTable:
        """The same with what they say together; the bootstrap behind the intervals takes a second for hundreds."""

        def ask() -> StudyTable:
            rows = self.transfer_rows(dataset)
            return summarise(rows) if rows else StudyTable(rows=(), methods=(), differences=())

        return self.kept(("transfer table", dataset), ask)

    def transfer_datasets(self) -> dict[str, str]:
        """The data set of every finished transfer, by job id."""
        return {row.job_id: on for row, on in self.kept(("transfers",), self._finished_transfers)}

    def _finished_transfers(self) -> list[tuple[StudyRow, str]]:
        """Rows with their data sets, the newest first. What has ended never changes: only new ones are read."""
        with self.store.read() as connection:
            ids = job_table.finished_transfers(connection)
            new = job_table.outcomes(connection, [id for id in ids if id not in self._transfers])
        for id, spec, result in new:
            self._transfers[id] = (_transfer_row(id, spec, result), str(result.get("dataset") or spec.get("dataset")))
        return [self._transfers[id] for id in ids if id in self._transfers]

    def studies(self) -> list[Study]:
        with self.store.read() as connection:
            return list(job_queries.studies(connection, limit=100).items)

    def study(self, id: UUID) -> Study:
        with self.store.read() as connection:
            return job_queries.study(connection, id)

    def study_table(self, id: UUID) -> StudyTable | KdepTable:
        """Rows and summaries of a study as far as it is."""

        def ask() -> StudyTable | KdepTable:
            with self.store.read() as connection:
                return study_files.study_table(connection, id)

        return self.kept(("study", id), ask)


def once_a_step(events: Sequence[JobEvent]) -> list[dict[str, Any]]:
    """The data of metric events without the steps that a later attempt did again."""
    kept: list[dict[str, Any]] = []
    ceiling, attempt, first = math.inf, None, math.inf
    for event in reversed(events):
        step = float(event.data["step"])
        if event.attempt != attempt:
            ceiling, attempt = min(ceiling, first), event.attempt
        if step < ceiling:
            kept.append(event.data)
            first = min(first, step)
    return kept[::-1]


def _transfer_row(id: UUID, spec: Mapping[str, Any], result: Mapping[str, Any]) -> StudyRow:
    method = spec["method"]
    parts = [method["method"], *(str(method[name]) for name in ("partition",) if name in method)]
    label = " ".join(parts) if result.get("teacher_names") else f"control {method['method']}"
    return study_row(str(id), label, method, result)
