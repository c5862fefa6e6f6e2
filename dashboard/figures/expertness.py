"""Expertness of MLP blocks, bottom first (Dong et al., arXiv:2506.23041, Def. 5.3, Fig. 5), and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from backend.domain.remem_results import ExpertnessResult
from dashboard.figures.frame import figure, nothing
from dashboard.theme import Scheme, colour, series

MEASURES = {
    "expertness": ("Energy inside co-clusters (%)", 100.0),
    "sparsity": ("Not positive (%)", 100.0),
    "bound_bits": ("Bound (bits)", 1.0),
}
"""Field of a block → (title, scale from what is stored to what is drawn)."""
MOST_NAMED = 6


def by_block(results: Mapping[str, ExpertnessResult], measure: str, scheme: Scheme) -> go.Figure:
    """A measure over the blocks, one line a model; a gap where a block's is not defined.

    The names of many models would leave no room for the lines, so they stand at the figure of expertness alone, whose
    colours are the same.
    """
    if not results:
        return nothing("No model has been measured yet", scheme)
    title, scale = MEASURES[measure]
    named = measure == "expertness" or len(results) <= MOST_NAMED
    made = figure(scheme, hovermode="x unified", showlegend=named)
    for i, (name, result) in enumerate(results.items()):
        tone = series(scheme)[i % len(series(scheme))]
        values = [getattr(block, measure) for block in result.blocks]
        made.add_trace(
            go.Scatter(
                x=[block.block + 1 for block in result.blocks],
                y=[None if value is None else scale * value for value in values],
                mode="lines+markers",
                name=name,
                line={"color": tone, "width": 2, "dash": "solid" if i < len(series(scheme)) else "dash"},
                marker={"size": 7},
                customdata=[
                    [block.nonempty_clusters, block.n_clusters, block.dead_neurons, block.n_neurons]
                    for block in result.blocks
                ],
                hovertemplate="%{y:.4g}; %{customdata[0]} of %{customdata[1]} clusters not empty, "
                "%{customdata[2]} of %{customdata[3]} neurons dead",
            )
        )
    most = max(len(result.blocks) for result in results.values())
    made.update_xaxes(title_text="Block, from the input", dtick=1 if most <= 24 else None)
    made.update_yaxes(title_text=title, rangemode="tozero")
    return made


def cluster_sizes(result: ExpertnessResult, scheme: Scheme) -> go.Figure:
    """How many neurons and inputs each co-cluster of a block holds: one box a block."""
    sizes = [(block.block + 1, size) for block in result.blocks for size in block.cluster_sizes]
    if not sizes:
        return nothing("No block of this model has a cluster", scheme)
    made = figure(scheme, boxmode="group", hovermode="closest")
    for label, field, meaning in (("neurons", "neurons", "delta"), ("inputs", "inputs", "loss")):
        made.add_trace(
            go.Box(
                x=[block for block, _ in sizes],
                y=[getattr(size, field) for _, size in sizes],
                name=label,
                boxpoints="outliers",
                marker={"color": colour(meaning, scheme), "size": 4},
                line={"width": 1.3},
                hovertemplate="block %{x}: %{y} " + label + "<extra></extra>",
            )
        )
    made.update_xaxes(title_text="Block, from the input", dtick=1 if len(result.blocks) <= 24 else None)
    made.update_yaxes(title_text="In one co-cluster", rangemode="tozero")
    return made
