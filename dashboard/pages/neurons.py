"""Neurons: which of a model's MLP neurons its features hang on, what they look for, and for which images it matters
(Dong et al., arXiv:2506.23041, C.2, Fig. 7-15)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, html, no_update

from backend.domain.remem_results import BlockCriticality, CriticalityResult, CriticalNeuron
from dashboard.components import cards, controls, states
from dashboard.figures import criticality
from dashboard.reads import Measured, Reads
from dashboard.theme import Scheme, as_scheme
from dashboard.view import View, link, parse_query

PATH = "/neurons"
HREF = "/neurons"
TITLE = "Neurons"
NAV = ("Neurons", "neurons")
DRAWN = True


def layout(reads: Reads, view: View) -> Any:
    head = cards.page_title(
        "Neurons",
        "Switch one neuron off: how far do the features move, what does it look for, and for which images?",
    )
    options = _options(reads)
    if not options:
        return [
            head,
            states.empty(
                "No model has been measured yet",
                "The measurement switches MLP neurons of a transformer off one by one, keeps the most critical of each "
                "block with the images they matter for, and draws what excites them.",
                ["zoograft analyse criticality --model VIT --dataset DATA"],
                [("To the zoo", "/"), ("Jobs", "/jobs")],
            ),
        ]
    return [
        head,
        controls.filters(
            controls.select("of", "Model", view, options, default=options[0][0], w=420, searchable=True),
            html.Div(id="neurons-block"),
        ),
        html.Div(states.skeleton(), id="neurons-body"),
    ]


def register(app: Dash, reads: Reads, actions: Any) -> None:
    @app.callback(
        Output("neurons-body", "children"),
        Output("neurons-block", "children"),
        Input("url", "search"),
        Input("scheme", "data"),
        State("url", "pathname"),
    )
    def draw(search: str, scheme: str, path: str) -> Any:
        if path.rstrip("/") != PATH:
            return no_update, no_update
        view = View(PATH, {}, parse_query(search))
        entry = _chosen(reads, view)
        if entry is None:
            return states.empty("No model fits", "That was not measured, or its job is gone."), None
        blocks = {str(block.block): block for block in entry.result.blocks}
        if not blocks:
            return states.empty("No block was looked at", "Ask for blocks that the model has."), None
        first = max(blocks, key=lambda name: blocks[name].maximum)
        block = blocks[view.one_of("block", tuple(blocks), first)]
        choice = controls.select(
            "block",
            "Block",
            view,
            [(name, f"{int(name) + 1} (largest {one.maximum:.3f})") for name, one in blocks.items()],
            default=first,
            w=220,
        )
        return _body(reads, entry, block, as_scheme(scheme)), choice


def _key(entry: Measured[CriticalityResult]) -> str:
    return f"{entry.job_id}/{entry.model}"


def _options(reads: Reads) -> list[tuple[str, str]]:
    return [(_key(one), f"{one.model} on {one.dataset} ({one.split})") for one in reads.measured("criticality")]


def _chosen(reads: Reads, view: View) -> Measured[CriticalityResult] | None:
    found = {_key(one): one for one in reads.measured("criticality")}
    wanted = view.text("of") or next(iter(found), "")
    return found.get(wanted)


def _body(reads: Reads, entry: Measured[CriticalityResult], block: BlockCriticality, scheme: Scheme) -> list[Any]:
    ids = [entry.sample_ids.get(str(image.index), "") for neuron in block.neurons for image in neuron.images]
    thumbnails = reads.thumbnail_links(entry.dataset, entry.split, sorted(set(ids) - {""}))
    prefix = f"pictures/{entry.model}/block-{block.block}-neuron-"
    pictures = {name: f"/pictures/{one.id}.png" for name, one in reads.pictures(entry.job_id, prefix).items()}
    return [
        html.Div(
            [
                cards.figure_card(
                    "neurons-blocks",
                    "Criticality by block",
                    f"Over the neurons examined; {entry.result.n_images:,} images.",
                    table="neurons",
                    height=340,
                    figure=criticality.by_block({entry.model: entry.result}, scheme),
                ),
                cards.figure_card(
                    "neurons-ranking",
                    f"Critical neurons of block {block.block + 1}",
                    "A bar: the image that moves most. Dashes: the next ones.",
                    table="neurons",
                    height=340,
                    figure=criticality.ranking(block, scheme),
                ),
            ],
            className="two-columns",
        ),
        cards.section(
            f"Block {block.block + 1} of {entry.model}",
            html.Div(
                [
                    _neuron(neuron, entry, pictures.get(f"{prefix}{neuron.neuron}.png"), thumbnails)
                    for neuron in block.neurons
                ],
                className="gallery",
            ),
            text="What excites each neuron most, drawn by gradient ascent where that was asked for, and the images "
            "whose features move most when it is off.",
            right=dmc.Group(
                [
                    dmc.Anchor("The model", href=link("zoo", entry.model), size="sm"),
                    dmc.Anchor("The job", href=link("jobs", str(entry.job_id)), size="sm"),
                    cards.downloads(None, "neurons", "the neurons and their images"),
                ],
                gap="sm",
            ),
        ),
    ]


def _neuron(
    neuron: CriticalNeuron, entry: Measured[CriticalityResult], picture: str | None, thumbnails: dict[str, str]
) -> html.Article:
    drawn = (
        html.Img(src=picture, alt=f"What excites neuron {neuron.neuron} most", className="tiny")
        if picture
        else html.Div("not drawn", className="no-picture")
    )
    images = []
    for image in neuron.images:
        sample = entry.sample_ids.get(str(image.index), f"image {image.index}")
        source = thumbnails.get(sample)
        images.append(
            html.Figure(
                [
                    html.Img(src=source, alt=f"Sample {sample}", title=sample, className="tiny")
                    if source
                    else html.Div(sample, className="no-picture", title=sample),
                    html.Figcaption(f"{image.influence:.3f}", title=f"Influence on {sample}"),
                ]
            )
        )
    return html.Article(
        [
            drawn,
            html.Div(
                [html.H3(f"Neuron {neuron.neuron}"), html.Div(f"criticality {neuron.criticality:.4f}", className="dim")]
            ),
            html.Div(images, className="influenced"),
        ],
        className="sample",
    )


def _csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    entry = _chosen(reads, view)
    if entry is None:
        return
    for block in entry.result.blocks:
        for neuron in block.neurons:
            for rank, image in enumerate(neuron.images, start=1):
                yield {
                    "model": entry.model,
                    "block": block.block,
                    "neuron": neuron.neuron,
                    "criticality": neuron.criticality,
                    "rank": rank,
                    "sample_id": entry.sample_ids.get(str(image.index)),
                    "influence": image.influence,
                }


TABLES = {"neurons": _csv}
