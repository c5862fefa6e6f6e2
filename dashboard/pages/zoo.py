"""Zoo: every model, what it is and how it scored; several can be compared or scanned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, html, no_update

from backend.domain.errors import BadInput
from dashboard.actions import Actions
from dashboard.components import cards, controls, grids, states
from dashboard.reads import Board, Reads, ZooRow
from dashboard.theme import FAMILY_LABELS
from dashboard.view import View, link, parse_query

PATH = "/"
HREF = "/"
TITLE = "Zoo"
NAV = ("Zoo", "zoo")
COMPARED = 60
WINDOW = 500


def layout(reads: Reads, view: View) -> Any:
    boards = reads.boards()
    board = _board(reads, view)
    if reads.no_model():
        return [
            cards.page_title("Zoo"),
            states.empty(
                "No models yet",
                "The zoo lists every model that can be scanned, paired and transferred. Try it on real data with one "
                "command, or catalog timm's pretrained models and scan some of them.",
                ["zoograft demo", "zoograft models sync\nzoograft scan --models 'resnet*' --dataset NAME"],
                [("Jobs", "/jobs")],
            ),
        ]
    return [
        cards.page_title(
            "Zoo",
            "Every model of the catalog. Choose several to compare or to scan them.",
            dmc.Button("Compare", id="zoo-compare", variant="default", disabled=True),
            dmc.Button("Scan…", id="zoo-scan", disabled=True),
        ),
        controls.filters(
            controls.text("name", "Name contains", view, placeholder="resnet a1", w=240),
            controls.board_select(boards, board, view) if boards else None,
            html.Div(id="zoo-count", className="count", role="status"),
            cards.downloads(None, "zoo", "the zoo"),
        ),
        grids.grid(
            "zoo-grid",
            [
                grids.column("name", "Model", cellRenderer="ZgLink", tooltipField="name", flex=3, minWidth=220),
                grids.column("family", "Family", cellRenderer="ZgFamily", width=118),
                grids.numeric("param_count", "Parameters", grids.PARAMS, width=102),
                grids.numeric("accuracy", "Accuracy", grids.PERCENT, width=104, sort="desc"),
                grids.numeric("n_samples", "Samples", grids.WHOLE, width=82),
                grids.numeric("n_datasets", "Data sets", grids.WHOLE, width=86),
                grids.column(
                    "student", "Made from", cellRenderer="ZgLink", tooltipField="student", flex=2, minWidth=150
                ),
                grids.column("method", "By", width=92),
            ],
            label="Models of the zoo",
            height=640,
            rowSelection={"mode": "multiRow", "headerCheckbox": False, "enableClickSelection": False},
        ),
        _scan_dialog(reads),
    ]


def _scan_dialog(reads: Reads) -> dmc.Modal:
    known = [one for one in reads.datasets() if one.source != "external"]
    return dmc.Modal(
        dmc.Stack(
            [
                dmc.Text(id="scan-models", size="sm"),
                dmc.Select(
                    id="scan-dataset",
                    label="Data set",
                    data=[one.name for one in known],
                    value=known[0].name if known else None,
                    description=None if known else "No data set with images is known: zoograft datasets add",
                ),
                dmc.NumberInput(id="scan-limit", label="At most so many samples", min=1, placeholder="all"),
                dmc.Select(id="scan-device", label="Device", data=["auto", "cpu", "cuda"], value="auto"),
                html.Div(id="scan-error", className="error-text", role="alert"),
                dmc.Group([dmc.Button("Start the scan", id="scan-start")], justify="flex-end"),
            ]
        ),
        id="scan-dialog",
        title="Scan the chosen models",
        opened=False,
    )


def register(app: Dash, reads: Reads, actions: Actions) -> None:
    @app.callback(
        Output("zoo-grid", "getRowsResponse"),
        Output("zoo-count", "children"),
        Input("zoo-grid", "getRowsRequest"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def rows(request: Mapping[str, Any] | None, search: str) -> Any:
        if request is None:
            return no_update, no_update
        view = View(PATH, {}, parse_query(search))
        start, end = int(request["startRow"]), int(request["endRow"])
        found, total = reads.zoo(
            _board(reads, view),
            search=view.text("name"),
            filters=request.get("filterModel"),
            sort=request.get("sortModel"),
            offset=start,
            limit=min(end - start, WINDOW),
        )
        return {"rowData": [_row(one) for one in found], "rowCount": total}, f"{total:,} models"

    grids.reload_with_address(app, "zoo-grid", PATH)

    @app.callback(
        Output("zoo-compare", "disabled"),
        Output("zoo-scan", "disabled"),
        Output("zoo-scan", "children"),
        Input("zoo-grid", "selectedRows"),
        prevent_initial_call=True,
    )
    def choose(selected: list[Mapping[str, Any]] | None) -> Any:
        count = len(selected or ())
        runnable = any(row.get("source") != "external" for row in selected or ())
        return not 2 <= count <= COMPARED, not runnable, f"Scan {count}…" if count else "Scan…"

    @app.callback(
        Output("url", "href", allow_duplicate=True),
        Input("zoo-compare", "n_clicks"),
        State("zoo-grid", "selectedRows"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def compare(clicks: int | None, selected: list[Mapping[str, Any]] | None, search: str) -> Any:
        if not clicks or not selected:
            return no_update
        names = ",".join(str(row["name"]) for row in selected)
        return link("pairs", teacher=names, student=names, view="heat", on=parse_query(search).get("on"))

    @app.callback(
        Output("scan-dialog", "opened"),
        Output("scan-models", "children"),
        Input("zoo-scan", "n_clicks"),
        State("zoo-grid", "selectedRows"),
        prevent_initial_call=True,
    )
    def ask(clicks: int | None, selected: list[Mapping[str, Any]] | None) -> Any:
        if not clicks or not selected:
            return no_update, no_update
        names = [str(row["name"]) for row in selected if row["source"] != "external"]
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        return True, shown

    @app.callback(
        Output("url", "href", allow_duplicate=True),
        Output("scan-error", "children"),
        Input("scan-start", "n_clicks"),
        State("zoo-grid", "selectedRows"),
        State("scan-dataset", "value"),
        State("scan-limit", "value"),
        State("scan-device", "value"),
        prevent_initial_call=True,
        running=[(Output("scan-start", "disabled"), True, False)],
    )
    def start(clicks: int | None, selected: Any, dataset: str | None, limit: Any, device: str) -> Any:
        if not clicks or not selected:
            return no_update, no_update
        if not dataset:
            return no_update, "Choose a data set."
        names = [row["name"] for row in selected if row["source"] != "external"]
        spec = {"models": names, "dataset": dataset, "limit": limit or None, "device": device}
        try:
            job = actions.submit("scan", {name: value for name, value in spec.items() if value is not None})
        except BadInput as error:
            return no_update, error.message
        return link("jobs", str(job.id)), ""


def _board(reads: Reads, view: View) -> Board | None:
    return reads.board(*controls.split_board(view.text("on")))


def _row(row: ZooRow) -> dict[str, Any]:
    return {
        **row.model_dump(mode="json", exclude={"teachers", "architecture"}),
        "family_label": FAMILY_LABELS.get(row.family, row.family),
        "name_href": link("zoo", row.name),
        "student_href": link("zoo", row.student) if row.student else None,
    }


def _table(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    board, offset = _board(reads, view), 0
    while True:
        found, total = reads.zoo(board, search=view.text("name"), offset=offset, limit=WINDOW)
        for row in found:
            yield {
                **row.model_dump(mode="json", exclude={"teachers"}),
                "teachers": " ".join(row.teachers),
                "dataset": board.dataset if board else None,
                "split": board.split if board else None,
            }
        offset += WINDOW
        if offset >= total:
            return


TABLES = {"zoo": _table}
