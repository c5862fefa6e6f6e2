"""From address to page. One callback draws pages; a page's own controls change the address without drawing it anew."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import structlog
from dash import ALL, Dash, Input, Output, State, ctx, no_update
from dash.development.base_component import Component

from backend.domain.errors import NotFound, StoreUnavailable, ZoograftError
from dashboard.components import states
from dashboard.pages import PAGES
from dashboard.reads import Reads
from dashboard.view import View, match, parse_query


def find(path: str | None, search: str | None) -> tuple[ModuleType, View] | None:
    """The page of an address, and where one stands on it."""
    for page in PAGES:
        params = match(page.PATH, path or "/")
        if params is not None:
            return page, View(path or "/", params, parse_query(search))
    return None


def opens_with_figure(path: str) -> bool:
    """Whether the first content of the page at this address is a figure."""
    found = find(path, "")
    return found is not None and getattr(found[0], "DRAWN", False)


def status(reads: Reads, path: str) -> int:
    """The HTTP status of a page's address: 404 where the path names nothing, 503 while the database is away.

    The same page is drawn under either; it says what is missing.
    """
    found = find(path, "")
    if found is None:
        return 404
    page, view = found
    try:
        if hasattr(page, "require"):
            page.require(reads, view)
    except NotFound:
        return 404
    except StoreUnavailable:
        return 503
    except ZoograftError:
        return 200
    return 200


def draw(reads: Reads, path: str | None, search: str | None) -> tuple[Component, str]:
    """The content and title of an address; errors become pages that say what to do."""
    found = find(path, search)
    if found is None:
        return states.problem("There is no such page", f"Nothing is at {path}. The menu has all pages."), "Not found"
    page, view = found
    try:
        return page.layout(reads, view), page.title(view) if hasattr(page, "title") else page.TITLE
    except ZoograftError as error:
        return states.of_error(error), page.TITLE
    except Exception as error:  # the rim of a page: the reason goes to the log, a useful page to the reader
        structlog.get_logger("zoograft.dashboard").exception("a page failed", path=path)
        return states.of_error(error), page.TITLE


def register(app: Dash, reads: Reads) -> None:
    @app.callback(
        Output("page", "children"),
        Output("title", "children"),
        Input("url", "pathname"),
        Input("url", "search"),
        Input("again", "data"),
        Input({"type": "again", "name": ALL}, "n_intervals"),
        State("written", "data"),
    )
    def show(path: str, search: str, again: Any, waited: list[int], written: str | None) -> Any:
        own_change = ctx.triggered_prop_ids.keys() == {"url.search"} and written is not None
        if own_change and parse_query(search) == parse_query(written):
            return no_update, no_update
        if ctx.triggered_id is not None and isinstance(ctx.triggered_id, dict) and not any(waited):
            return no_update, no_update
        return draw(reads, path, search)

    app.clientside_callback(
        "dash_clientside.zoograft.write",
        Output("url", "search", allow_duplicate=True),
        Output("written", "data", allow_duplicate=True),
        Input({"type": "q", "name": ALL, "default": ALL}, "value"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        "function (title) { document.title = title ? title + ' – Zoograft' : 'Zoograft'; }", Input("title", "children")
    )
    app.clientside_callback("dash_clientside.zoograft.theme_choice", Output("theme", "value"), Input("mantine", "id"))
    app.clientside_callback("dash_clientside.zoograft.theme", Output("scheme", "data"), Input("theme", "value"))
    app.clientside_callback(
        "function (scheme) { return scheme || dash_clientside.no_update; }",
        Output("mantine", "forceColorScheme"),
        Input("scheme", "data"),
    )
    app.clientside_callback(
        "dash_clientside.zoograft.copy",
        Output("copied", "children"),
        Input("copy-link", "n_clicks"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        "dash_clientside.zoograft.navbar",
        Output("shell", "navbar"),
        Input("burger", "opened"),
        Input("url", "pathname"),
        State("shell", "navbar"),
    )
    app.clientside_callback("dash_clientside.zoograft.close", Output("burger", "opened"), Input("url", "pathname"))
