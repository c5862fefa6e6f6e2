"""Many transfers at once: Roth et al., arXiv:2310.17653, Fig. 4a, 4b, 5a, 5b, 6, 7, 8, and 9-10 by data set.

Rows are finished transfers; success is Δ > 0, and Δ = 0 is failure. A label is a method with its settings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from backend.domain.catalog import Model
from backend.domain.study_summary import MethodSummary, StudyRow, is_control
from backend.domain.transfers import TOP_P, success_rates
from dashboard.figures.frame import figure, nothing
from dashboard.theme import (
    FAMILIES,
    FAMILY_LABELS,
    FAMILY_SYMBOLS,
    Scheme,
    colour,
    family_colour,
    series,
)

NO_ROWS = "No transfer has finished yet"


def labels(rows: Sequence[StudyRow]) -> list[str]:
    """Methods in the order in which they come."""
    return list(dict.fromkeys(row.label for row in rows))


def tones(rows: Sequence[StudyRow], scheme: Scheme) -> dict[str, str]:
    """One colour a method; controls are grey, and the same method has the same colour in every figure."""
    named = [label for label in labels(rows) if not label.startswith("control")]
    found = {label: series(scheme)[i % (len(series(scheme)) - 1)] for i, label in enumerate(named)}
    return {label: found.get(label, colour("neutral", scheme)) for label in labels(rows)}


def success_boxes(rows: Sequence[StudyRow], scheme: Scheme) -> go.Figure:
    """4a: per student the share of its transfers that succeed; one box a method, one point a student."""
    if not rows:
        return nothing(NO_ROWS, scheme)
    made = figure(scheme, showlegend=False)
    for label, tone in tones(rows, scheme).items():
        deltas: dict[str, list[float]] = {}
        for row in rows:
            if row.label == label:
                deltas.setdefault(row.student, []).append(row.transfer_delta)
        rates = success_rates(deltas)
        made.add_trace(
            go.Box(
                y=[100 * rate for rate in rates.values()],
                name=label,
                boxpoints="all",
                jitter=0.35,
                pointpos=0,
                marker={"color": tone, "size": 6, "opacity": 0.8},
                line={"width": 1.5},
                text=[f"{student}: {len(deltas[student])} transfers" for student in rates],
                hovertemplate="%{text}<br>%{y:.0f} % succeed<extra></extra>",
            )
        )
    made.update_yaxes(title_text="Success per student (%)", range=[-5, 105])
    made.update_xaxes(tickangle=0 if len(labels(rows)) < 6 else -30)
    return made


def bins(rows: Sequence[StudyRow], count: int = 7) -> list[tuple[float, float]]:
    """Edges of even bins over the accuracy differences of the rows, in fractions."""
    found = [row.accuracy_difference for row in rows if row.accuracy_difference is not None]
    if not found:
        return []
    low, high = min(found), max(found)
    if low == high:
        return [(low - 0.005, high + 0.005)]
    edges = np.linspace(low, high, count + 1).tolist()
    return list(itertools.pairwise(edges))


def binned_deltas(rows: Sequence[StudyRow], scheme: Scheme) -> go.Figure:
    """4b: Δ against the accuracy difference, in bins: the mean of all (line), the mean of the best quarter (dots)."""
    taught = [row for row in rows if row.accuracy_difference is not None]
    edges = bins(taught)
    if not edges:
        return nothing(NO_ROWS, scheme)
    made = figure(scheme, hovermode="closest")
    for label, tone in tones(rows, scheme).items():
        middles, means, tops, counts = [], [], [], []
        for i, (low, high) in enumerate(edges):
            inside = sorted(
                row.transfer_delta
                for row in taught
                if row.label == label
                and row.accuracy_difference is not None
                and (low <= row.accuracy_difference < high or (i == len(edges) - 1 and row.accuracy_difference == high))
            )
            if inside:
                middles.append(50 * (low + high))
                means.append(100 * float(np.mean(inside)))
                tops.append(100 * float(np.mean(inside[-max(1, round(len(inside) / 4)) :])))
                counts.append(len(inside))
        if not middles:
            continue
        hover = "%{y:+.2f} pp, %{customdata} transfers"
        made.add_trace(
            go.Scatter(
                x=middles,
                y=means,
                mode="lines+markers",
                name=label,
                legendgroup=label,
                line={"color": tone, "width": 2},
                customdata=counts,
                hovertemplate=f"mean {hover}<extra>{label}</extra>",
            )
        )
        made.add_trace(
            go.Scatter(
                x=middles,
                y=tops,
                mode="markers",
                name=f"{label}, best quarter",
                legendgroup=label,
                showlegend=False,
                marker={"color": tone, "symbol": "circle-open", "size": 9},
                customdata=counts,
                hovertemplate=f"best quarter {hover}<extra>{label}</extra>",
            )
        )
    made.add_hline(y=0, line={"color": colour("line", scheme), "width": 1})
    made.add_vline(x=0, line={"color": colour("line", scheme), "width": 1, "dash": "dot"})
    made.update_xaxes(title_text="Accuracy difference, teacher − student (pp)")
    made.update_yaxes(title_text="Δ (pp): mean, ○ best quarter")
    return made


def rates_by_top(rows: Sequence[StudyRow], scheme: Scheme) -> go.Figure:
    """5a: transfer rate on the classes that hold p % of the positive flips; means, bars one standard error."""
    made = figure(scheme)
    for label, tone in tones(rows, scheme).items():
        xs, means, errors, counts = [], [], [], []
        for p in TOP_P:
            found = [rate for row in rows if row.label == label and (rate := row.transfer_rate.get(str(p))) is not None]
            if found:
                xs.append(f"{p} %")
                means.append(100 * float(np.mean(found)))
                errors.append(100 * float(np.std(found, ddof=1) / math.sqrt(len(found))) if len(found) > 1 else 0.0)
                counts.append(len(found))
        if xs:
            made.add_trace(
                go.Scatter(
                    x=xs,
                    y=means,
                    error_y={"type": "data", "array": errors, "thickness": 1, "width": 3},
                    mode="lines+markers",
                    name=label,
                    line={"color": tone, "width": 2},
                    customdata=counts,
                    hovertemplate="%{y:.1f} % over %{customdata} transfers<extra>" + label + "</extra>",
                )
            )
    if not made.data:
        return nothing(NO_ROWS, scheme)
    made.update_xaxes(title_text="Classes that hold so much of the positive flips", type="category")
    made.update_yaxes(title_text="Transfer rate (%)", rangemode="tozero")
    return made


def rates_by_student(rows: Sequence[StudyRow], models: Mapping[str, Model], scheme: Scheme) -> go.Figure:
    """5b: transfer rate against the student's size, by its family."""
    return _by_student(
        rows,
        models,
        lambda row: row.transfer_rate.get("100"),
        lambda row, model: None if model is None or model.param_count is None else model.param_count / 1e6,
        "Parameters of the student (millions)",
        "Transfer rate (%)",
        scheme,
        log=True,
    )


