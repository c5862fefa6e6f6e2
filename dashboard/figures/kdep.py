"""Distillation as pre-training: He et al., CVPR 2022. What it is worth downstream (Fig. 1), how the loss fell, what
became of the spread of the channels, which teacher to take, and pictures of features (Fig. 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.domain.kdep import AlignmentReport, DownstreamResult, EmbeddingResult
from backend.domain.kdep_studies import KdepSummary
from dashboard.figures.curves import Points
from dashboard.figures.frame import figure, nothing
from dashboard.reads import CandidateTeacher
from dashboard.theme import Scheme, colour, family_colour, series, template

NO_RUN = "No pre-training has finished yet"
MOST_NAMED = 16
MOST_DRAWN = 5000
MOST_CANDIDATES = 40
LONGEST = 28
MANY_DECADES = 1.5


def over_shares(summaries: Sequence[KdepSummary], scheme: Scheme) -> go.Figure:
    """1: the downstream average against the share of images that was pre-trained on, mean over seeds, bars 95 %."""
    if not summaries:
        return nothing(NO_RUN, scheme)
    made = figure(scheme, hovermode="closest")
    shares = sorted({one.share for one in summaries})
    lines: dict[str, list[KdepSummary]] = {}
    for one in summaries:
        lines.setdefault(_named(one.label, one.teacher), []).append(one)
    for i, (name, members) in enumerate(lines.items()):
        members = sorted(members, key=lambda one: one.share)
        tone = series(scheme)[i % len(series(scheme))]
        made.add_trace(
            go.Scatter(
                x=[f"{100 * one.share:g} %" for one in members],
                y=[100 * one.average.mean for one in members],
                error_y=_ends([(one.average.mean, one.average.low, one.average.high) for one in members]),
                mode="lines+markers" if len(shares) > 1 else "markers",
                name=name,
                line={"color": tone, "width": 2},
                marker={"size": 9},
                customdata=[len(one.average.values) for one in members],
                hovertemplate="%{y:.2f} % over %{customdata} seeds<extra>" + name + "</extra>",
            )
        )
    made.update_xaxes(title_text="Share of the images pre-trained on", type="category")
    made.update_xaxes(categoryorder="array", categoryarray=[f"{100 * share:g} %" for share in shares])
    made.update_yaxes(title_text="Downstream average (%), bars 95 %")
    return made


def over_images_seen(summaries: Sequence[KdepSummary], scheme: Scheme) -> go.Figure:
    """1: the downstream average against the images seen (epochs × images), one line a method and teacher; bars 95 %.

    Methods that see none (random initialisation) are a dashed level.
    """
    if not summaries:
        return nothing(NO_RUN, scheme)
    made = figure(scheme, hovermode="closest")
    lines: dict[str, list[KdepSummary]] = {}
    for one in summaries:
        lines.setdefault(_named(one.method, one.teacher), []).append(one)
    for i, (name, members) in enumerate(lines.items()):
        tone = series(scheme)[i % len(series(scheme))]
        trained = sorted((one for one in members if one.images_seen), key=lambda one: one.images_seen)
        for one in (one for one in members if not one.images_seen):
            made.add_hline(
                y=100 * one.average.mean, line={"color": tone, "dash": "dash"}, annotation_text=name, opacity=0.8
            )
        if not trained:
            continue
        made.add_trace(
            go.Scatter(
                x=[one.images_seen for one in trained],
                y=[100 * one.average.mean for one in trained],
                error_y=_ends([(one.average.mean, one.average.low, one.average.high) for one in trained]),
                mode="lines+markers" if len(trained) > 1 else "markers",
                name=name,
                line={"color": tone, "width": 2},
                marker={"size": 9},
                customdata=[[one.label, f"{100 * one.share:g} %", one.epochs, _seconds(one.job_s)] for one in trained],
                hovertemplate="%{y:.2f} % after %{x:,} images<br>%{customdata[0]}, %{customdata[1]} of the images, "
                "%{customdata[2]} epochs%{customdata[3]}<extra>" + name + "</extra>",
            )
        )
    made.update_xaxes(title_text="Images seen (epochs × images)", type="log", exponentformat="SI")
    made.update_yaxes(title_text="Downstream average (%), bars 95 %")
    return made


def _seconds(taken: float | None) -> str:
    return "" if taken is None else f", {taken:,.0f} s a job"


def downstream_sets(summaries: Sequence[KdepSummary], scheme: Scheme) -> go.Figure:
    """Every downstream set by method on the most data, mean over seeds, bars 95 %."""
    if not summaries:
        return nothing(NO_RUN, scheme)
    most = max(one.share for one in summaries)
    return _grouped(
        {
            _named(one.label, one.teacher): [
                (name, found.mean, found.low, found.high) for name, found in one.sets.items()
            ]
            for one in summaries
            if one.share == most
        },
        scheme,
    )


def downstream(results: Mapping[str, DownstreamResult], scheme: Scheme) -> go.Figure:
    """Fine-tuning on every downstream set, by run; mean over fine-tuning seeds, bars 95 %."""
    if not results:
        return nothing("No run was measured downstream: zoograft kdep … --downstream NAME", scheme)
    return _grouped(
        {
            run: [(one.dataset, one.test.mean, one.test.low, one.test.high) for one in result.sets]
            for run, result in results.items()
        },
        scheme,
    )


def losses(runs: Mapping[str, Points], scheme: Scheme) -> go.Figure:
    """The loss of every run against the share of its steps; each run's own loss, so that only shapes compare."""
    drawn = {name: points for name, points in runs.items() if points}
    if not drawn:
        return nothing("No run has reported a loss", scheme)
    made = figure(scheme, hovermode="x unified")
    for i, (name, points) in enumerate(drawn.items()):
        made.add_trace(
            go.Scatter(
                x=[step for step, _ in points],
                y=[value for _, value in points],
                mode="lines" if len(points) > 2 else "lines+markers",
                name=name,
                line={"color": series(scheme)[i % len(series(scheme))], "width": 2},
                hovertemplate="%{y:.4g}",
            )
        )
    values = [value for points in drawn.values() for _, value in points]
    logarithmic = _logarithmic(values) if min(values) > 0 and len(drawn) > 1 else {}
    made.update_xaxes(title_text="Step", rangemode="tozero")
    made.update_yaxes(title_text="Loss of the pre-training", **logarithmic)
    return made


