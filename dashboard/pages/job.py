"""One job: how far it is and how long it takes, its curves, its log, every attempt and why it ended, its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update

from backend.domain.errors import ZoograftError
from backend.domain.jobs import TERMINAL, Job, JobEvent, JobState
from dashboard import formats
from dashboard.actions import Actions
from dashboard.components import cards
from dashboard.figures import curves
from dashboard.reads import Reads, as_id, to_json
from dashboard.theme import as_scheme
from dashboard.view import View, link, match

PATH = "/jobs/{id}"
TITLE = "Job"
NAV = None
TRAINING = ("transfer", "finetune", "remem", "kdep")
LOG_LINES = 300
REFRESH_MS = 1000


def layout(reads: Reads, view: View) -> Any:
    job = reads.job(as_id(view.params["id"]))
    metrics = curves.by_name([event.data for event in reads.metrics(job.id)])
    return [
        cards.page_title(
            f"{job.kind.capitalize()}: {reads.subject(job)}",
            f"Job {job.id}",
            dmc.Button("Cancel", id="job-cancel", variant="default"),
            dmc.Button("Retry", id="job-retry", variant="default"),
            dmc.Button("Resume", id="job-resume", variant="default"),
        ),
        html.Div(id="job-said", className="error-text", role="alert"),
        html.Div(_status(reads, job), id="job-status"),
        html.Div(_outcome(reads, job), id="job-outcome"),
        *(_figures(job, metrics) if job.kind in TRAINING or metrics else ()),
        cards.section("Log", html.Div(_log(reads, job), id="job-log")),
        cards.section("Attempts", html.Div(_attempts(reads, job), id="job-attempts")),
        cards.folded("What was asked for", dmc.Code(to_json(job.spec), block=True, className="command")),
        html.Div(_files(reads, job), id="job-files"),
        dcc.Store(id="job-terminal", data=job.state in TERMINAL),
        dcc.Interval(id="job-live", interval=REFRESH_MS, disabled=job.state in TERMINAL),
    ]


def register(app: Dash, reads: Reads, actions: Actions) -> None:
    @app.callback(
        Output("job-status", "children"),
        Output("job-outcome", "children"),
        Output("job-log", "children"),
        Output("job-attempts", "children"),
        Output("job-files", "children"),
        Output("job-live", "disabled"),
        Output("job-terminal", "data"),
        Input("job-live", "n_intervals"),
        State("url", "pathname"),
        State("job-terminal", "data"),
        prevent_initial_call=True,
    )
    def follow(_ticks: int, path: str, ended: bool) -> Any:
        job = _job(reads, path)
        if job is None or ended:
            return (no_update,) * 5 + (True, no_update)
        done = job.state in TERMINAL
        return (
            _status(reads, job),
            _outcome(reads, job),
            _log(reads, job),
            _attempts(reads, job),
            _files(reads, job),
            done,
            done,
        )

    for graph, draw in (
        ("job-loss", curves.loss_curves),
        ("job-delta", curves.epoch_curves),
        ("job-share", curves.share_curves),
    ):
        _live_figure(app, reads, graph, draw)

    @app.callback(
        Output("job-epochs", "figure"),
        Input("scheme", "data"),
        State("url", "pathname"),
    )
    def draw_epochs(scheme: str, path: str) -> Any:
        job = _job(reads, path)
        if job is None:
            return no_update
        return curves.epochs((job.result or {}).get("epochs") or (), stages(job), as_scheme(scheme))

    @app.callback(
        Output("job-cancel", "disabled"),
        Output("job-retry", "disabled"),
        Output("job-resume", "disabled"),
        Input("job-terminal", "data"),
        Input("job-said", "children"),
        State("url", "pathname"),
    )
    def buttons(ended: bool, _said: str, path: str) -> Any:
        job = _job(reads, path)
        if job is None or not actions.may("submit"):
            return True, True, True
        again = job.state in (JobState.FAILED, JobState.CANCELLED)
        cancellable = job.state in (JobState.QUEUED, JobState.RUNNING)
        return not cancellable, not again, not (again and job.kind != "study" and reads.has_checkpoint(job.id))

    @app.callback(
        Output("job-said", "children"),
        Output("job-live", "disabled", allow_duplicate=True),
        Input("job-cancel", "n_clicks"),
        State("url", "pathname"),
        prevent_initial_call=True,
        running=[(Output("job-cancel", "loading"), True, False)],
    )
    def cancel(clicks: int | None, path: str) -> Any:
        job = _job(reads, path)
        if not clicks or job is None:
            return no_update, no_update
        try:
            actions.cancel(job.id)
        except ZoograftError as error:
            return error.message, no_update
        return "", False

    for button, resume in (("job-retry", False), ("job-resume", True)):
        _again(app, reads, actions, button, resume)


def _live_figure(app: Dash, reads: Reads, graph: str, draw: Any) -> None:
    @app.callback(
        Output(graph, "figure"),
        Input("scheme", "data"),
        Input("job-live", "n_intervals"),
        Input("job-terminal", "data"),
        State("url", "pathname"),
    )
    def redraw(scheme: str, _ticks: int, _ended: bool, path: str) -> Any:
        job = _job(reads, path)
        if job is None:
            return no_update
        made = draw(curves.by_name([event.data for event in reads.metrics(job.id)]), as_scheme(scheme))
        made.update_layout(uirevision=str(job.id))
        return made


def _again(app: Dash, reads: Reads, actions: Actions, button: str, resume: bool) -> None:
    @app.callback(
        Output("url", "href", allow_duplicate=True),
        Output("job-said", "children", allow_duplicate=True),
        Input(button, "n_clicks"),
        State("url", "pathname"),
        prevent_initial_call=True,
        running=[(Output(button, "loading"), True, False)],
    )
    def again(clicks: int | None, path: str) -> Any:
        job = _job(reads, path)
        if not clicks or job is None:
            return no_update, no_update
        try:
            return link("jobs", str(actions.retry(job.id, resume=resume).id)), ""
        except ZoograftError as error:
            return no_update, error.message


def stages(job: Job) -> list[tuple[str, int]]:
    """(teacher, epochs) of a sequential transfer, in order; empty for others."""
    result, method = job.result or {}, job.spec.get("method") or {}
    teachers, n_epochs = result.get("teacher_names") or (), len(result.get("epochs") or ())
    if len(teachers) < 2 or method.get("multi", "sequential") == "parallel" or n_epochs % len(teachers):
        return []
    order = (
        teachers
        if method.get("teacher_order", "given") == "given"
        else [f"teacher {i + 1}" for i in range(len(teachers))]
    )
    return [(str(name), n_epochs // len(teachers)) for name in order]


def _job(reads: Reads, path: str) -> Job | None:
    params = match(PATH, path or "")
    return None if params is None else reads.job(as_id(params["id"]))


def _status(reads: Reads, job: Job) -> Any:
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
        rows.append(("What now", "Mend what the message names, then Retry; Resume goes on from the last checkpoint."))
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


def _outcome(reads: Reads, job: Job) -> Any:
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


def _figures(job: Job, metrics: Mapping[str, Any]) -> list[Any]:
    figures = [cards.figure_card("job-loss", "Loss", "Every term, at every reported step.", height=320)]
    if job.kind == "transfer":
        figures.append(
            cards.figure_card("job-delta", "Gain, loss and Δ", "On the evaluation split, after each epoch.", height=320)
        )
        if (job.spec.get("method") or {}).get("method") == "kl_dp" or curves.has_shares(metrics):
            figures.append(
                cards.figure_card(
                    "job-share", "Given to the teacher", "Where the partition follows the teacher.", height=320
                )
            )
        if (job.result or {}).get("epochs"):
            figures.append(
                cards.figure_card(
                    "job-epochs", "Over the epochs", "Sequential runs change teacher at the lines.", height=320
                )
            )
    return [html.Div(figures, className="two-columns")]


def _log(reads: Reads, job: Job) -> html.Pre:
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


def _attempts(reads: Reads, job: Job) -> Any:
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


def _files(reads: Reads, job: Job) -> Any:
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


def _metric_rows(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    for event in reads.metrics(as_id(view.params["id"])):
        for name, value in event.data.get("values", {}).items():
            yield {"step": event.data["step"], "epoch": event.data.get("epoch"), "metric": name, "value": value}


def _epoch_rows(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    for one in (reads.job(as_id(view.params["id"])).result or {}).get("epochs") or ():
        yield {**{k: v for k, v in one.items() if k != "metrics"}}


TABLES = {"job-loss": _metric_rows, "job-delta": _metric_rows, "job-share": _metric_rows, "job-epochs": _epoch_rows}
