"""Jobs: the queue, what runs and how far it is, what ended and why; and who works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update

from dashboard import formats
from dashboard.components import cards, controls, grids, states
from dashboard.reads import JobRow, Reads, Worker
from dashboard.view import View, link, parse_query

PATH = "/jobs"
HREF = "/jobs"
TITLE = "Jobs"
NAV = ("Jobs", "jobs")
STATES = {
    "open": ("queued", "running", "cancelling"),
    "failed": ("failed",),
    "succeeded": ("succeeded",),
    "cancelled": ("cancelled",),
}
WINDOW = 500


def layout(reads: Reads, view: View) -> Any:
    _, total = reads.job_rows(limit=1)
    workers = cards.section("Workers", html.Div(_workers(reads), id="jobs-workers"))
    if not total:
        return [
            cards.page_title("Jobs"),
            states.empty(
                "Nothing was asked for yet",
                "Scans, transfers, studies and analyses show up here: while they wait, while they run, and why they "
                "ended. Start one from the zoo, from a pair, or from the command line.",
                ["zoograft scan --models 'resnet*' --dataset NAME --detach"],
                [("To the zoo", "/"), ("To the pairs", "/pairs")],
            ),
            workers,
        ]
    kinds = [("", "any kind"), *((one, one) for one in reads.job_kinds())]
    return [
        cards.page_title("Jobs", "The queue, live. Click a job for its curves, its log and what to do about it."),
        controls.filters(
            controls.segments(
                "state",
                view,
                [
                    ("", "All"),
                    ("open", "Open"),
                    ("succeeded", "Succeeded"),
                    ("failed", "Failed"),
                    ("cancelled", "Cancelled"),
                ],
                default="",
                label="State",
            ),
            controls.select("kind", "Kind", view, kinds, w=150),
            controls.select(
                "children",
                "Jobs of studies",
                view,
                [("", "shown"), ("no", "hidden")],
                w=140,
            ),
            html.Div(id="jobs-count", className="count", role="status"),
            cards.downloads(None, "jobs", "the jobs"),
        ),
        grids.grid(
            "jobs-grid",
            [
                grids.column(
                    "subject",
                    "What",
                    cellRenderer="ZgLink",
                    tooltipField="subject",
                    flex=3,
                    minWidth=240,
                    sortable=False,
                ),
                grids.column("kind", "Kind", width=80),
                grids.column("state", "State", cellRenderer="ZgState", width=104),
                grids.column("step", "Progress", cellRenderer="ZgProgress", width=114, sortable=False),
                grids.numeric("seconds_left", "Time left", grids.DURATION, width=86, sortable=False),
                grids.column("ran", "Ran for", width=84, sortable=False),
                grids.column("created_at", "Asked for (UTC)", valueFormatter=grids.MOMENT, width=170),
                grids.column("cause", "Cause", width=114, tooltipField="cause"),
                grids.numeric("attempt", "Attempt", grids.WHOLE, width=85),
                grids.column("worker", "Worker", width=120, tooltipField="worker"),
            ],
            label="Jobs",
            height=560,
            filters=False,
        ),
        workers,
        dcc.Interval(id="jobs-live", interval=2000, disabled=not reads.any_open_job()),
        dcc.Interval(id="jobs-slow", interval=10_000),
    ]


def register(app: Dash, reads: Reads, actions: Any) -> None:
    @app.callback(
        Output("jobs-grid", "getRowsResponse"),
        Output("jobs-count", "children"),
        Input("jobs-grid", "getRowsRequest"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def rows(request: Mapping[str, Any] | None, search: str) -> Any:
        if request is None:
            return no_update, no_update
        start, end = int(request["startRow"]), int(request["endRow"])
        found, total = reads.job_rows(
            **_wanted(View(PATH, {}, parse_query(search))),
            sort=request.get("sortModel"),
            offset=start,
            limit=min(end - start, WINDOW),
        )
        return {"rowData": [_row(one) for one in found], "rowCount": total}, f"{total:,} jobs"

    grids.reload_with_address(app, "jobs-grid", PATH)
    grids.refresh_on(app, "jobs-grid", Input("jobs-live", "n_intervals"))

    @app.callback(
        Output("jobs-live", "disabled"),
        Output("jobs-workers", "children"),
        Input("jobs-live", "n_intervals"),
        Input("jobs-slow", "n_intervals"),
        prevent_initial_call=True,
    )
    def watch(_fast: int, _slow: int) -> Any:
        return not reads.any_open_job(), _workers(reads)


def _wanted(view: View) -> dict[str, Any]:
    kind = view.text("kind")
    return {
        "states": STATES.get(view.text("state"), ()),
        "kinds": (kind,) if kind else (),
        "children": view.text("children") != "no",
    }


def _row(row: JobRow) -> dict[str, Any]:
    return {
        **row.model_dump(mode="json", exclude={"message", "parent", "priority"}),
        "subject": row.subject or row.kind,
        "subject_href": link("studies" if row.kind == "study" else "jobs", str(row.id)),
        "ran": formats.ran_for(row.started_at, row.finished_at),
    }


def _workers(reads: Reads) -> Any:
    found = reads.workers()
    if not found:
        return dmc.Text(
            [
                "No worker is there, so queued jobs wait. Start one with ",
                dmc.Code("zoograft worker"),
                ", or use ",
                dmc.Code("zoograft up"),
                ".",
            ],
            size="sm",
            className="warning-text",
        )
    rows = [
        [one.name, ", ".join(one.queues), _devices(one), f"{formats.duration(one.seen_s_ago)} ago", str(one.pid)]
        for one in found
    ]
    return cards.table(("Worker", "Queues", "Devices", "Seen", "Process"), rows, label="Workers")


def _devices(worker: Worker) -> str:
    names = [str(one.get("name", one)) if isinstance(one, Mapping) else str(one) for one in worker.devices]
    return ", ".join(names) or "cpu"


def _table(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    offset = 0
    while True:
        found, total = reads.job_rows(**_wanted(view), offset=offset, limit=WINDOW)
        for row in found:
            yield row.model_dump(mode="json")
        offset += WINDOW
        if offset >= total:
            return


TABLES = {"jobs": _table}
