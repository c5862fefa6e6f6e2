"""The information plane over models of the zoo: test error against information (Dong et al., arXiv:2506.23041, Fig. 2).

Lower left is a better teacher. The marker grows with the error of the student that was taught.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from dashboard.figures.frame import figure, nothing
from dashboard.figures.information_plane import marker_size
from dashboard.reads import PlaneModel
from dashboard.theme import FAMILIES, FAMILY_LABELS, FAMILY_SYMBOLS, Scheme, colour, family_colour
from dashboard.view import link

MOST_NAMED = 25


def model_plane(members: Sequence[PlaneModel], scheme: Scheme) -> go.Figure:
    """Comparable models by family, their Pareto front dashed. Errors are drawn in percent."""
    if not members:
        return nothing("No model with information and accuracy on the same split", scheme)
    made = figure(scheme, hovermode="closest")
    front = sorted((one for one in members if one.on_front), key=lambda one: one.teacher_error)
    made.add_trace(
        go.Scatter(
            x=[100 * one.teacher_error for one in front],
            y=[one.information.excess_nats for one in front],
            mode="lines",
            name="Pareto front",
            line={"dash": "dash", "color": colour("line", scheme), "width": 1.5},
            hoverinfo="skip",
        )
    )
    known = [one.student_error for one in members if one.student_error is not None]
    for family in FAMILIES:
        chosen = [one for one in members if one.family == family]
        if not chosen:
            continue
        made.add_trace(
            go.Scatter(
                x=[100 * one.teacher_error for one in chosen],
                y=[one.information.excess_nats for one in chosen],
                mode="markers+text" if len(members) <= MOST_NAMED else "markers",
                text=[one.model for one in chosen],
                textposition="top center",
                textfont={"size": 12},
                name=FAMILY_LABELS[family],
                marker={
                    "color": family_colour(family, scheme),
                    "symbol": FAMILY_SYMBOLS[family],
                    "size": [marker_size(one.student_error, known) for one in chosen],
                    "opacity": 0.85,
                },
                customdata=[[_hover(one), link("zoo", one.model)] for one in chosen],
                hovertemplate="%{customdata[0]}<extra>click opens the model</extra>",
            )
        )
    made.update_xaxes(title_text="Test error of the model (%)")
    made.update_yaxes(title_text="Excess reconstruction loss (nats; lower = more information)")
    return made


def _hover(one: PlaneModel) -> str:
    told = one.information
    lines = [
        f"<b>{one.model}</b>",
        f"test error {100 * one.teacher_error:.2f} %",
        f"excess {told.excess_nats:.4f} nats (loss {told.loss_nats:.4f}, floor {told.floor_nats:.4f})",
    ]
    if one.student_error is not None:
        lines.append(f"taught {one.student}: error {100 * one.student_error:.2f} %")
    if one.on_front:
        lines.append("on the Pareto front")
    return "<br>".join(lines)