def deltas_by_student(
    rows: Sequence[StudyRow], models: Mapping[str, Model], scheme: Scheme, of: str = "size"
) -> go.Figure:
    """8: Δ against a property of the student: its size or its accuracy."""
    if of == "accuracy":
        return _by_student(
            rows,
            models,
            lambda row: row.transfer_delta,
            lambda row, model: 100 * row.student_accuracy_before,
            "Accuracy of the student before (%)",
            "Δ transfer (pp)",
            scheme,
        )
    return _by_student(
        rows,
        models,
        lambda row: row.transfer_delta,
        lambda row, model: None if model is None or model.param_count is None else model.param_count / 1e6,
        "Parameters of the student (millions)",
        "Δ transfer (pp)",
        scheme,
        log=True,
    )


def _by_student(rows, models, value, place, x_title, y_title, scheme, *, log=False):  # type: ignore[no-untyped-def]
    taught = [row for row in rows if row.teachers]
    groups: dict[tuple[str, str], list[StudyRow]] = {}
    for row in taught:
        groups.setdefault((row.label, row.student), []).append(row)
    made = figure(scheme, hovermode="closest")
    palette = tones(rows, scheme)
    seen: set[str] = set()
    for (label, student), members in groups.items():
        found = [one for row in members if (one := value(row)) is not None]
        at = place(members[0], models.get(student))
        if not found or at is None:
            continue
        family = models[student].family.value if student in models else "unknown"
        made.add_trace(
            go.Scatter(
                x=[at],
                y=[100 * float(np.mean(found))],
                mode="markers",
                name=label,
                legendgroup=label,
                showlegend=label not in seen,
                marker={
                    "color": palette[label],
                    "symbol": FAMILY_SYMBOLS[family],
                    "size": 11,
                    "line": {"width": 1, "color": family_colour(family, scheme)},
                },
                customdata=[[student, FAMILY_LABELS[family], len(found)]],
                hovertemplate="<b>%{customdata[0]}</b> (%{customdata[1]})<br>%{y:.2f}, mean of %{customdata[2]}<extra>"
                + label
                + "</extra>",
            )
        )
        seen.add(label)
    if not made.data:
        return nothing(f"Not known: {x_title.lower()}" if taught else NO_ROWS, scheme)
    shapes = {models[row.student].family.value for row in taught if row.student in models}
    for family in FAMILIES:
        if family in shapes:
            made.add_trace(
                go.Scatter(
                    x=[None],
                    y=[None],
                    mode="markers",
                    name=FAMILY_LABELS[family],
                    marker={"symbol": FAMILY_SYMBOLS[family], "color": colour("neutral", scheme), "size": 9},
                )
            )
    made.add_hline(y=0, line={"color": colour("line", scheme), "width": 1})
    made.update_xaxes(title_text=x_title, type="log" if log else "linear")
    made.update_yaxes(title_text=y_title)
    return made


