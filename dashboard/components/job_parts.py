"""The parts of a job's page: how far it is, what it found, its log, every attempt and why it ended, its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dash_mantine_components as dmc
from dash import html

from backend.domain.jobs import Job, JobEvent, JobState
from dashboard import formats
from dashboard.components import cards
from dashboard.reads import Reads, to_json
from dashboard.view import link

LOG_LINES = 300


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


def outcome(reads: Reads, job: Job) -> Any:
    """What a finished job found: numbers, warnings, and where the student is."""
    if job.result is None:
        return None
    result = job.result
    children: list[Any] = []
    if "transfer_delta" in result:
        children.append(cards.number_row(_transfer_numbers(result)))
    elif isinstance(result.get("accuracy"), float):
        children.append(cards.number_row([cards.number_card("Accuracy", formats.percent(result["accuracy"]))]))
    links = [
        dmc.Anchor(f"Open the student: {name}", href=link("zoo", name), fw=600, className="open-student")
        for name in reads.made_models(job.id)
    ]
    if "transfer_delta" in result and result.get("teacher_names"):
        on = f"{result['dataset']}/{result['split']}"
        links.append(
            dmc.Anchor("Back to the pair", href=link("pairs", result["teacher_names"][0], result["student"], on=on))
        )
    if job.kind in ("scan", "flips"):
        links.append(
            dmc.Anchor(
                "Look at the pairs", href=link("pairs", on=f"{result.get('dataset')}/{result.get('split')}"), fw=600
            )
        )
    children += [
        dmc.Text(f"Warning: {text}", className="warning-text", size="sm") for text in result.get("warnings") or ()
    ]
    if links:
        children.append(dmc.Group(links))
    if job.kind == "scan":
        children.append(_scan(result))
    if not children:
        children.append(dmc.Code(to_json({k: v for k, v in result.items() if k != "provenance"})[:20_000], block=True))
    return cards.section("Result", *children)


def _transfer_numbers(result: Mapping[str, Any]) -> list[dmc.Paper]:
    def shown(name: str) -> str:
        return formats.bracket(result.get(f"{name}_low"), result.get(f"{name}_high"))

    numbers = [
        cards.number_card("Δ transfer", formats.signed_percent(result["transfer_delta"]), shown("transfer_delta")),
        cards.number_card(
            "Accuracy of the student",
            formats.percent(result["student_accuracy_after"]),
            f"before: {formats.percent(result['student_accuracy_before'])}",
        ),
        cards.number_card("Knowledge gained", formats.percent(result["knowledge_gain"]), shown("knowledge_gain")),
        cards.number_card("Knowledge lost", formats.percent(result["knowledge_loss"]), shown("knowledge_loss")),
    ]
    if result.get("control_delta") is not None:
        numbers.append(
            cards.number_card(
                "Δ above the control",
                formats.signed_percent(result.get("delta_above_control")),
                shown("delta_above_control"),
                f"control without a teacher: {formats.signed_percent(result['control_delta'])}",
            )
        )
    rate = (result.get("transfer_rate") or {}).get("100")
    if rate is not None:
        numbers.append(cards.number_card("Transfer rate", formats.percent(rate, 1), "of the positive flips, now right"))
    return numbers


def _scan(result: Mapping[str, Any]) -> Any:
    rows = [
        [
            dmc.Anchor(one["model"], href=link("zoo", one["model"]), size="sm"),
            formats.percent(one.get("accuracy")),
            formats.whole(one.get("n_samples")),
            formats.number(one.get("images_per_s"), 0),
        ]
        for one in result.get("evaluated") or ()
    ]
    failed = [[one.get("model"), one.get("reason")] for one in result.get("failed") or () if isinstance(one, Mapping)]
    parts = [
        cards.table(("Model", "Accuracy", "Samples", "Images/s"), rows, label="Scanned models", numeric=(1, 2, 3))
        if rows
        else None,
        cards.table(("Model", "Why it failed"), failed, label="Models that failed") if failed else None,
    ]
    return html.Div(parts)


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
