"""The information plane: teacher test error against information, marker size = student error (ReMem, Fig. 1, 2, 4)."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from backend.domain.remem import SETTINGS
from backend.domain.remem_results import PlanePoint
from dashboard.figures.frame import figure, nothing
from dashboard.theme import Scheme, series

LABELS = {"baseline": "Fine-tuned", "sam": "SAM", "reweight": "Reweighted", "both": "ReMem (both)"}
SMALLEST, LARGEST = 9.0, 30.0


def information_plane(points: Sequence[PlanePoint], scheme: Scheme, links: Sequence[str] = ()) -> go.Figure:
    """Each setting's snapshots with its Pareto front dashed; lower left is a better teacher, a smaller marker a better
    student. Errors are drawn in percent. `links`: for each point where a click on it leads."""
    if not points:
        return nothing("No teacher with information yet", scheme)
    made = figure(
        scheme,
        xaxis_title="Test error of the teacher (%)",
        yaxis_title="Excess reconstruction loss (nats; lower = more information)",
    )
    known = [point.student_error for point in points if point.student_error is not None]
    for number, setting in enumerate(SETTINGS):
        members = [point for point in points if point.setting == setting]
        if not members:
            continue
        hue = series(scheme)[number % len(series(scheme))]
        made.add_scatter(
            x=[100 * point.teacher_error for point in members],
            y=[point.excess_nats for point in members],
            mode="markers",
            name=LABELS[setting],
            legendgroup=setting,
            marker={
                "size": [marker_size(point.student_error, known) for point in members],
                "color": hue,
                "opacity": 0.8,
            },
            text=[_hover(point) for point in members],
            customdata=[link for point, link in zip(points, links, strict=True) if point.setting == setting]
            if links
            else None,
            hovertemplate="%{text}<extra></extra>",
        )
        front = sorted((point for point in members if point.on_front), key=lambda point: point.teacher_error)
        made.add_scatter(
            x=[100 * point.teacher_error for point in front],
            y=[point.excess_nats for point in front],
            mode="lines",
            line={"dash": "dash", "color": hue},
            legendgroup=setting,
            showlegend=False,
            hoverinfo="skip",
        )
    return made


def marker_size(student_error: float | None, known: Sequence[float]) -> float:
    """Pixels: from the least to the largest student error shown; a point without a student is smallest."""
    if student_error is None or not known:
        return SMALLEST
    least, most = min(known), max(known)
    return SMALLEST if most == least else SMALLEST + (LARGEST - SMALLEST) * (student_error - least) / (most - least)


def _hover(point: PlanePoint) -> str:
    student = "none" if point.student_error is None else f"{100 * point.student_error:.1f} %"
    return (
        f"{LABELS[point.setting]}, seed {point.seed}, {point.stop_point} steps<br>"
        f"lr {point.lr:g}, ρ {point.rho:g}, α {point.mlp_weight:g}<br>"
        f"teacher error {100 * point.teacher_error:.1f} %, student error {student}<br>"
        f"excess {point.excess_nats:.4f} nats"
    )
