"""Pairs: every ordered pair of models on a split in the plane, as a heat map and as a grid, under the same filters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import Dash, Input, Output, State, dcc, html, no_update

from backend.domain.pairs import Pair
from dashboard.components import cards, controls, grids, states
from dashboard.figures import flips
from dashboard.figures.frame import nothing
from dashboard.reads import Board, Columns, PairFilter, Positions, Reads
from dashboard.theme import FAMILIES, FAMILY_LABELS, as_scheme
from dashboard.view import View, link, parse_query

PATH = "/pairs"
HREF = "/pairs"
TITLE = "Pairs"
NAV = ("Pairs", "pairs")
DRAWN = True
VIEWS = {
    "accuracy": ("accuracy_difference", "positive_flip_rate"),
    "entropy": ("positive_flip_rate", "flip_entropy_nats"),
}
POINTS = 2000
POINTS_OVER_DENSITY = 300
HEAT = ("positive_flip_rate", "negative_flip_rate", "accuracy_difference", "flip_entropy_nats")
SORTS = (
    "positive_flip_rate",
    "negative_flip_rate",
    "accuracy_difference",
    "flip_entropy_nats",
    "teacher_accuracy",
    "student_accuracy",
    "mcnemar_p_value",
    "n_samples",
)
WINDOW = 500


def layout(reads: Reads, view: View) -> Any:
    boards = reads.boards()
    if not boards:
        return [
            cards.page_title("Pairs"),
            states.empty(
                "No pairs yet",
                "A pair appears for every two models that were scored on the same split: what the teacher gets right "
                "and the student wrong. Scan at least two models, or import predictions from elsewhere.",
                ["zoograft demo", "zoograft predictions import FILE.csv --model NAME --dataset NAME"],
                [("To the zoo", "/")],
            ),
        ]
    board = _board(reads, view)
    families = [("", "any family"), *((one, FAMILY_LABELS[one]) for one in FAMILIES)]
    kind = view.one_of("view", (*VIEWS, "heat"), "accuracy")
    return [
        cards.page_title(
            "Pairs",
            "What a teacher gets right and a student wrong (positive flips), for every ordered pair of models.",
        ),
        dmc.Paper(
            [
                controls.filters(
                    controls.board_select(boards, board, view),
                    controls.text("teacher", "Teacher", view, placeholder="name or resnet*", w=170),
                    controls.text("student", "Student", view, placeholder="name or vit*", w=170),
                    controls.select("teacher_family", "Teacher's family", view, families, w=150),
                    controls.select("student_family", "Student's family", view, families, w=150),
                    controls.select(
                        "than",
                        "The teacher is",
                        view,
                        [("", "any"), ("weaker", "weaker"), ("stronger", "stronger")],
                        w=110,
                    ),
                    controls.number("min", "Positive flips ≥ %", view, w=130),
                    controls.select(
                        "p",
                        "Differ by McNemar",
                        view,
                        [("", "any"), ("0.05", "p < 0.05"), ("0.001", "p < 0.001")],
                        w=140,
                    ),
                ),
                html.Div(id="pairs-count", className="count", role="status"),
            ],
            withBorder=True,
            p="md",
        ),
        cards.figure_card(
            "pairs-figure",
            "Pairs in the plane" if kind != "heat" else "Teachers and students",
            "Click a point to open the pair; drag to zoom in, double click to zoom out.",
            height=520,
            extra=dmc.Group(
                [
                    controls.segments(
                        "view",
                        view,
                        [("accuracy", "Flips × accuracy"), ("entropy", "Flips × entropy"), ("heat", "Heat map")],
                        default="accuracy",
                        label="Picture",
                    ),
                    controls.select(
                        "value",
                        "",
                        view,
                        [(one, flips.AXES[one][0].split(" (")[0]) for one in HEAT],
                        default=HEAT[0],
                        w=230,
                    )
                    if kind == "heat"
                    else None,
                ],
                gap="xs",
            ),
        ),
        dcc.Interval(id="pairs-wait", interval=1000, disabled=True),
        cards.section(
            "The same pairs as a table",
            grids.grid(
                "pairs-grid",
                [
                    grids.column(
                        "teacher",
                        "Teacher",
                        cellRenderer="ZgLink",
                        tooltipField="teacher",
                        flex=2,
                        minWidth=136,
                        sortable=False,
                    ),
                    grids.column(
                        "student",
                        "Student",
                        cellRenderer="ZgLink",
                        tooltipField="student",
                        flex=2,
                        minWidth=136,
                        sortable=False,
                    ),
                    grids.numeric("positive_flip_rate", "Pos. flips", grids.PERCENT, width=84),
                    grids.column("positive", "95 % (in %)", type="rightAligned", width=112, sortable=False),
                    grids.numeric("negative_flip_rate", "Neg. flips", grids.PERCENT, width=86),
                    grids.numeric("accuracy_difference", "Difference", grids.POINTS, width=92),
                    grids.numeric("flip_entropy_nats", "Entropy", grids.FIXED, width=74),
                    grids.numeric(
                        "teacher_accuracy", "T. acc.", grids.PERCENT, width=78, headerTooltip="Accuracy of the teacher"
                    ),
                    grids.numeric(
                        "student_accuracy", "S. acc.", grids.PERCENT, width=78, headerTooltip="Accuracy of the student"
                    ),
                    grids.numeric(
                        "mcnemar_p_value", "p", grids.P_VALUE, width=76, headerTooltip="McNemar's exact two-sided test"
                    ),
                ],
                label="Pairs of models",
                height=480,
                filters=False,
            ),
            right=cards.downloads(None, "pairs", "the pairs"),
        ),
    ]


def register(app: Dash, reads: Reads, actions: Any) -> None:
    @app.callback(
        Output("pairs-figure", "figure"),
        Output("pairs-count", "children"),
        Output("pairs-wait", "disabled"),
        Input("url", "search"),
        Input("scheme", "data"),
        Input("pairs-wait", "n_intervals"),
        State("url", "pathname"),
    )
    def draw(search: str, scheme: str, _ticks: int, path: str) -> Any:
        if path.rstrip("/") != PATH:
            return no_update, no_update, no_update
        view = View(PATH, {}, parse_query(search))
        board = _board(reads, view)
        if board is None:
            return nothing("No pairs yet", as_scheme(scheme)), "", True
        columns = reads.columns(board)
        if columns is None:
            waiting = "Reading this board for the first time; the table below is ready, the picture follows."
            return nothing("Counting the pairs…", as_scheme(scheme)), waiting, False
        chosen = reads.chosen(columns, wanted(view))
        shown = f"{len(chosen):,} of {len(columns):,} pairs of {len(columns.names):,} models"
        if view.text("view") == "heat":
            value = view.one_of("value", HEAT, HEAT[0])
            return flips.heat_map(reads.heat_map(columns, chosen, value), value, as_scheme(scheme)), shown, True
        figure, drawn = _plane(reads, columns, chosen, view, scheme)
        return figure, shown + drawn, True

    @app.callback(
        Output("pairs-grid", "getRowsResponse"),
        Input("pairs-grid", "getRowsRequest"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def rows(request: Mapping[str, Any] | None, search: str) -> Any:
        if request is None:
            return no_update
        view = View(PATH, {}, parse_query(search))
        board = _board(reads, view)
        if board is None:
            return {"rowData": [], "rowCount": 0}
        start, end = int(request["startRow"]), int(request["endRow"])
        sort = sort_of(request.get("sortModel"))
        columns = reads.columns(board)
        if columns is None:
            column, descending = sort
            found = reads.first_pairs(board, wanted(view), f"{'-' if descending else ''}{column}", end)
            return {"rowData": [_row(pair) for pair in found[start:]], "rowCount": len(found)}
        chosen = reads.chosen(columns, wanted(view), sort)
        found = reads.pair_records(columns, chosen[start : min(end, start + WINDOW)])
        return {"rowData": [_row(pair) for pair in found], "rowCount": len(chosen)}

    grids.reload_with_address(app, "pairs-grid", PATH)
    grids.refresh_on(app, "pairs-grid", Input("pairs-wait", "disabled"))
    app.clientside_callback(
        """function (relayout, search) {
            if (/[?&]view=heat/.test(search || "")) { return Array(2).fill(dash_clientside.no_update); }
            return dash_clientside.zoograft.zoom(relayout, search);
        }""",
        Output("url", "search", allow_duplicate=True),
        Output("written", "data", allow_duplicate=True),
        Input("pairs-figure", "relayoutData"),
        State("url", "search"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("url", "href", allow_duplicate=True),
        Input("pairs-figure", "clickData"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def follow(click: Mapping[str, Any] | None, search: str) -> Any:
        if not click or not click.get("points"):
            return no_update
        point = click["points"][0]
        view = View(PATH, {}, parse_query(search))
        if view.text("view") != "heat":
            data = point.get("customdata")
            return data[-1] if isinstance(data, list) else no_update
        return _into_heat(reads, view, str(point["x"]), str(point["y"])) or no_update


def wanted(view: View) -> PairFilter:
    """The filters of an address.

    Raises:
        BadInput: a bound that is no number.
    """
    ranges: dict[str, tuple[float | None, float | None]] = {}
    least, most = view.number("min"), view.number("p")
    if least is not None:
        ranges["positive_flip_rate"] = (least / 100, None)
    if most is not None:
        ranges["mcnemar_p_value"] = (None, most)
    than = view.text("than")
    if than == "weaker":
        ranges["accuracy_difference"] = (None, -1e-12)
    elif than == "stronger":
        ranges["accuracy_difference"] = (1e-12, None)
    return PairFilter(
        teacher=view.text("teacher"),
        student=view.text("student"),
        teacher_family=view.one_of("teacher_family", FAMILIES, ""),
        student_family=view.one_of("student_family", FAMILIES, ""),
        ranges=ranges,
    )


def sort_of(model: Any) -> tuple[str, bool]:
    """Column and whether descending, from a grid's sort model; the most positive flips first without one."""
    for one in model or ():
        if one.get("colId") in SORTS:
            return str(one["colId"]), one.get("sort") == "desc"
    return "positive_flip_rate", True


