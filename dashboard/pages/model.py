"""Model: one zoo entry, where it comes from, how it scored, and what was made from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, html

from backend.domain.catalog import Model
from dashboard import formats
from dashboard.components import cards
from dashboard.reads import Reads
from dashboard.theme import FAMILY_LABELS
from dashboard.view import View, link

PATH = "/zoo/{name}"
TITLE = "Model"
NAV = None


def title(view: View) -> str:
    return view.params["name"]


def require(reads: Reads, view: View) -> None:
    reads.model(view.params["name"])


def layout(reads: Reads, view: View) -> Any:
    model = reads.model(view.params["name"])
    children = reads.students_of(model.name)
    return [
        cards.page_title(
            model.name,
            f"{FAMILY_LABELS[model.family.value]}, {formats.params(model.param_count)} parameters",
            dmc.Anchor("As teacher", href=link("pairs", teacher=model.name)),
            dmc.Anchor("As student", href=link("pairs", student=model.name)),
        ),
        _lineage(model),
        html.Div(
            [
                cards.section("What it is", cards.facts(_facts(model))),
                cards.section(
                    "Scores",
                    _scores(reads, model),
                    right=cards.downloads(None, "scores", "the scores of this model"),
                ),
            ],
            className="two-columns",
        ),
        cards.section(
            "Made from it",
            cards.table(
                ("Model", "By", "Teachers"),
                [
                    [dmc.Anchor(one.name, href=link("zoo", one.name), size="sm"), one.method, ", ".join(one.teachers)]
                    for one in children
                ],
                label="Models made from this one",
            ),
        )
        if children
        else None,
    ]


def register(app: Dash, reads: Reads, actions: Any) -> None:
    """Nothing on this page changes."""


def _lineage(model: Model) -> Any:
    origin = model.lineage
    if origin is None:
        return None
    teachers: list[Any] = []
    for name in origin.teachers:
        teachers += [dmc.Anchor(name, href=link("zoo", name)), " "]
    rows: list[tuple[str, Any]] = [
        ("Made from", dmc.Anchor(origin.student, href=link("zoo", origin.student))),
        ("By", origin.method or origin.kind),
        ("On", origin.dataset),
        ("In", dmc.Anchor(f"job {origin.job_id}", href=link("jobs", str(origin.job_id)))),
    ]
    if teachers:
        rows.insert(1, ("Taught by", html.Span(teachers)))
    return cards.section("Where it comes from", cards.facts(rows))


def _facts(model: Model) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("Architecture", model.architecture or "not known: only its predictions were imported"),
        ("Source", model.source),
        ("Family", FAMILY_LABELS[model.family.value]),
        ("Parameters", formats.whole(model.param_count)),
        ("Classes", formats.whole(model.num_classes)),
        ("Label space", model.label_space or formats.NONE),
    ]
    if model.kwargs:
        rows.append(("Arguments", ", ".join(f"{key}={value}" for key, value in model.kwargs.items())))
    if (p := model.preprocessing) is not None:
        rows += [
            ("Input", "×".join(map(str, p.input_size))),
            ("Mean, std", f"{', '.join(map(str, p.mean))}; {', '.join(map(str, p.std))}"),
            ("Resizing", f"{p.interpolation}, crop {p.crop_pct} ({p.crop_mode})"),
        ]
    rows.append(("Weights", _weights(model)))
    rows += [(f"Reported on {name}", formats.percent(value)) for name, value in model.reported_accuracy.items()]
    return rows


def _weights(model: Model) -> str:
    if model.source == "external":
        return formats.NONE
    kind = (
        "pretrained"
        if model.pretrained
        else "from a checkpoint"
        if model.checkpoint
        else f"random, seed {model.init_seed}"
    )
    return f"{kind}; SHA-256 {model.weights_hash[:16]}" if model.weights_hash else kind


def _scores(reads: Reads, model: Model) -> Any:
    found = reads.evaluations(model.name)
    if not found:
        command = f"zoograft scan --models {model.name} --dataset NAME"
        return [
            dmc.Text("Not scored anywhere yet.", size="sm", c="dimmed", mb="xs"),
            dmc.Code(command, block=True, className="command"),
        ]
    rows = [
        [
            dmc.Anchor(
                f"{one.dataset} ({one.split})",
                href=link("pairs", on=f"{one.dataset}/{one.split}", teacher=model.name),
                size="sm",
            ),
            formats.percent(one.accuracy)
            if one.state == "ready"
            else html.Span("failed", className="state state-failed"),
            formats.whole(one.n_samples),
            formats.whole(one.images_per_s),
            one.reason or formats.moment(one.created_at),
        ]
        for one in found
    ]
    head = ("Data set", "Accuracy", "Samples", "Images/s", "When (UTC), or why not")
    return cards.table(head, rows, label="Scores", numeric=(1, 2, 3))


def _table(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    for one in reads.evaluations(view.params["name"]):
        yield one.model_dump(mode="json", exclude={"provenance", "bad_samples"})


TABLES = {"scores": _table}