def std_ratios(reports: Mapping[str, AlignmentReport], scheme: Scheme) -> go.Figure:
    """Largest over smallest channel std: of the teacher, once aligned, and once transformed (PTS flattens it)."""
    kept = {name: one for name, one in reports.items() if one.std_ratio_before is not None}
    if not kept:
        return nothing("No run aligned features with a fixed projection", scheme)
    made = figure(scheme, barmode="group")
    bars = (
        ("teacher", "teacher_std_ratio", "neutral"),
        ("aligned", "std_ratio_before", "loss"),
        ("transformed", "std_ratio_after", "gain"),
    )
    for label, field, meaning in bars:
        made.add_trace(
            go.Bar(
                x=[getattr(one, field) for one in kept.values()],
                y=list(range(len(kept))),
                orientation="h",
                name=label,
                marker={"color": colour(meaning, scheme)},
                customdata=list(kept),
                hovertemplate="%{customdata}: %{x:.3g}<extra>" + label + "</extra>",
            )
        )
    ratios = [value for one in kept.values() for _, field, _ in bars if (value := getattr(one, field)) is not None]
    made.update_xaxes(title_text="Largest / smallest channel std", **_logarithmic(ratios))
    made.update_yaxes(
        tickvals=list(range(len(kept))),
        ticktext=[name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in kept],
        autorange="reversed",
        showgrid=False,
    )
    return made


def diverse_first(found: Sequence[CandidateTeacher]) -> list[CandidateTeacher]:
    """The least compact first, then those without a compactness, each by name."""
    return sorted(found, key=lambda one: (one.compactness is None, one.compactness or 0.0, one.model))


def teachers_height(found: Sequence[CandidateTeacher]) -> int:
    """Pixels that leave every drawn candidate's name a line of its own."""
    return 150 + 24 * min(len(found), MOST_CANDIDATES)


