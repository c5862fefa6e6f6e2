"""The parts of a job's page: how far it is, its log, every attempt and why it ended, its files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import dash_mantine_components as dmc
from dash import html

from backend.domain.jobs import Job, JobEvent, JobState
from dashboard import formats
from dashboard.components import cards
from dashboard.reads import Reads
from dashboard.view import link

LOG_LINES = 300
NAMES = {"remem": "ReMem", "kdep": "KDEP", "finetune": "Fine-tuning"}


def kind_name(kind: str) -> str:
    """A kind of job as a heading names it."""
    return NAMES.get(kind, kind.capitalize())


def status(reads: Reads, job: Job) -> Any:
    """State, progress and time left, cause and message, and what waits or follows."""
    step, total = job.progress.step, job.progress.total
    now = datetime.now(UTC)
    left = None
    if job.state is JobState.RUNNING and job.started_at and 0 < step < total:
        left = (now - job.started_at).total_seconds() * (total - step) / step
    rows: list[tuple[str, Any]] = [
        ("State", cards.state_badge(job.state.value)),
        ("Asked for", f"{formats.moment(job.created_at)} UTC"),
        ("Ran for", formats.ran_for(job.started_at, job.finished_at, now)),
    ]
    if left is not None:
        rows.append(("Time left", f"about {formats.duration(left)}"))
    if job.worker:
        rows.append(("Worker", job.worker))
    if job.cause:
        rows.append(("Cause", job.cause))
    if job.message:
        rows.append(
            ("Message", html.Span(job.message, className="error-text" if job.state is JobState.FAILED else None))
        )
    if job.state is JobState.QUEUED:
        rows.append(("Waits for", _waits(reads, job)))
    if job.state is JobState.FAILED:
        resume = "; Resume goes on from the last checkpoint" if reads.has_checkpoint(job.id) else ""
        rows.append(("What now", f"Mend what the message names, then Retry{resume}."))
    if job.parent:
        rows.append(("Study", dmc.Anchor(str(job.parent), href=link("studies", str(job.parent)))))
    if job.retry_of:
        rows.append(("Tries again", dmc.Anchor(str(job.retry_of), href=link("jobs", str(job.retry_of)))))
    again = reads.retries(job.id)
    rows += [("Tried again as", dmc.Anchor(str(later), href=link("jobs", str(later)))) for later in again]
    share = 100 * step / total if total else (100 if job.state is JobState.SUCCEEDED else 0)
    return cards.section(
        "State",
        dmc.Progress(
            value=min(100, share), mb="sm", animated=job.state is JobState.RUNNING, **{"aria-label": "Progress"}
        ),
        dmc.Text(f"{step:,} of {total:,} steps ({share:.0f} %)" if total else "No step yet", size="sm", mb="sm"),
        cards.facts(rows),
    )


def _waits(reads: Reads, job: Job) -> Any:
    open_jobs = [one for one in (reads.job(id) for id in job.after) if one.state is not JobState.SUCCEEDED]
    if open_jobs:
        return [
            dmc.Anchor(reads.subject(one) or str(one.id), href=link("jobs", str(one.id)), mr="sm") for one in open_jobs
        ]
    return "a free worker" if reads.workers() else "a worker; none is there: zoograft worker, or zoograft up"


def log(reads: Reads, job: Job) -> html.Pre:
    """The last lines, and the changes of state among them."""
    lines = [_line(event) for event in reads.log(job.id, LOG_LINES)]
    return html.Pre(
        "\n".join(lines) or "Nothing yet.", className="log", tabIndex="0", **{"aria-label": "Log"}, role="log"
    )


def _line(event: JobEvent) -> str:
    at = event.at.astimezone(UTC).strftime("%H:%M:%S")
    if event.type == "log":
        return f"{at}  {event.data.get('message', '')}"
    change = f"{event.data.get('from') or 'new'} → {event.data.get('to')}"
    why = f" ({event.data['cause']})" if event.data.get("cause") else ""
    return f"{at}  {change}{why}"


def attempt_table(reads: Reads, job: Job) -> Any:
    """Every attempt: who, when, how long, and why it ended."""
    rows = attempts(reads.log(job.id, 2000))
    if not rows:
        return dmc.Text("No attempt yet.", size="sm", c="dimmed")
    return cards.table(("Attempt", "Worker", "Began (UTC)", "Ran for", "Ended", "Cause"), rows, label="Attempts")


def attempts(events: Sequence[JobEvent]) -> list[list[str]]:
    """One row an attempt, from the changes of state: worker, begin, how long, and why it ended."""
    rows: list[list[str]] = []
    began: datetime | None = None
    for event in events:
        if event.type != "state":
            continue
        to, cause = event.data.get("to"), event.data.get("cause")
        if to == "running":
            began = event.at
            rows.append(
                [str(event.attempt), str(event.data.get("worker") or "–"), formats.moment(began), "–", "running", "–"]
            )
        elif rows and rows[-1][4] == "running" and to != "cancelling":
            rows[-1][3:] = [
                formats.ran_for(began, event.at),
                "back in the queue" if to == "queued" else str(to),
                cause or "–",
            ]
    return rows


def files(reads: Reads, job: Job) -> Any:
    """What was published, to take away."""
    found = reads.artifacts(job.id)
    if not found:
        return None
    rows = [
        [
            html.A(one.name, href=f"/api/v1/artifacts/{one.id}", className="plain-link", download=True),
            formats.size(one.size),
            one.sha256[:16],
        ]
        for one in found
    ]
    return cards.section("Files", cards.table(("File", "Size", "SHA-256"), rows, label="Files", numeric=(1,)))
