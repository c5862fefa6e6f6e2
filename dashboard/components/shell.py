"""The frame around every page: header with link and theme, navigation, the place of the page."""

from __future__ import annotations

from collections.abc import Sequence

import dash_mantine_components as dmc
from dash import dcc, html

from dashboard.components.states import skeleton
from dashboard.theme import MANTINE

NAVBAR = {"width": 216, "breakpoint": "md", "collapsed": {"mobile": True}}


def shell(navigation: Sequence[tuple[str, str, str]], *, sign_out: bool) -> dmc.MantineProvider:
    """The static layout.

    Args:
        navigation: (label, address, icon) of every page that the menu lists.
        sign_out: whether there is a session to end.
    """
    return dmc.MantineProvider(
        [
            dcc.Location(id="url", refresh="callback-nav"),
            dcc.Store(id="written"),
            dcc.Store(id="scheme"),
            dcc.Store(id="again"),
            dmc.NotificationContainer(id="notices", position="bottom-right", autoClose=8000),
            html.Div(id="connection", role="alert", hidden=True),
            html.Div(id="title", role="status", className="visually-hidden"),
            html.A("To the content", href="#page", className="skip-link"),
            dmc.AppShell(
                [
                    dmc.AppShellHeader(_header(sign_out)),
                    dmc.AppShellNavbar(
                        html.Nav(
                            [
                                dmc.NavLink(
                                    label=label,
                                    href=href,
                                    active="exact" if href == "/" else "partial",
                                    leftSection=html.Span(className=f"icon icon-{icon}"),
                                    className="nav-link",
                                )
                                for label, href, icon in navigation
                            ],
                            **{"aria-label": "Pages"},
                        ),
                        p="xs",
                    ),
                    dmc.AppShellMain(html.Div(skeleton(), id="page", tabIndex="-1")),
                ],
                id="shell",
                header={"height": 56},
                navbar=NAVBAR,
                padding="md",
            ),
        ],
        id="mantine",
        theme=MANTINE,
        defaultColorScheme="auto",
    )


def _header(sign_out: bool) -> dmc.Group:
    right = [
        html.Span(id="copied", role="status", className="copied"),
        dmc.Button("Copy link", id="copy-link", variant="default", size="compact-sm"),
        dmc.SegmentedControl(
            id="theme",
            value="system",
            size="xs",
            data=[
                {"value": "light", "label": "Light"},
                {"value": "dark", "label": "Dark"},
                {"value": "system", "label": "System"},
            ],
            attributes={"root": {"aria-label": "Theme"}},
        ),
    ]
    if sign_out:
        right.append(
            html.Form(
                dmc.Button("Sign out", type="submit", variant="subtle", size="compact-sm"),
                action="/sign-out",
                method="post",
            )
        )
    return dmc.Group(
        [
            dmc.Group(
                [
                    dmc.Burger(id="burger", opened=False, hiddenFrom="md", size="sm", **{"aria-label": "Menu"}),
                    html.A([html.Span(className="logo"), "Zoograft"], href="/", className="brand"),
                ],
                gap="sm",
            ),
            dmc.Group(right, gap="sm", wrap="nowrap"),
        ],
        justify="space-between",
        h="100%",
        px="md",
        wrap="nowrap",
    )