def _plane(reads: Reads, columns: Columns, chosen: Positions, view: View, scheme: str) -> tuple[Any, str]:
    x, y = VIEWS[view.one_of("view", tuple(VIEWS), "accuracy")]
    window = _window(reads, columns, chosen, view, x, y)
    seen = reads.inside(columns, chosen, x, y, window)
    crowded = len(seen) > POINTS
    points = reads.sample(seen, POINTS_OVER_DENSITY if crowded else POINTS)
    density = reads.density(columns, chosen, x, y, window) if crowded else None
    families = [columns.families[i] for i in columns.teacher[points]]
    figure = flips.pairs_plane(reads.pair_records(columns, points), families, density, x, y, window, as_scheme(scheme))
    figure.update_layout(uirevision=view.text("view", "accuracy"))
    if not crowded:
        return figure, ""
    return figure, f"; {len(points)} of the {len(seen):,} in view are drawn as points over their density"


def _window(
    reads: Reads, columns: Columns, chosen: Positions, view: View, x: str, y: str
) -> tuple[float, float, float, float]:
    left, right, bottom, top = reads.extent(columns, chosen, x, y)
    if (zoomed := view.pair("x")) is not None:
        left, right = (end / flips.AXES[x][1] for end in zoomed)
    if (zoomed := view.pair("y")) is not None:
        bottom, top = (end / flips.AXES[y][1] for end in zoomed)
    return left, right, bottom, top


