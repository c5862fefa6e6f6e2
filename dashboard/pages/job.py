"""One job: how far it is and how long it takes, its curves, its log, every attempt and why it ended, its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update

from backend.domain.errors import ZoograftError
from backend.domain.jobs import TERMINAL, Job, JobState
from dashboard.actions import Actions
from dashboard.components import cards, job_outcome, job_parts
from dashboard.figures import curves
from dashboard.reads import Reads, as_id, to_json
from dashboard.theme import Scheme, as_scheme
from dashboard.view import View, link, match

PATH = "/jobs/{id}"
TITLE = "Job"
NAV = None
TRAINING = ("transfer", "finetune", "remem", "kdep")
REFRESH_MS = 1000
CURVES = {"job-loss": curves.loss_curves, "job-speed": curves.speed_curve, "job-share": curves.share_curves}
FIGURES = {
    "job-loss": ("Loss", "Every term, at every reported step."),
    "job-speed": ("Speed", "Images a second, of the models that are scored together."),
    "job-epochs": (
        "Over the epochs",
        "Gain, loss and Δ on the evaluation split; sequential runs change teacher at the dashed lines.",
    ),
    "job-share": ("Given to the teacher", "Where the partition follows the teacher."),
}


def require(reads: Reads, view: View) -> None:
    reads.owner_of(as_id(view.params["id"]))


def layout(reads: Reads, view: View) -> Any:
    job = reads.job(as_id(view.params["id"]))
    names = shown(job, curves.by_name(reads.metrics(job.id)))
    return [
        cards.page_title(
            ": ".join(part for part in (job_parts.kind_name(job.kind), reads.subject(job)) if part),
            f"Job {job.id}",
            dmc.Button("Cancel", id="job-cancel", variant="default"),
            dmc.Button("Retry", id="job-retry", variant="default"),
            dmc.Button("Resume", id="job-resume", variant="default"),
        ),
        html.Div(id="job-said", className="error-text", role="alert"),
        html.Div(job_parts.status(reads, job), id="job-status"),
        html.Div(job_outcome.outcome(reads, job), id="job-outcome"),
        html.Div(_figures(names), id="job-figures", className="two-columns"),
        cards.section("Log", html.Div(job_parts.log(reads, job), id="job-log")),
        cards.section("Attempts", html.Div(job_parts.attempt_table(reads, job), id="job-attempts")),
        cards.folded("What was asked for", dmc.Code(to_json(job.spec), block=True, className="command")),
        html.Div(job_parts.files(reads, job), id="job-files"),
        dcc.Store(id="job-shown", data=names),
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
        Output("job-figures", "children"),
        Output("job-shown", "data"),
        Input("job-live", "n_intervals"),
        State("url", "pathname"),
        State("job-terminal", "data"),
        State("job-shown", "data"),
        prevent_initial_call=True,
    )
    def follow(_ticks: int, path: str, ended: bool, before: Sequence[str]) -> Any:
        job = _job(reads, path)
        if job is None or ended:
            return (no_update,) * 5 + (True, no_update, no_update, no_update)
        done = job.state in TERMINAL
        names = shown(job, curves.by_name(reads.metrics(job.id)))
        # Figures stay where they are, with what somebody zoomed into, unless another one has come.
        figures = (_figures(names), names) if names != list(before) else (no_update, no_update)
        return (
            job_parts.status(reads, job),
            job_outcome.outcome(reads, job),
            job_parts.log(reads, job),
            job_parts.attempt_table(reads, job),
            job_parts.files(reads, job),
            done,
            done,
            *figures,
        )

    for name in FIGURES:
        _live_figure(app, reads, name)

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


def _live_figure(app: Dash, reads: Reads, name: str) -> None:
    @app.callback(
        Output(name, "figure"),
        Input("scheme", "data"),
        Input("job-live", "n_intervals"),
        Input("job-terminal", "data"),
        State("url", "pathname"),
    )
    def redraw(scheme: str, _ticks: int, _ended: bool, path: str) -> Any:
        job = _job(reads, path)
        if job is None:
            return no_update
        made = draw(name, job, reads.metrics(job.id), as_scheme(scheme))
        made.update_layout(uirevision=str(job.id))
        return made


def shown(job: Job, metrics: Mapping[str, Any]) -> list[str]:
    """Which figures a job has by now."""
    names = ["job-loss"] if job.kind in TRAINING or curves.losses(metrics) else []
    if curves.SPEED in metrics:
        names.append("job-speed")
    if job.kind == "transfer":
        names.append("job-epochs")
        if (job.spec.get("method") or {}).get("method") == "kl_dp" or curves.has_shares(metrics):
            names.append("job-share")
    return names


def draw(name: str, job: Job, events: Sequence[Mapping[str, Any]], scheme: Scheme) -> Any:
    """One figure of a job from what it reported so far, and from its result once it has one."""
    if name == "job-epochs":
        return curves.epochs(*epochs(job, events), scheme)
    metrics = curves.by_name(events)
    return CURVES[name](metrics, scheme)


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


def epochs(job: Job, events: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], list[tuple[str, int]]]:
    """The epochs of a transfer, and (teacher, epochs) of its stages in order where it learns from one after another.

    While it runs its events tell; a run that was resumed by another job has its first epochs in the result alone.
    """
    reported, told = curves.reported_epochs(events)
    result = (job.result or {}).get("epochs") or ()
    if len(result) <= len(reported):
        return reported, told if len(told) > 1 else []
    teachers = (job.result or {}).get("teacher_names") or ()
    in_turn = len(teachers) > 1 and (job.spec.get("method") or {}).get("multi", "sequential") != "parallel"
    if not in_turn or len(result) % len(teachers):
        return result, []
    given = (job.spec.get("method") or {}).get("teacher_order", "given") == "given"
    names = teachers if given else [f"teacher {i + 1}" for i in range(len(teachers))]
    return result, [(str(name), len(result) // len(teachers)) for name in names]


def _job(reads: Reads, path: str) -> Job | None:
    params = match(PATH, path or "")
    return None if params is None else reads.job(as_id(params["id"]))


def _figures(names: Sequence[str]) -> list[Any]:
    return [cards.figure_card(name, *FIGURES[name], height=320) for name in names]


def _metric_rows(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    for event in reads.metrics(as_id(view.params["id"])):
        for name, value in event.get("values", {}).items():
            yield {"step": event["step"], "epoch": event.get("epoch"), "metric": name, "value": value}


def _epoch_rows(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    job = reads.job(as_id(view.params["id"]))
    for one in epochs(job, reads.metrics(job.id))[0]:
        yield {k: v for k, v in one.items() if k != "metrics"}


TABLES = {**dict.fromkeys(CURVES, _metric_rows), "job-epochs": _epoch_rows}
