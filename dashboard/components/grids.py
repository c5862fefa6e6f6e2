"""Data grids: rows come from the server a window at a time; the look follows the theme."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import dash_ag_grid as dag
from dash import Dash, Input, State, html

PERCENT = {"function": "zgPercent(params.value)"}
POINTS = {"function": "zgPoints(params.value)"}
PARAMS = {"function": "zgParams(params.value)"}
FIXED = {"function": "zgFixed(params.value)"}
P_VALUE = {"function": "zgPValue(params.value)"}
WHOLE = {"function": "zgWhole(params.value)"}
MOMENT = {"function": "zgMoment(params.value)"}

DURATION = {"function": "zgDuration(params.value)"}

THEME = {"function": "zgTheme(themeQuartz)"}


def column(field: str, title: str, **more: Any) -> dict[str, Any]:
    return {"field": field, "headerName": title, **more}


def numeric(field: str, title: str, formatter: dict[str, str], **more: Any) -> dict[str, Any]:
    """A column of numbers, set right, filtered as numbers."""
    return {
        "field": field,
        "headerName": title,
        "valueFormatter": formatter,
        "type": "rightAligned",
        "filter": "agNumberColumnFilter",
        **more,
    }


def grid(
    id: str, columns: Sequence[dict[str, Any]], *, label: str, height: int = 480, filters: bool = True, **options: Any
) -> html.Div:
    """A grid whose rows a callback on `getRowsRequest` delivers."""
    default = {
        "sortable": True,
        "resizable": True,
        "filter": "agTextColumnFilter" if filters else False,
        "floatingFilter": filters,
        "suppressHeaderMenuButton": True,
        "suppressFloatingFilterButton": True,
        "suppressHeaderFilterButton": True,
        "minWidth": 70,
    }
    made = dag.AgGrid(
        id=id,
        columnDefs=[one if filters else {**one, "filter": False} for one in columns],
        defaultColDef=default,
        rowModelType="infinite",
        dangerously_allow_code=False,
        dashGridOptions={
            "theme": THEME,
            "cacheBlockSize": 100,
            "maxBlocksInCache": 20,
            "rowBuffer": 0,
            "infiniteInitialRowCount": 1,
            "tooltipShowDelay": 400,
            "enableCellTextSelection": True,
            "suppressDragLeaveHidesColumns": True,
            **options,
        },
        style={"height": f"{height}px"},
    )
    return html.Div(made, role="region", className="grid", **{"aria-label": label})


def reload_with_address(app: Dash, id: str, path: str) -> None:
    """Ask for a grid's rows again when the query changes on its own page."""
    app.clientside_callback(
        f"""function (search, path) {{
            var here = new RegExp({json.dumps(as_regex(path))});
            if (!window.dash_ag_grid || !here.test(path) || !document.getElementById("{id}")) {{ return; }}
            window.dash_ag_grid.getApiAsync("{id}").then(function (api) {{ api.purgeInfiniteCache(); }});
        }}""",
        Input("url", "search"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )


def refresh_on(app: Dash, id: str, trigger: Input) -> None:
    """Ask again for the rows that are shown, without a flicker."""
    app.clientside_callback(
        f"""function (ticks) {{
            if (!ticks || !window.dash_ag_grid || !document.getElementById("{id}")) {{ return; }}
            window.dash_ag_grid.getApiAsync("{id}").then(function (api) {{ api.refreshInfiniteCache(); }});
        }}""",
        trigger,
        prevent_initial_call=True,
    )


def as_regex(path: str) -> str:
    """The address pattern of a page as a regular expression of the browser."""
    return "^" + re.sub(r"\{\w+\}", "[^/]+", path) + "/?$"
