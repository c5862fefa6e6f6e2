"""Pairs of models in the plane and as a matrix: Roth et al., arXiv:2310.17653, Fig. 1a and 1b, and the heat map.

1a: what the teacher knows beside the student (positive flips) against how much better it is. 1b: how focused that
knowledge is (entropy over the classes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from backend.domain.pairs import Pair
from dashboard.figures.frame import figure, nothing
from dashboard.reads import Density, HeatMap
from dashboard.theme import (
    FAMILIES,
    FAMILY_LABELS,
    FAMILY_SYMBOLS,
    Scheme,
    colour,
    density_scale,
    family_colour,
)
from dashboard.view import link

AXES = {
    "accuracy_difference": ("Accuracy difference, teacher − student (pp)", 100.0),
    "positive_flip_rate": ("Positive flips (% of all samples)", 100.0),
    "negative_flip_rate": ("Negative flips (% of all samples)", 100.0),
    "flip_entropy_nats": ("Entropy of the positive flips over classes (nats)", 1.0),
    "teacher_accuracy": ("Accuracy of the teacher (%)", 100.0),
    "student_accuracy": ("Accuracy of the student (%)", 100.0),
}
"""Column → (title, scale from stored fractions to what is drawn)."""


def pair_link(pair: Pair) -> str:
    return link("pairs", pair.teacher, pair.student, on=f"{pair.dataset}/{pair.split}")


def pairs_plane(
    pairs: Sequence[Pair],
    families: Sequence[str],
    density: Density | None,
    x: str,
    y: str,
    view: tuple[float, float, float, float],
    scheme: Scheme,
) -> go.Figure:
    """Points of the listed pairs by the teacher's family, over the density of all pairs in the view where given.

    Args:
        families: The teacher's family of each pair.
        view: x from, x to, y from, y to, in stored units.
    """
    (x_title, x_scale), (y_title, y_scale) = AXES[x], AXES[y]
    if not pairs and density is None:
        return nothing("No pair passes these filters", scheme)
    made = figure(scheme, hovermode="closest", dragmode="zoom")
    if density is not None:
        made.add_trace(_density(density, x_scale, y_scale, scheme))
    dimmed = density is not None
    for family in FAMILIES:
        chosen = [pair for pair, one in zip(pairs, families, strict=True) if one == family]
        if chosen:
            made.add_trace(_points(chosen, family, x, y, x_scale, y_scale, dimmed, scheme))
    if x == "accuracy_difference" and view[0] < 0 < view[1]:
        made.add_vline(x=0, line={"color": colour("line", scheme), "width": 1, "dash": "dot"})
    made.update_xaxes(title_text=x_title, range=[view[0] * x_scale, view[1] * x_scale])
    made.update_yaxes(title_text=y_title, range=[view[2] * y_scale, view[3] * y_scale])
    return made


def _points(
    pairs: Sequence[Pair], family: str, x: str, y: str, x_scale: float, y_scale: float, dimmed: bool, scheme: Scheme
) -> go.Scatter:
    return go.Scatter(
        x=[getattr(pair, x) * x_scale for pair in pairs],
        y=[getattr(pair, y) * y_scale for pair in pairs],
        mode="markers",
        name=f"teacher: {FAMILY_LABELS[family]}",
        marker={
            "color": family_colour(family, scheme),
            "symbol": FAMILY_SYMBOLS[family],
            "size": 5 if dimmed else 8 if len(pairs) < 400 else 6,
            "opacity": 0.75,
            "line": {"width": 0},
        },
        customdata=[[pair.teacher, pair.student, pair_link(pair)] for pair in pairs],
        hovertemplate=(
            "<b>%{customdata[0]} → %{customdata[1]}</b><br>"
            f"{_short(x)} %{{x:.2f}}<br>{_short(y)} %{{y:.2f}}<extra>click opens the pair</extra>"
        ),
    )


def _density(density: Density, x_scale: float, y_scale: float, scheme: Scheme) -> go.Heatmap:
    counts = density.counts.astype(np.float32)
    logs = np.where(counts > 0, np.log10(np.maximum(counts, 1)), np.nan).astype(np.float32)
    top = max(1, math.ceil(round(float(np.nanmax(logs)), 4))) if np.isfinite(logs).any() else 1
    return go.Heatmap(
        x=density.x * x_scale,
        y=density.y * y_scale,
        z=logs,
        zmin=0,
        zmax=top,
        colorscale=density_scale(scheme),
        customdata=counts,
        hovertemplate="%{customdata} pairs here<extra>zoom in for points</extra>",
        hoverongaps=False,
        colorbar={
            "title": {"text": "pairs", "side": "top"},
            "tickvals": list(range(top + 1)),
            "ticktext": [f"{10**i:,}" for i in range(top + 1)],
            "thickness": 14,
            "outlinewidth": 0,
        },
        name="density",
    )


def heat_map(heat: HeatMap, value: str, scheme: Scheme) -> go.Figure:
    """Teachers across, students up, both from the least to the most accurate."""
    if not heat.values.size or not np.isfinite(heat.values).any():
        return nothing("No pair passes these filters", scheme)
    title, scale = AXES[value]
    labelled = len(heat.teachers) <= 40
    made = figure(scheme)
    made.add_trace(
        go.Heatmap(
            x=list(heat.teachers),
            y=list(heat.students),
            z=(heat.values * scale).astype(np.float32),
            colorscale=density_scale(scheme),
            hoverongaps=False,
            hovertemplate=(
                "teacher %{x}<br>student %{y}<br>%{z:.2f}<extra>"
                + ("click opens the pair" if heat.models_a_cell == 1 else "mean of a group; click looks into it")
                + "</extra>"
            ),
            colorbar={"title": {"text": "%" if scale == 100 else "nats", "side": "top"}, "thickness": 14},
        )
    )
    axis = {"showticklabels": labelled, "type": "category", "tickfont": {"size": 11}, "showgrid": False}
    made.update_xaxes(title_text="Teacher, more accurate to the right", tickangle=-45, **axis)
    made.update_yaxes(title_text="Student, more accurate upwards", **axis)
    made.update_layout(meta={"value": title})
    return made


def _short(column: str) -> str:
    return {
        "accuracy_difference": "difference (pp)",
        "positive_flip_rate": "positive flips (%)",
        "flip_entropy_nats": "entropy (nats)",
    }.get(column, column)
