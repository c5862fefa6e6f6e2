"""Values with their 95 % intervals, one line each: transfers of one pair, and methods against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from backend.domain.study_summary import MethodDifference
from dashboard.figures.frame import figure, nothing
from dashboard.theme import Scheme, colour

CONTROL = "control without a teacher"


@dataclass(frozen=True)
class Line:
    """One line: a value with its ends, and beside it what the control without a teacher came to, where there is one.

    Fractions; drawn in percentage points.
    """

    label: str
    value: float
    low: float
    high: float
    control: float | None = None


def forest(lines: Sequence[Line], title: str, scheme: Scheme) -> go.Figure:
    """The first line on top; an interval that does not reach 0 is a difference."""
    if not lines:
        return nothing("No transfer has finished yet", scheme)
    made = figure(scheme, hovermode="closest", showlegend=any(line.control is not None for line in lines))
    places = [str(number) for number in range(len(lines))]
    made.add_trace(
        go.Scatter(
            x=[100 * line.value for line in lines],
            y=places,
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (line.high - line.value) for line in lines],
                "arrayminus": [100 * (line.value - line.low) for line in lines],
                "thickness": 1.6,
                "width": 5,
            },
            mode="markers",
            name="transfer",
            marker={"color": colour("delta", scheme), "size": 10},
            customdata=[[line.label, 100 * line.low, 100 * line.high] for line in lines],
            hovertemplate="<b>%{customdata[0]}</b><br>%{x:+.2f} pp, 95 % from %{customdata[1]:+.2f} to "
            "%{customdata[2]:+.2f}<extra></extra>",
        )
    )
    if any(line.control is not None for line in lines):
        made.add_trace(
            go.Scatter(
                x=[None if line.control is None else 100 * line.control for line in lines],
                y=places,
                mode="markers",
                name=CONTROL,
                marker={"color": colour("neutral", scheme), "symbol": "diamond-open", "size": 10, "line": {"width": 2}},
                customdata=[line.label for line in lines],
                hovertemplate="%{customdata}<br>%{x:+.2f} pp without a teacher<extra></extra>",
            )
        )
    made.add_vline(x=0, line={"color": colour("line", scheme), "width": 1})
    made.update_xaxes(title_text=title)
    made.update_yaxes(
        type="category",
        range=[len(lines) - 0.4, -0.6],
        tickvals=places,
        ticktext=[_cut(line.label) for line in lines],
        showgrid=False,
    )
    return made


def differences(found: Sequence[MethodDifference], of: str, scheme: Scheme) -> go.Figure:
    """Paired differences between methods, of `success_rate` or of `mean_delta`."""
    lines = [
        Line(
            f"{one.label} − {one.baseline}",
            getattr(one, f"{of}_difference"),
            getattr(one, f"{of}_difference_low"),
            getattr(one, f"{of}_difference_high"),
        )
        for one in found
    ]
    titles = {"success_rate": "Difference of the success rate (points)", "mean_delta": "Difference of the mean Δ (pp)"}
    return forest(lines, titles[of], scheme)


def _cut(label: str, most: int = 44) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
