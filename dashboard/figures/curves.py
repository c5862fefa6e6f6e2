"""What a training did over its steps and epochs: loss terms, what was gained and lost, and the teacher's share.

Roth et al., arXiv:2310.17653, Fig. 11 for the gain, loss and Δ over the epochs of a sequential transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dashboard.figures.frame import figure, nothing
from dashboard.theme import SURFACES, Scheme, colour, series

EPOCH_MEASURES = {
    "transfer_delta": ("Δ transfer", "delta"),
    "knowledge_gain": ("gain", "gain"),
    "knowledge_loss": ("loss of knowledge", "loss"),
}
SHARES = ("teacher_share", "positive_flips_to_teacher", "negative_flips_to_teacher")
SHARE_LABELS = {
    "teacher_share": "samples given to the teacher",
    "positive_flips_to_teacher": "of the positive flips",
    "negative_flips_to_teacher": "of the negative flips",
}
SPEED = "images_per_s"
NOT_LOSSES = ("lr", SPEED, "eta_s", *SHARES, *EPOCH_MEASURES)

Points = Sequence[tuple[int, float]]
FROM = "from "
"""Before the teacher's name in the name of a stage."""


def by_name(events: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Metric events as one series of (step, value) a name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        for name, value in event.get("values", {}).items():
            found.setdefault(name, []).append((int(event["step"]), float(value)))
    return found


def losses(metrics: Mapping[str, Points]) -> dict[str, Points]:
    """The series that are terms of a loss."""
    return {
        name: points
        for name, points in metrics.items()
        if _term(name) not in NOT_LOSSES
        and not _term(name).startswith(("student_accuracy", "positive_flip_rate", "negative_flip_rate"))
    }


def loss_curves(metrics: Mapping[str, Points], scheme: Scheme) -> go.Figure:
    """Every loss term of every stage against the step."""
    terms = losses(metrics)
    if not terms:
        return nothing("No step has been reported yet", scheme)
    # A term that is the whole loss is drawn once.
    terms = {
        name: points
        for name, points in terms.items()
        if _term(name) == "loss" or points != terms.get(name.removesuffix(_term(name)) + "loss")
    }
    made = figure(scheme, hovermode="x unified")
    for i, (name, points) in enumerate(terms.items()):
        made.add_trace(_line(name.replace("/", ": "), points, series(scheme)[i % len(series(scheme))]))
    made.update_xaxes(title_text="Step", rangemode="tozero")
    made.update_yaxes(title_text="Value of the loss")
    return made


def speed_curve(metrics: Mapping[str, Points], scheme: Scheme) -> go.Figure:
    """How fast a scan went over its images."""
    if SPEED not in metrics:
        return nothing("No speed has been reported yet", scheme)
    made = figure(scheme)
    made.add_trace(_line(SPEED, metrics[SPEED], series(scheme)[0]))
    made.update_xaxes(title_text="Images so far", rangemode="tozero")
    made.update_yaxes(title_text="Images per second", rangemode="tozero")
    return made


def share_curves(metrics: Mapping[str, Points], scheme: Scheme) -> go.Figure:
    """How many samples data partitioning gives to the teacher, and of which flips."""
    made = figure(scheme, hovermode="x unified")
    palette = (colour("neutral", scheme), colour("positive", scheme), colour("negative", scheme))
    shown: set[str] = set()
    staged = {_term(name) for name in metrics if "/" in name}
    for name, points in metrics.items():
        term = _term(name)
        # Without a stage it is the evaluated epochs' share, a part of the same curve.
        if term in SHARES and ("/" in name or term not in staged):
            drawn = [(x, 100 * y) for x, y in points]
            line = _line(SHARE_LABELS[term], drawn, palette[SHARES.index(term)], markers=len(points) < 60)
            # Stages of a sequential run share a colour and one entry of the legend.
            made.add_trace(line.update(legendgroup=term, showlegend=term not in shown))
            shown.add(term)
    if not made.data:
        return nothing("This method does not partition the data", scheme)
    made.update_xaxes(title_text="Step", rangemode="tozero")
    made.update_yaxes(title_text="Given to the teacher (%)", range=[-3, 103])
    return made


def has_shares(metrics: Mapping[str, Points]) -> bool:
    return any(_term(name) in SHARES for name in metrics)


def reported_epochs(events: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[tuple[str, int]]]:
    """The epochs that metric events tell of, numbered as in the result, and (teacher, epochs) of each stage."""
    results: list[dict[str, Any]] = []
    stages: list[tuple[str, int]] = []
    for event in events:
        values = event.get("values", {})
        if not EPOCH_MEASURES.keys() <= values.keys():
            continue
        results.append({"epoch": len(results) + 1, **{k: v for k, v in values.items() if "/" not in k}})
        stage = next((name.rsplit("/", 1)[0] for name in values if name.startswith(FROM)), None)
        if stage is not None:
            teacher = stage.removeprefix(FROM)
            if stages and stages[-1][0] == teacher:
                stages[-1] = (teacher, stages[-1][1] + 1)
            else:
                stages.append((teacher, 1))
    return results, stages


def epochs(results: Sequence[Mapping[str, Any]], stages: Sequence[tuple[str, int]], scheme: Scheme) -> go.Figure:
    """Gain, loss and Δ over the epochs of a transfer so far; `stages` = (teacher, epochs) of a sequential one."""
    if not results:
        return nothing("The first epoch has not ended yet", scheme)
    made = figure(scheme, hovermode="x unified")
    for name, (label, meaning) in EPOCH_MEASURES.items():
        points = [(int(one["epoch"]), 100 * float(one[name])) for one in results]
        made.add_trace(_line(label, points, colour(meaning, scheme), markers=len(points) < 80))
    made.add_hline(y=0, line={"color": colour("line", scheme), "width": 1})
    start = 0
    for i, (teacher, count) in enumerate(stages):
        if i:
            made.add_vline(x=start + 0.5, line={"color": SURFACES[scheme]["dimmed"], "width": 1, "dash": "dash"})
        made.add_annotation(
            x=start + 0.5 + count / 2,
            y=1.0,
            yref="paper",
            yanchor="bottom",
            text=f"from {teacher}",
            showarrow=False,
            font={"size": 12, "color": SURFACES[scheme]["dimmed"]},
        )
        start += count
    made.update_xaxes(title_text="Epoch", dtick=1 if len(results) <= 10 else None, tickangle=0)
    made.update_yaxes(title_text="Evaluation samples (pp)")
    if stages:
        made.update_layout(legend={"y": 1.09}, margin={"t": 60})
    return made


def _line(name: str, points: Points, tone: str, *, markers: bool = False) -> go.Scatter:
    return go.Scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        name=name,
        mode="lines+markers" if markers or len(points) < 3 else "lines",
        line={"color": tone, "width": 2},
        marker={"size": 6},
        hovertemplate="%{y:.4g}",
    )


def _term(name: str) -> str:
    return name.rsplit("/", 1)[-1]
