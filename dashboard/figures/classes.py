"""One pair, class by class: Roth et al., arXiv:2310.17653, Fig. 2a (sorted) and 2b (similarity of the top)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from backend.domain.errors import BadInput
from backend.domain.flips import top_classes
from backend.domain.pairs import ClassFlips
from backend.domain.similarity import ClassSimilarity, top_class_similarity
from dashboard.figures.frame import figure, nothing
from dashboard.theme import SURFACES, Scheme, colour

TOP_P = (2, 5, 20, 50)
MOST_NAMED = 40


def histogram(
    records: Sequence[ClassFlips], positive: ArrayLike, scheme: Scheme, q_values: Mapping[int, float] | None = None
) -> go.Figure:
    """Share of each class's samples that are positive flips, the largest first, with negative flips below the line.

    The marks say how few classes hold p % of all positive flips.

    Args:
        positive: Positive flips by class index, [C].
        q_values: McNemar p-value of a class, adjusted for listing all classes.
    """
    if not records:
        return nothing("No class has a sample that both models answered", scheme)
    ordered = sorted(records, key=lambda one: (-one.positive_flip_share, one.class_index))
    names = [f"{one.class_name}" for one in ordered]
    ranks = list(range(1, len(ordered) + 1))
    few = len(ordered) <= MOST_NAMED
    made = figure(scheme, bargap=0.08 if few else 0, barmode="relative", hovermode="closest")
    for label, sign, field, meaning in (
        ("only the teacher right", 1, "positive_flips", "positive"),
        ("only the student right", -1, "negative_flips", "negative"),
    ):
        made.add_trace(
            go.Bar(
                x=ranks,
                y=[sign * 100 * getattr(one, field) / one.n_samples for one in ordered],
                name=label,
                marker={"color": colour(meaning, scheme), "line": {"width": 0}},
                customdata=[
                    [
                        name,
                        getattr(one, field),
                        one.n_samples,
                        one.class_index,
                        "" if q_values is None else f"<br>q = {q_values[one.class_index]:.2g}",
                    ]
                    for name, one in zip(names, ordered, strict=True)
                ],
                hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]} of %{customdata[2]} samples"
                "%{customdata[4]}<extra></extra>",
            )
        )
    _mark_top(made, positive, len(ordered), scheme)
    made.update_yaxes(title_text="Share of the class's samples (%)")
    if few:
        made.update_xaxes(
            tickvals=ranks, ticktext=[_cut(name) for name in names], tickangle=-45 if sum(map(len, names)) > 90 else 0
        )
    made.update_xaxes(title_text="Classes, most positive flips first", range=[0.4, len(ordered) + 0.6])
    return made


def _mark_top(made: go.Figure, positive: ArrayLike, n_shown: int, scheme: Scheme) -> None:
    if not np.asarray(positive).sum():
        return
    marks: dict[int, list[int]] = {}
    for p in TOP_P:
        marks.setdefault(len(top_classes(positive, p)), []).append(p)
    for level, (count, shares) in enumerate(marks.items()):
        if count >= n_shown:
            continue
        made.add_vline(x=count + 0.5, line={"color": SURFACES[scheme]["dimmed"], "width": 1, "dash": "dash"})
        made.add_annotation(
            x=count + 0.5,
            y=0.99 - 0.075 * level,
            yref="paper",
            yanchor="top",
            xanchor="left",
            xshift=4,
            showarrow=False,
            text=f"{' and '.join(f'{p} %' for p in shares)} of all in {count} class{'es' if count > 1 else ''}",
            font={"size": 12, "color": SURFACES[scheme]["dimmed"]},
            bgcolor=SURFACES[scheme]["card"],
        )


def similarities(embeddings: ArrayLike, positive: ArrayLike) -> dict[int, ClassSimilarity]:
    """Similarity of the classes that hold p % of the positive flips, for each p of the paper and all."""
    found = {}
    for p in (*TOP_P, 100):
        try:
            found[p] = top_class_similarity(embeddings, positive, p)
        except BadInput:
            continue
    return found


def similarity(found: Mapping[int, ClassSimilarity], scheme: Scheme) -> go.Figure:
    """How much more alike the top classes are than classes are on average."""
    shown = {p: one for p, one in found.items() if one.relative is not None}
    if not shown:
        return nothing("Fewer than two of the top classes have a vector", scheme)
    made = figure(scheme)
    made.add_trace(
        go.Bar(
            x=[f"{p} %" for p in shown],
            y=[100 * (one.relative or 0.0) for one in shown.values()],
            marker={"color": colour("positive", scheme)},
            customdata=[[one.n_classes, one.n_covered] for one in shown.values()],
            hovertemplate="%{customdata[0]} classes, %{customdata[1]} with a vector<br>%{y:+.1f} %<extra></extra>",
            width=0.55,
        )
    )
    made.update_xaxes(title_text="Classes that hold so much of the positive flips")
    made.update_yaxes(title_text="Similarity beyond the average of all classes (%)")
    return made


def _cut(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
