"""Critical neurons (Dong et al., arXiv:2506.23041, C.2, Fig. 7-15): how much the features change when one is off."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from backend.domain.remem_results import BlockCriticality, CriticalityResult
from dashboard.figures.frame import figure, nothing
from dashboard.theme import Scheme, colour, series


def by_block(results: Mapping[str, CriticalityResult], scheme: Scheme) -> go.Figure:
    """The largest criticality of each block (line) and the mean over its examined neurons (dotted), by model."""
    if not results:
        return nothing("No model has been measured yet", scheme)
    made = figure(scheme, hovermode="x unified")
    for i, (name, result) in enumerate(results.items()):
        tone = series(scheme)[i % len(series(scheme))]
        for label, field, dash in (("largest", "maximum", "solid"), ("mean", "mean", "dot")):
            made.add_trace(
                go.Scatter(
                    x=[block.block + 1 for block in result.blocks],
                    y=[getattr(block, field) for block in result.blocks],
                    mode="lines+markers",
                    name=f"{name}, {label}" if len(results) > 1 else label,
                    line={"color": tone, "dash": dash, "width": 2},
                    marker={"size": 7},
                    customdata=[[block.n_examined, block.n_neurons] for block in result.blocks],
                    hovertemplate="%{y:.4f}; %{customdata[0]} of %{customdata[1]} neurons examined",
                )
            )
    most = max(len(result.blocks) for result in results.values())
    made.update_xaxes(title_text="Block, from the input", dtick=1 if most <= 24 else None)
    made.update_yaxes(title_text="Criticality, ‖F(h←0) − F‖ / ‖F‖", rangemode="tozero")
    return made


def ranking(block: BlockCriticality, scheme: Scheme) -> go.Figure:
    """The critical neurons of one block, the most critical first, and their influence on the images they move most."""
    if not block.neurons:
        return nothing("No neuron of this block was kept", scheme)
    made = figure(scheme, hovermode="closest")
    names = [str(neuron.neuron) for neuron in block.neurons]
    made.add_trace(
        go.Bar(
            x=names,
            y=[neuron.criticality for neuron in block.neurons],
            name="criticality",
            marker={"color": colour("delta", scheme)},
            hovertemplate="neuron %{x}: %{y:.4f}<extra></extra>",
        )
    )
    others = [(name, image.influence) for name, n in zip(names, block.neurons, strict=True) for image in n.images[1:]]
    made.add_trace(
        go.Scatter(
            x=[name for name, _ in others],
            y=[influence for _, influence in others],
            mode="markers",
            name="on the next images",
            marker={"color": colour("loss", scheme), "size": 9, "symbol": "line-ew-open", "line": {"width": 2}},
            hovertemplate="neuron %{x}: %{y:.4f} on one image<extra></extra>",
        )
    )
    made.update_xaxes(title_text="Neuron, the most critical first", type="category")
    made.update_yaxes(title_text="Criticality, ‖F(h←0) − F‖ / ‖F‖", rangemode="tozero")
    return made
