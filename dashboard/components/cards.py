"""Cards: one number with its interval, one figure with its downloads, one section of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from dashboard import formats

GRAPH_CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["toImage", "lasso2d", "select2d", "autoScale2d"],
}


def page_title(title: str, text: Any = None, *right: Any) -> dmc.Group:
    """The head of a page; `right` stands at its end."""
    return dmc.Group(
        [
            dmc.Box(
                [dmc.Title(title, order=1, size="h2", className="page-title"), dmc.Text(text, c="dimmed", size="sm")]
                if text
                else [dmc.Title(title, order=1, size="h2", className="page-title")],
                style={"minWidth": 0, "flex": "1 1 20rem"},
            ),
            dmc.Group(list(right), gap="sm"),
        ],
        justify="space-between",
        align="flex-start",
        mb="md",
    )


def number_card(label: str, value: str, detail: str = "", hint: str = "") -> dmc.Paper:
    """One number, how sure it is, and what it means."""
    return dmc.Paper(
        [
            dmc.Text(label, size="sm", c="dimmed"),
            dmc.Text(value, fw=700, size="xl", className="number"),
            dmc.Text(detail, size="xs", c="dimmed") if detail else None,
            dmc.Text(hint, size="xs", c="dimmed") if hint else None,
        ],
        withBorder=True,
        p="sm",
    )


def number_row(cards: Sequence[dmc.Paper]) -> html.Div:
    return html.Div(list(cards), className="number-row")


def section(title: str, *children: Any, text: str = "", right: Any = None) -> dmc.Paper:
    """A titled part of a page."""
    head = dmc.Group([dmc.Title(title, order=2, size="h4"), right], justify="space-between", mb="xs")
    parts = [html.Div(one) if isinstance(one, list) else one for one in children]
    return dmc.Paper(
        [head, dmc.Text(text, size="sm", c="dimmed", mb="sm") if text else None, *parts],
        withBorder=True,
        p="md",
    )


def folded(title: str, *children: Any) -> html.Details:
    """A part of a page that is opened when it is wanted."""
    return html.Details([html.Summary(title), *children], className="folded")


def figure_card(
    id: str,
    title: str,
    text: str = "",
    *,
    table: str | None = None,
    height: int = 420,
    figure: Any = None,
    extra: Any = None,
) -> dmc.Paper:
    """A figure with its title, what to read off it, and its downloads.

    Args:
        id: The graph's id; a callback fills it, unless `figure` is given.
        table: The name in the page's TABLES of the records behind it; default the same as `id`.
    """
    graph = dcc.Graph(
        id=id,
        config=GRAPH_CONFIG,
        style={"height": f"{height}px"},
        responsive=True,
        **({"figure": figure} if figure is not None else {}),
    )
    return dmc.Paper(
        [
            dmc.Group(
                [
                    dmc.Box(
                        [
                            dmc.Title(title, order=2, size="h4"),
                            dmc.Text(text, size="sm", c="dimmed") if text else None,
                        ],
                        style={"minWidth": 0, "flex": "1 1 16rem"},
                    ),
                    dmc.Group([extra, downloads(id, table or id, title)], gap="xs"),
                ],
                justify="space-between",
                align="flex-start",
                mb="xs",
            ),
            html.Div(
                graph,
                role="group",
                className="figure-place",
                style={"minHeight": f"{height}px"},
                **{"aria-label": f"Figure: {title}"},
            ),
        ],
        withBorder=True,
        p="md",
    )


def downloads(graph: str | None, table: str, title: str) -> html.Div:
    """Buttons that save a figure as PNG or SVG and its records as CSV; they work without the server's callbacks."""
    pictures = (("PNG", "png"), ("SVG", "svg")) if graph else ()
    formats = (*pictures, ("CSV", "csv"))
    return html.Div(
        [
            html.Button(
                label,
                className="download",
                type="button",
                title=f"Download as {label}: {title}",
                **{
                    "data-download": kind,
                    "data-graph": graph or "",
                    "data-table": table,
                    "aria-label": f"Download as {label}: {title}",
                },
            )
            for label, kind in formats
        ],
        className="downloads",
    )


def facts(rows: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> html.Dl:
    """Names and values, one below the other."""
    items = rows.items() if isinstance(rows, Mapping) else rows
    children: list[Any] = []
    for name, value in items:
        children += [html.Dt(name), html.Dd(value)]
    return html.Dl(children, className="facts")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, label: str, numeric: Sequence[int] = ()) -> html.Div:
    """A plain table; `numeric` columns are set right."""

    def cell(kind: Any, i: int, value: Any) -> Any:
        return kind(value, className="numeric" if i in numeric else None)

    return html.Div(
        html.Table(
            [
                html.Caption(label, className="visually-hidden"),
                html.Thead(html.Tr([cell(html.Th, i, name) for i, name in enumerate(head)])),
                html.Tbody([html.Tr([cell(html.Td, i, value) for i, value in enumerate(row)]) for row in rows]),
            ],
            className="plain-table",
        ),
        className="table-scroll",
        tabIndex="0",
        role="region",
        **{"aria-label": label},
    )


def with_interval(value: str, low: float | None, high: float | None, digits: int = 2) -> html.Div:
    """A number in a table, its 95 % interval below it."""
    if low is None or high is None:
        return html.Div(value)
    return html.Div([value, html.Div(formats.span(low, high, digits), className="interval")])


def state_badge(state: str) -> html.Span:
    return html.Span(state, className=f"state state-{state}")
