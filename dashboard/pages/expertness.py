"""Expertness: how far the MLP blocks of a model have split into experts (Dong et al., Def. 5.3, Fig. 5), several models
side by side, with sparsity and the sizes of the experts."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from dash import Dash, Input, Output, State, html, no_update

from backend.domain.errors import BadInput, NotFound
from backend.domain.remem_results import ExpertnessResult
from dashboard import formats
from dashboard.components import cards, controls, states
from dashboard.figures import expertness
from dashboard.figures.information_plane import LABELS
from dashboard.reads import Reads, as_id
from dashboard.theme import Scheme, as_scheme
from dashboard.view import View, parse_query

PATH = "/expertness"
HREF = "/expertness"
TITLE = "Expertness"
NAV = ("Expertness", "expertness")
DRAWN = True
MOST_LINES = 12


def layout(reads: Reads, view: View) -> Any:
    head = cards.page_title(
        "Expertness",
        "Blocks whose neurons have split among the classes pass less information on: expertness, block by block.",
    )
    options = _options(reads)
    if not options:
        return [
            head,
            states.empty(
                "No model has been measured yet",
                "Expertness looks at every MLP block of a transformer over a few hundred images; it trains nothing.",
                [
                    "zoograft analyse expertness --model VIT --model OTHER --dataset DATA --limit 2000",
                    "zoograft remem --model VIT --dataset DATA --set settings=all --set expertness=true",
                ],
                [("To the zoo", "/"), ("Jobs", "/jobs")],
            ),
        ]
    return [
        head,
        controls.filters(
            controls.select("of", "Measured on", view, options, default=options[0][0], w=420, searchable=True),
            controls.text("models", "Models", view, placeholder="vit*, deit*", w=220),
            html.Div(id="expertness-model"),
        ),
        html.Div(states.skeleton(), id="expertness-body"),
    ]


def register(app: Dash, reads: Reads, actions: Any) -> None:
    @app.callback(
        Output("expertness-body", "children"),
        Output("expertness-model", "children"),
        Input("url", "search"),
        Input("scheme", "data"),
        State("url", "pathname"),
    )
    def draw(search: str, scheme: str, path: str) -> Any:
        if path.rstrip("/") != PATH:
            return no_update, no_update
        view = View(PATH, {}, parse_query(search))
        try:
            found = _results(reads, view)
        except (NotFound, BadInput) as error:
            return states.of_error(error), None
        names = list(found)
        if not names:
            return states.empty("No model fits", "Nothing that was measured here has such a name."), None
        model = view.one_of("model", tuple(names), names[0])
        choice = controls.select(
            "model", "Sizes of the experts of", view, [(one, one) for one in names], default=names[0], w=260
        )
        return _body(found, model, as_scheme(scheme)), choice


def _options(reads: Reads) -> list[tuple[str, str]]:
    boards = list(dict.fromkeys((one.dataset, one.split) for one in reads.measured("expertness")))
    runs = [
        (str(run.job_id), f"ReMem: {run.subject}, {formats.moment(run.finished_at)[:16]}")
        for run in reads.remem_runs()
        if run.expertness
    ]
    return [*((f"{dataset}/{split}", f"{dataset} ({split})") for dataset, split in boards), *runs]


def _results(reads: Reads, view: View) -> dict[str, ExpertnessResult]:
    """The chosen results by the name of their line: models of a split, or what a ReMem run prepared."""
    options = [one for one, _ in _options(reads)]
    wanted = view.text("of") or (options[0] if options else "")
    patterns = [part.strip() for part in view.text("models").split(",") if part.strip()]
    if "/" in wanted:
        dataset, split = controls.split_board(wanted)
        found = {one.model: one.result for one in reads.measured("expertness", dataset=dataset, split=split)}
    elif wanted:
        found = {}
        for teacher in reads.remem(as_id(wanted, "ReMem run"))[0].teachers:
            snapshot = teacher.best_snapshot
            if snapshot.expertness is not None:
                tuning = teacher.tuning
                name = f"{LABELS[teacher.setting]}, lr {tuning.lr:g}, {snapshot.stop_point} steps, seed {tuning.seed}"
                found.setdefault(name, snapshot.expertness)
    else:
        return {}
    kept = {name: one for name, one in found.items() if not patterns or any(_fits(name, p) for p in patterns)}
    return dict(list(kept.items())[:MOST_LINES])


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or (not set(pattern) & set("*?[") and pattern.lower() in name.lower())


def _body(found: dict[str, ExpertnessResult], model: str, scheme: Scheme) -> list[Any]:
    chosen = found[model]
    rows = [
        [
            block.name,
            formats.percent(block.expertness),
            formats.percent(block.sparsity),
            f"{block.nonempty_clusters} of {block.n_clusters}",
            f"{block.complete_clusters}",
            f"{block.dead_neurons:,} of {block.n_neurons:,}",
            f"{block.bound_bits:,.0f}",
        ]
        for block in chosen.blocks
    ]
    return [
        cards.figure_card(
            "expertness-blocks",
            "Expertness by block",
            "Share of the activations' energy inside co-clusters of neurons and inputs; 100 %: every neuron serves one "
            "group of inputs. A gap: fewer clusters than classes.",
            table="expertness",
            height=430,
            figure=expertness.by_block(found, "expertness", scheme),
        ),
        html.Div(
            [
                cards.figure_card(
                    "expertness-sparsity",
                    "Sparsity by block",
                    "Experts that are silent for other inputs make a block sparse.",
                    table="expertness",
                    height=340,
                    figure=expertness.by_block(found, "sparsity", scheme),
                ),
                cards.figure_card(
                    "expertness-bound",
                    "Bound by block",
                    "What a block of such experts can pass on at most: log₂ M + Σ |S| b bits.",
                    table="expertness",
                    height=340,
                    figure=expertness.by_block(found, "bound_bits", scheme),
                ),
            ],
            className="two-columns",
        ),
        cards.figure_card(
            "expertness-sizes",
            f"Sizes of the experts of {model}",
            f"Neurons and inputs in each of the {chosen.n_clusters} co-clusters; {chosen.n_images:,} images.",
            table="expertness-sizes",
            height=360,
            figure=expertness.cluster_sizes(chosen, scheme),
        ),
        cards.section(
            f"Blocks of {model}",
            cards.table(
                (
                    "Block",
                    "Expertness",
                    "Sparsity",
                    "Clusters not empty",
                    "With neurons and inputs",
                    "Dead neurons",
                    "Bound (bits)",
                ),
                rows,
                label=f"Blocks of {model}",
                numeric=(1, 2, 3, 4, 5, 6),
            ),
            right=cards.downloads(None, "expertness", "the blocks of these models"),
        ),
    ]


def _csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    for name, result in _results(reads, view).items():
        for block in result.blocks:
            told = block.model_dump(exclude={"cluster_sizes", "name"})
            yield {"model": name, "block": told.pop("block"), "name": block.name, **told}


def _sizes_csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    for name, result in _results(reads, view).items():
        for block in result.blocks:
            for number, size in enumerate(block.cluster_sizes):
                yield {
                    "model": name,
                    "block": block.block,
                    "cluster": number,
                    "neurons": size.neurons,
                    "inputs": size.inputs,
                }


TABLES = {"expertness": _csv, "expertness-sizes": _sizes_csv}
