"""Transfers and studies: every study and how far it is, and what all finished transfers say together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update

from backend.domain.jobs import TERMINAL
from backend.domain.study_summary import StudyTable
from dashboard import formats
from dashboard.components import cards, controls, states, transfer_charts
from dashboard.reads import Reads
from dashboard.theme import as_scheme
from dashboard.view import View, link, parse_query

PATH = "/studies"
HREF = "/studies"
TITLE = "Transfers and studies"
NAV = ("Transfers", "transfers")
DRAWN = True
SHOWN = ("success", "methods", "bins", "balance", "top", "size", "student-size", "student-accuracy", "datasets")
PREFIX = "all"


def layout(reads: Reads, view: View) -> Any:
    rows = reads.transfer_rows()
    datasets = sorted(set(reads.transfer_datasets().values()))
    studies = html.Div(_studies(reads), id="studies-list")
    head = cards.page_title(
        "Transfers and studies", "What was grafted, how often it helped, and what it cost elsewhere."
    )
    if not rows:
        return [
            head,
            states.empty(
                "No transfer has finished yet",
                "Start one from a pair's page, or run a study: a file that describes pairs, methods and seeds, and "
                "becomes a tree of jobs.",
                ["zoograft study run examples/digits.yaml"],
                [("To the pairs", "/pairs"), ("Jobs", "/jobs")],
            ),
            cards.section("Studies", studies),
            dcc.Interval(id="studies-live", interval=5000, disabled=not reads.any_open_job()),
        ]
    return [
        head,
        cards.section("Studies", studies),
        dmc.Title("All finished transfers", order=2, size="h3", mt="lg", mb="sm"),
        controls.filters(
            controls.select("dataset", "Data set", view, [("", "all"), *((one, one) for one in datasets)], w=200),
            html.Div(id="studies-count", role="status", className="count"),
        ),
        cards.section(
            "Methods",
            html.Div(id="all-summary"),
            right=cards.downloads(None, "all-methods", "the methods"),
        ),
        transfer_charts.board(PREFIX, SHOWN),
        cards.section(
            "Transfers",
            html.Div(id="all-listing"),
            right=cards.downloads(None, "all-transfers", "the transfers"),
        ),
        dcc.Interval(id="studies-live", interval=5000, disabled=not reads.any_open_job()),
    ]


def register(app: Dash, reads: Reads, actions: Any) -> None:
    def drawn(name: str, search: str, scheme: str, path: str) -> Any:
        if path.rstrip("/") != PATH:
            return no_update
        dataset = View(PATH, {}, parse_query(search)).text("dataset") or None
        rows = reads.transfer_rows(dataset)
        models = reads.models(sorted({row.student for row in rows}))
        # Only one figure needs what the transfers say together; the others do not wait for it.
        methods = reads.transfer_table(dataset).methods if name == "methods" else ()
        return transfer_charts.draw(name, rows, methods, models, reads.transfer_datasets(), as_scheme(scheme))

    asked = (Input("url", "search"), Input("scheme", "data"), State("url", "pathname"))
    transfer_charts.register(app, PREFIX, SHOWN, asked, drawn)

    @app.callback(
        Output("all-summary", "children"),
        Output("all-listing", "children"),
        Output("studies-count", "children"),
        Input("url", "search"),
        State("url", "pathname"),
    )
    def tables(search: str, path: str) -> Any:
        if path.rstrip("/") != PATH:
            return no_update, no_update, no_update
        table = _table(reads, View(PATH, {}, parse_query(search)))
        return transfer_charts.summary(table), transfer_charts.listing(table.rows), f"{len(table.rows):,} transfers"

    @app.callback(
        Output("studies-list", "children"),
        Output("studies-live", "disabled"),
        Input("studies-live", "n_intervals"),
        prevent_initial_call=True,
    )
    def watch(_ticks: int) -> Any:
        return _studies(reads), not reads.any_open_job()

    app.clientside_callback(
        "dash_clientside.zoograft.follow",
        Output(f"{PREFIX}-balance", "className"),
        Input(f"{PREFIX}-balance", "clickData"),
        prevent_initial_call=True,
    )


def _table(reads: Reads, view: View) -> StudyTable:
    return reads.transfer_table(view.text("dataset") or None)


def _studies(reads: Reads) -> Any:
    found = reads.studies()
    if not found:
        return dmc.Text("No study yet: zoograft study run FILE.yaml", size="sm", c="dimmed")
    rows = []
    for study in found:
        counts = {state.value: count for state, count in study.children.items()}
        done = sum(count for state, count in counts.items() if state in {one.value for one in TERMINAL})
        rows.append(
            [
                dmc.Anchor(
                    str(study.job.spec.get("name", study.job.id)), href=link("studies", str(study.job.id)), size="sm"
                ),
                cards.state_badge(study.job.state.value),
                f"{done:,} of {study.children_total:,}",
                ", ".join(f"{count} {state}" for state, count in sorted(counts.items())),
                formats.moment(study.job.created_at),
                formats.ran_for(study.job.started_at, study.job.finished_at),
            ]
        )
    return cards.table(
        ("Study", "State", "Jobs done", "In detail", "Asked for (UTC)", "Ran for"), rows, label="Studies"
    )


def _transfers_csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    yield from transfer_charts.csv_rows(_table(reads, view).rows, reads.transfer_datasets())


def _methods_csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    for one in _table(reads, view).methods:
        yield one.model_dump()


TABLES = {
    "all-methods": _methods_csv,
    "all-transfers": _transfers_csv,
    **dict.fromkeys((f"{PREFIX}-{name}" for name in SHOWN), _transfers_csv),
}
