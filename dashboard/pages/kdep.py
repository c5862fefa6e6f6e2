"""Pre-training by KDEP (He et al., CVPR 2022): which teacher to take, how runs went, what they were worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, html, no_update

from backend.domain.kdep import KdepResult
from dashboard import formats
from dashboard.components import cards, controls, states
from dashboard.figures import curves, kdep
from dashboard.figures.frame import nothing
from dashboard.reads import Reads, Run
from dashboard.theme import FAMILY_LABELS, Scheme, as_scheme
from dashboard.view import View, link, parse_query

PATH = "/kdep"
HREF = "/kdep"
TITLE = "Pre-training"
NAV = ("Pre-training", "kdep")
DRAWN = True
MOST_RUNS = 8


def layout(reads: Reads, view: View) -> Any:
    runs, boards, pictured = reads.kdep_runs(), _boards(reads), reads.measured("embedding")
    head = cards.page_title(
        "Pre-training",
        "A big pretrained model teaches a small new one its features, without labels: choose the teacher, watch the "
        "loss, see what it was worth.",
    )
    return [
        head,
        *(_teachers(view, boards) if boards else [_no_teachers()]),
        *(_runs(view, runs) if runs else [_no_runs()]),
        *(_pictures(view, pictured) if pictured else [_no_pictures()]),
    ]


def register(app: Dash, reads: Reads, actions: Any) -> None:
    def view_of(search: str, path: str) -> View | None:
        return View(PATH, {}, parse_query(search)) if path.rstrip("/") == PATH else None

    @app.callback(
        Output("kdep-teachers", "children"),
        Input("url", "search"),
        Input("scheme", "data"),
        State("url", "pathname"),
    )
    def draw_teachers(search: str, scheme: str, path: str) -> Any:
        view = view_of(search, path)
        return no_update if view is None else _teacher_cards(reads, view, as_scheme(scheme))

    @app.callback(
        Output("kdep-runs", "children"),
        Input("url", "search"),
        Input("scheme", "data"),
        State("url", "pathname"),
    )
    def draw_runs(search: str, scheme: str, path: str) -> Any:
        view = view_of(search, path)
        return no_update if view is None else _run_cards(reads, view, as_scheme(scheme))

    @app.callback(
        Output("kdep-embedding", "figure"),
        Input("url", "search"),
        Input("scheme", "data"),
        State("url", "pathname"),
    )
    def draw_embedding(search: str, scheme: str, path: str) -> Any:
        view = view_of(search, path)
        if view is None:
            return no_update
        entry = _embedded(reads, view)
        if entry is None:
            return nothing("That model's features were not embedded", as_scheme(scheme))
        return kdep.embedding(entry.result, reads.class_names(entry.dataset), as_scheme(scheme))


# --- teachers -------------------------------------------------------------------------------------------------------


def _boards(reads: Reads) -> list[tuple[str, str]]:
    measured = [*reads.measured("compactness"), *reads.measured("logme")]
    return list(dict.fromkeys((one.dataset, one.split) for one in measured))


def _no_teachers() -> Any:
    return cards.section(
        "Which teacher",
        states.empty(
            "No candidate has been measured yet",
            "Accuracy alone misleads: diverse features teach better than tight classes. Compactness and LogME stand "
            "beside it.",
            [
                "zoograft analyse compactness --model 'resnet*' --dataset DATA",
                "zoograft analyse logme --model 'resnet*' --dataset DATA",
            ],
        ),
    )


def _teachers(view: View, boards: list[tuple[str, str]]) -> list[Any]:
    options = [("/".join(board), f"{board[0]} ({board[1]})") for board in boards]
    return [
        dmc.Title("Which teacher", order=2, size="h3", mb="sm"),
        controls.filters(controls.select("on", "Measured on", view, options, default=options[0][0], w=260)),
        html.Div(states.skeleton(), id="kdep-teachers"),
    ]


def _teacher_cards(reads: Reads, view: View, scheme: Scheme) -> Any:
    found = _candidates(reads, view)
    if not found:
        return states.empty("No candidate has been measured here", "Choose another data set above.")
    rows = [
        [
            dmc.Anchor(one.model, href=link("zoo", one.model), size="sm"),
            FAMILY_LABELS[one.family],
            formats.number(one.compactness, 4),
            formats.number(one.logme, 4),
            formats.percent(one.accuracy),
        ]
        for one in kdep.diverse_first(found)[: kdep.MOST_CANDIDATES]
    ]
    most = kdep.MOST_CANDIDATES
    more = f"The {most} least compact of {len(found):,}; the CSV has all." if len(found) > most else ""
    return [
        cards.figure_card(
            "kdep-candidates",
            "Candidates",
            "Diverse features teach better than tight classes: the least compact on top. Compactness is scatter "
            "between classes over scatter within; of LogME more is better.",
            height=kdep.teachers_height(found),
            figure=kdep.teachers(found, scheme),
        ),
        cards.section(
            "In numbers",
            cards.table(
                ("Model", "Family", "Compactness", "LogME", "Accuracy"),
                rows,
                label="Candidates for a teacher",
                numeric=(2, 3, 4),
            ),
            text=more,
        ),
    ]


def _candidates(reads: Reads, view: View) -> Any:
    boards = _boards(reads)
    if not boards:
        return []
    dataset, split = controls.split_board(view.text("on") or "/".join(boards[0]))
    return reads.candidates(dataset, split)


# --- runs -----------------------------------------------------------------------------------------------------------


def _no_runs() -> Any:
    return cards.section(
        "Runs",
        states.empty(
            "No pre-training has finished yet",
            "The loss, the spread of the channels and the downstream scores of every run stand here.",
            ["zoograft kdep --teacher BIG --student SMALL --dataset DATA --downstream OTHER"],
            [("Jobs", "/jobs")],
        ),
    )


def _runs(view: View, runs: list[tuple[Run, KdepResult]]) -> list[Any]:
    datasets = sorted({result.dataset for _, result in runs})
    return [
        dmc.Title("Runs", order=2, size="h3", mt="lg", mb="sm"),
        controls.filters(
            controls.select("data", "Pre-trained on", view, [("", "all"), *((one, one) for one in datasets)], w=220)
        ),
        html.Div(states.skeleton(), id="kdep-runs"),
    ]


def _run_cards(reads: Reads, view: View, scheme: Scheme) -> Any:
    runs = reads.kdep_runs(view.text("data") or None)
    if not runs:
        return states.empty("No run on this data set", "Choose another one above.")
    newest = runs[:MOST_RUNS]
    names = {run.job_id: result.model for run, result in newest}
    losses = {names[run.job_id]: _loss(reads, run) for run, _ in newest}
    measured = {result.model: result.downstream for _, result in newest if result.downstream is not None}
    aligned = {result.model: result.alignments[0] for _, result in newest if result.alignments}
    note = f"The newest {MOST_RUNS} of {len(runs)} runs. " if len(runs) > MOST_RUNS else ""
    return [
        html.Div(
            [
                cards.figure_card(
                    "kdep-losses",
                    "Loss",
                    f"{note}Each run has its own loss: shapes compare, heights do not.",
                    table="kdep-runs",
                    height=360,
                    figure=kdep.losses(losses, scheme),
                ),
                cards.figure_card(
                    "kdep-std",
                    "Spread of the channels",
                    "Few strong channels would take the whole loss; the transform flattens them.",
                    table="kdep-runs",
                    height=360,
                    figure=kdep.std_ratios(aligned, scheme),
                ),
            ],
            className="two-columns",
        ),
        cards.figure_card(
            "kdep-downstream",
            "Downstream",
            "Fine-tuned on other sets: learning rates chosen on validation, scores on test.",
            table="kdep-runs",
            height=360,
            figure=kdep.downstream(measured, scheme),
        )
        if measured
        else None,
        cards.section(
            "All runs",
            cards.table(
                (
                    "Student made",
                    "From",
                    "Teacher",
                    "Method",
                    "Images",
                    "Loss, first to last",
                    "Downstream",
                    "When (UTC)",
                ),
                [_row(run, result) for run, result in runs],
                label="Runs",
                numeric=(4,),
            ),
            right=cards.downloads(None, "kdep-runs", "the runs"),
        ),
    ]


def _row(run: Run, result: KdepResult) -> list[Any]:
    average = None if result.downstream is None else result.downstream.average
    return [
        dmc.Anchor(result.model, href=link("zoo", result.model), size="sm"),
        dmc.Anchor(result.student, href=link("zoo", result.student), size="sm"),
        formats.NONE
        if result.teacher is None
        else dmc.Anchor(result.teacher, href=link("zoo", result.teacher), size="sm"),
        dmc.Anchor(_method(result), href=link("jobs", str(run.job_id)), size="sm"),
        formats.whole(result.n_samples),
        f"{formats.number(result.loss_first)} to {formats.number(result.loss_last)}",
        formats.NONE
        if average is None
        else f"{formats.percent(average.mean)} ({formats.interval(average.low, average.high)})",
        formats.moment(run.finished_at),
    ]


def _method(result: KdepResult) -> str:
    params = result.params
    if params.method != "features":
        return params.method
    return params.align if params.transform == "none" else f"{params.align} + {params.transform}"


def _loss(reads: Reads, run: Run) -> list[tuple[int, float]]:
    return curves.by_name(reads.metrics(run.job_id)).get("loss", [])


# --- pictures of features -------------------------------------------------------------------------------------------


def _no_pictures() -> Any:
    return cards.section(
        "Features in the plane",
        states.empty(
            "No features have been embedded yet",
            "A t-SNE picture of a teacher's features shows how tight its classes are.",
            ["zoograft analyse embedding --model NAME --dataset DATA"],
        ),
    )


def _pictures(view: View, found: list[Any]) -> list[Any]:
    options = [(_key(one), f"{one.model} on {one.dataset} ({one.split})") for one in found]
    return [
        dmc.Title("Features in the plane", order=2, size="h3", mt="lg", mb="sm"),
        controls.filters(
            controls.select("embedding", "Model", view, options, default=options[0][0], w=360, searchable=True)
        ),
        cards.figure_card(
            "kdep-embedding",
            "t-SNE of the pooled features",
            "One point an image, coloured by class. Distances between far clusters, and their sizes, mean nothing.",
            height=560,
        ),
    ]


def _key(one: Any) -> str:
    return f"{one.dataset}/{one.split}/{one.model}"


def _embedded(reads: Reads, view: View) -> Any:
    found = {_key(one): one for one in reads.measured("embedding")}
    return found.get(view.text("embedding") or next(iter(found), ""))


def _candidates_csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    for one in _candidates(reads, view):
        yield {
            "model": one.model,
            "family": one.family,
            "accuracy": one.accuracy,
            "compactness": one.compactness,
            "logme": one.logme,
        }


def _runs_csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    for run, result in reads.kdep_runs(view.text("data") or None):
        alignment = result.alignments[0] if result.alignments else None
        average = None if result.downstream is None else result.downstream.average
        yield {
            "job_id": str(run.job_id),
            "model": result.model,
            "student": result.student,
            "teacher": result.teacher,
            "dataset": result.dataset,
            "method": _method(result),
            "n_samples": result.n_samples,
            "loss_first": result.loss_first,
            "loss_last": result.loss_last,
            "std_ratio_before": None if alignment is None else alignment.std_ratio_before,
            "std_ratio_after": None if alignment is None else alignment.std_ratio_after,
            "downstream": None if average is None else average.mean,
            "downstream_low": None if average is None else average.low,
            "downstream_high": None if average is None else average.high,
        }


def _embedding_csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    entry = _embedded(reads, view)
    if entry is not None:
        for (x, y), label in zip(entry.result.points, entry.result.labels, strict=True):
            yield {"x": x, "y": y, "label": label}


TABLES = {"kdep-candidates": _candidates_csv, "kdep-runs": _runs_csv, "kdep-embedding": _embedding_csv}