def _into_heat(reads: Reads, view: View, teacher: str, student: str) -> str | None:
    """A cell's pair, or the heat map of the groups that it stands for."""
    board = _board(reads, view)
    columns = reads.columns(board) if board else None
    if board is None or columns is None:
        return None
    heat = reads.heat_map(columns, reads.chosen(columns, wanted(view)), HEAT[0])
    if heat.models_a_cell == 1:
        on = controls.board_key(board)
        return None if teacher == student else link("pairs", teacher, student, on=on)
    members = [_members(columns, label) for label in (teacher, student)]
    query = {**view.query, "teacher": ",".join(members[0]), "student": ",".join(members[1])}
    return link("pairs", **query)


def _members(columns: Columns, label: str) -> list[str]:
    ends = [columns.names.index(name) for name in label.split(" … ")]
    return list(columns.names[ends[0] : ends[-1] + 1])


def _board(reads: Reads, view: View) -> Board | None:
    return reads.board(*controls.split_board(view.text("on")))


def _row(pair: Pair) -> dict[str, Any]:
    href = flips.pair_link(pair)
    return {
        **pair.model_dump(include={"teacher", "student", *SORTS}),
        "positive": f"{100 * pair.positive_flip_rate_low:.2f} – {100 * pair.positive_flip_rate_high:.2f}",
        "teacher_href": href,
        "student_href": href,
    }


def _table(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    board = _board(reads, view)
    columns = reads.columns(board, wait=True) if board else None
    if columns is None:
        return
    chosen = reads.chosen(columns, wanted(view), ("positive_flip_rate", True))
    for start in range(0, len(chosen), WINDOW):
        for pair in reads.pair_records(columns, chosen[start : start + WINDOW]):
            yield pair.model_dump()


def _figure_table(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    """The cells of the heat map, or the pairs in the plane's view."""
    board = _board(reads, view)
    columns = reads.columns(board, wait=True) if board else None
    if columns is None:
        return
    chosen = reads.chosen(columns, wanted(view))
    if view.text("view") == "heat":
        value = view.one_of("value", HEAT, HEAT[0])
        heat = reads.heat_map(columns, chosen, value)
        for i, j in zip(*np.nonzero(np.isfinite(heat.values)), strict=True):
            yield {"teacher": heat.teachers[j], "student": heat.students[i], value: float(heat.values[i, j])}
        return
    x, y = VIEWS[view.one_of("view", tuple(VIEWS), "accuracy")]
    seen = reads.inside(columns, chosen, x, y, _window(reads, columns, chosen, view, x, y))
    for start in range(0, len(seen), WINDOW):
        for pair in reads.pair_records(columns, seen[start : start + WINDOW]):
            yield pair.model_dump(include={"teacher", "student", x, y, f"{y}_low", f"{y}_high", "n_samples"})


TABLES = {"pairs": _table, "pairs-figure": _figure_table}