def gain_against_loss(rows: Sequence[StudyRow], scheme: Scheme) -> go.Figure:
    """7: knowledge gained against knowledge lost; above the diagonal a transfer succeeds."""
    if not rows:
        return nothing(NO_ROWS, scheme)
    made = figure(scheme, hovermode="closest")
    top = 100 * max(max(row.knowledge_gain, row.knowledge_loss) for row in rows) * 1.05 or 1.0
    made.add_trace(
        go.Scatter(
            x=[0, top],
            y=[0, top],
            mode="lines",
            name="Δ = 0",
            line={"color": colour("line", scheme), "dash": "dash", "width": 1},
            hoverinfo="skip",
        )
    )
    for label, tone in tones(rows, scheme).items():
        chosen = [row for row in rows if row.label == label]
        made.add_trace(
            go.Scatter(
                x=[100 * row.knowledge_loss for row in chosen],
                y=[100 * row.knowledge_gain for row in chosen],
                mode="markers",
                name=label,
                marker={
                    "color": tone,
                    "size": 7,
                    "opacity": 0.75,
                    "symbol": "x" if is_control(chosen[0]) else "circle",
                },
                customdata=[
                    [" + ".join(row.teachers) or "no teacher", row.student, f"/jobs/{row.job_id}"] for row in chosen
                ],
                hovertemplate="%{customdata[0]} → %{customdata[1]}<br>gained %{y:.2f}, lost %{x:.2f} pp"
                "<extra>" + label + "; click opens the job</extra>",
            )
        )
    made.update_xaxes(title_text="Knowledge lost (% of the samples)", range=[-0.02 * top, top])
    made.update_yaxes(title_text="Knowledge gained (%)", range=[-0.02 * top, top])
    return made


def method_bars(methods: Sequence[MethodSummary], scheme: Scheme) -> go.Figure:
    """6: mean Δ of every method with its interval, and the mean above the control beside it."""
    if not methods:
        return nothing(NO_ROWS, scheme)
    made = figure(scheme, barmode="group")
    names = [one.label for one in methods]
    made.add_trace(
        go.Bar(
            x=names,
            y=[100 * one.mean_delta for one in methods],
            error_y=_ends([(one.mean_delta, one.mean_delta_low, one.mean_delta_high) for one in methods]),
            name="mean Δ",
            marker={"color": colour("delta", scheme)},
            customdata=[one.n_transfers for one in methods],
            hovertemplate="%{y:+.2f} pp over %{customdata} transfers<extra>mean Δ</extra>",
        )
    )
    above = [one for one in methods if one.mean_delta_above_control is not None]
    if above:
        made.add_trace(
            go.Bar(
                x=[one.label for one in above],
                y=[100 * (one.mean_delta_above_control or 0.0) for one in above],
                error_y=_ends(
                    [
                        (
                            one.mean_delta_above_control or 0.0,
                            one.mean_delta_above_control_low or 0.0,
                            one.mean_delta_above_control_high or 0.0,
                        )
                        for one in above
                    ]
                ),
                name="mean Δ above the control",
                marker={"color": colour("gain", scheme)},
                hovertemplate="%{y:+.2f} pp<extra>above the control</extra>",
            )
        )
    made.add_hline(y=0, line={"color": colour("line", scheme), "width": 1})
    made.update_yaxes(title_text="Mean Δ (pp), bars 95 %")
    made.update_xaxes(tickangle=0 if len(names) < 6 else -30)
    return made


def by_dataset(rows: Sequence[StudyRow], datasets: Mapping[str, str], scheme: Scheme) -> go.Figure:
    """6, 9, 10: mean Δ by data set and method: other data and domain shift."""
    if not rows:
        return nothing(NO_ROWS, scheme)
    found = list(dict.fromkeys(datasets.get(row.job_id, "?") for row in rows))
    made = figure(scheme, barmode="group")
    for label, tone in tones(rows, scheme).items():
        means, counts = [], []
        for dataset in found:
            deltas = [r.transfer_delta for r in rows if r.label == label and datasets.get(r.job_id, "?") == dataset]
            means.append(100 * float(np.mean(deltas)) if deltas else None)
            counts.append(len(deltas))
        made.add_trace(
            go.Bar(
                x=found,
                y=means,
                name=label,
                marker={"color": tone},
                customdata=counts,
                hovertemplate="%{y:+.2f} pp over %{customdata} transfers<extra>" + label + "</extra>",
            )
        )
    made.add_hline(y=0, line={"color": colour("line", scheme), "width": 1})
    made.update_yaxes(title_text="Mean Δ transfer (pp)")
    made.update_xaxes(title_text="Data set")
    return made


def _ends(values: Sequence[tuple[float, float, float]]) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (high - mean) for mean, _, high in values],
        "arrayminus": [100 * (mean - low) for mean, low, _ in values],
        "thickness": 1.2,
        "width": 4,
    }
