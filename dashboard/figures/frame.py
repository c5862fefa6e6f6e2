"""What figures share: an empty one with a word in it, and the template of a theme."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from dashboard.theme import SURFACES, Scheme, template


def figure(scheme: Scheme, **layout: Any) -> go.Figure:
    """An empty figure in a theme."""
    made = go.Figure()
    made.update_layout(template=template(scheme), **layout)
    return made


def nothing(text: str, scheme: Scheme) -> go.Figure:
    """A figure that says why there is nothing in it."""
    made = figure(scheme, xaxis={"visible": False}, yaxis={"visible": False})
    made.add_annotation(
        text=text,
        showarrow=False,
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        font={"size": 15, "color": SURFACES[scheme]["dimmed"]},
    )
    return made
