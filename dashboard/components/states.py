"""What a page shows when there is nothing to show: empty, waiting, unknown, failed. Each says what to do next."""

from __future__ import annotations

from collections.abc import Sequence

import dash_mantine_components as dmc
from dash import dcc, html

from backend.domain.errors import BadInput, NotAllowed, NotFound, StoreUnavailable, ZoograftError


def empty(title: str, text: str, commands: Sequence[str] = (), links: Sequence[tuple[str, str]] = ()) -> dmc.Paper:
    """Nothing here yet: what would be here, and the commands or links that bring it."""
    return _panel(title, text, commands, links, role="status")


def problem(title: str, text: str, links: Sequence[tuple[str, str]] = (("Back to the zoo", "/"),)) -> dmc.Paper:
    """Something is wrong, and the way out."""
    return _panel(title, text, (), links, role="alert")


def of_error(error: Exception) -> dmc.Paper:
    """The page for an error that a question ended in."""
    if isinstance(error, NotFound):
        return problem("Not found", error.message)
    if isinstance(error, StoreUnavailable):
        panel = problem("The database does not answer", f"{error.message}. This page tries again by itself.", ())
        panel.children = [panel.children, dcc.Interval(id={"type": "again", "name": "page"}, interval=3000)]
        return panel
    if isinstance(error, NotAllowed):
        return problem("Not allowed", error.message)
    if isinstance(error, BadInput):
        return problem("This address does not fit", error.message)
    if isinstance(error, ZoograftError):
        return problem("That did not work", error.message)
    return problem("Something went wrong", "The reason is in the server's log. Reload the page, or go back.")


def skeleton() -> html.Div:
    """While a page is on its way."""
    return html.Div(
        [dmc.Skeleton(height=28, width="30%", mb=16), dmc.Skeleton(height=120, mb=16), dmc.Skeleton(height=320)],
        role="status",
        **{"aria-label": "Loading"},
    )


def _panel(title: str, text: str, commands: Sequence[str], links: Sequence[tuple[str, str]], *, role: str) -> dmc.Paper:
    return dmc.Paper(
        dmc.Stack(
            [
                dmc.Title(title, order=1 if role == "alert" else 2, size="h3"),
                dmc.Text(text, maw=720),
                *(dmc.Code(command, block=True, className="command") for command in commands),
                dmc.Group([dmc.Anchor(label, href=href, fw=600) for label, href in links]) if links else None,
            ],
            gap="sm",
        ),
        withBorder=True,
        p="xl",
        className="state-panel",
        attributes={"root": {"role": role}},
    )