def teachers(found: Sequence[CandidateTeacher], scheme: Scheme) -> go.Figure:
    """Compactness, LogME and accuracy side by side, one row a candidate; the least compact, most diverse one on top."""
    if not found:
        return nothing("No candidate has been measured yet", scheme)
    ordered = diverse_first(found)[:MOST_CANDIDATES]
    names = [one.model for one in ordered]
    panels = (("Compactness", "compactness", 1.0), ("LogME", "logme", 1.0), ("Accuracy (%)", "accuracy", 100.0))
    made = make_subplots(cols=3, rows=1, shared_yaxes=True, horizontal_spacing=0.08)
    for column, (title, field, scale) in enumerate(panels, start=1):
        values = [getattr(one, field) for one in ordered]
        made.add_trace(
            go.Scatter(
                x=[None if value is None else scale * value for value in values],
                y=names,
                mode="markers",
                marker={"size": 11, "color": [family_colour(one.family, scheme) for one in ordered]},
                showlegend=False,
                hovertemplate="<b>%{y}</b><br>" + title + " %{x:.4g}<extra></extra>",
            ),
            row=1,
            col=column,
        )
        made.update_xaxes(title_text=title, nticks=5, tickangle=0, row=1, col=column)
    made.update_yaxes(type="category", autorange="reversed", showticklabels=True, dtick=1, col=1)
    made.update_layout(template=template(scheme), hovermode="closest")
    return made


def embedding(result: EmbeddingResult, class_names: Sequence[str], scheme: Scheme) -> go.Figure:
    """Features by t-SNE, coloured by class; distances between far clusters, and their sizes, mean nothing."""
    if not result.points:
        return nothing("No features", scheme)
    made = figure(scheme, hovermode="closest")
    points, labels = np.array(result.points), np.array(result.labels)
    if len(points) > MOST_DRAWN:
        # WebGL would draw them all, but only where a page may compile code, which these pages may not.
        drawn = np.sort(np.random.default_rng(0).choice(len(points), MOST_DRAWN, replace=False))
        made.add_annotation(
            text=f"{MOST_DRAWN:,} of {len(points):,} images are drawn",
            showarrow=False,
            x=1,
            y=1,
            xref="paper",
            yref="paper",
            yanchor="bottom",
        )
        points, labels = points[drawn], labels[drawn]
    shown = sorted(set(labels.tolist()))
    named = len(shown) <= MOST_NAMED
    symbols = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star", "hexagon")
    tones = series(scheme)
    for rank, c in enumerate(shown):
        name = class_names[c] if 0 <= c < len(class_names) else str(c)
        inside = labels == c
        made.add_trace(
            go.Scatter(
                x=points[inside, 0],
                y=points[inside, 1],
                mode="markers",
                name=name,
                showlegend=named,
                marker={
                    "size": 7,
                    "opacity": 0.8,
                    "color": tones[rank % len(tones)],
                    "symbol": symbols[(rank // len(tones)) % len(symbols)],
                },
                hovertemplate=name + "<extra></extra>",
            )
        )
    hidden = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": ""}
    made.update_xaxes(**hidden)
    made.update_yaxes(**hidden, scaleanchor="x")
    return made


def _grouped(lines: Mapping[str, Sequence[tuple[str, float, float | None, float | None]]], scheme: Scheme) -> go.Figure:
    made = figure(scheme, barmode="group")
    for i, (name, values) in enumerate(lines.items()):
        made.add_trace(
            go.Bar(
                x=[where for where, *_ in values],
                y=[100 * mean for _, mean, _, _ in values],
                error_y=_ends([(mean, low, high) for _, mean, low, high in values]),
                name=name,
                marker={"color": series(scheme)[i % len(series(scheme))]},
                hovertemplate="%{x}: %{y:.2f} %<extra>" + name + "</extra>",
            )
        )
    made.update_yaxes(title_text="Score on test (%), bars 95 %")
    made.update_xaxes(title_text="Downstream set")
    return made


def _logarithmic(values: Sequence[float]) -> dict[str, object]:
    """An axis with full numbers: 1, 2, 5 of each decade where there are few decades, else at most six powers of ten."""
    decades = math.log10(max(values) / min(values))
    if decades <= MANY_DECADES:
        return {"type": "log", "dtick": "D2", "tickformat": "~g"}
    return {"type": "log", "dtick": math.ceil(decades / 5), "exponentformat": "power"}


def _named(label: str, teacher: str | None) -> str:
    return label if teacher is None else f"{label}, {teacher}"


def _ends(values: Sequence[tuple[float, float | None, float | None]]) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if high is None else 100 * (high - mean) for mean, _, high in values],
        "arrayminus": [0 if low is None else 100 * (mean - low) for mean, low, _ in values],
        "thickness": 1.2,
        "width": 4,
    }
