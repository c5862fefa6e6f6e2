"""The form that starts a transfer: fields from the method's JSON schema, what it costs, and the equal commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, Dash, Input, Output, State, ctx, html, no_update
from flask import request

from backend.domain.catalog import Model
from backend.domain.datasets import Dataset
from backend.domain.errors import BadInput, ZoograftError
from backend.domain.methods import METHODS
from backend.domain.pairs import PairDetail
from dashboard import formats
from dashboard.actions import Actions
from dashboard.components import cards
from dashboard.components import transfer_request as ask
from dashboard.components.transfer_request import SEVERAL
from dashboard.reads import Reads
from dashboard.view import link

FIRST = (
    "epochs",
    "lr",
    "batch_size",
    "temperature",
    "kd_weight",
    "partition",
    "smoothing",
    "k",
    "tau",
    "augment",
    "seed",
)
SHOWN = ("kl_dp", "kl", "xe_kl", "mcl", "topk_kl", "soft_ce", "cd", "crd")
HIDDEN, VISIBLE = {"display": "none"}, {"marginTop": "12px"}
MOST_LISTED = 60


def card(reads: Reads, pair: PairDetail, models: Mapping[str, Model]) -> dmc.Paper:
    """The form, or why this pair cannot be transferred."""
    dataset = reads.dataset(pair.dataset)
    reason = why_not(pair, models, dataset)
    if reason:
        return cards.section("Start a transfer", dmc.Text(reason, size="sm"))
    others = reads.possible_teachers(pair.dataset, pair.split, dataset.n_classes)
    options = [(pair.teacher, pair.teacher_accuracy), *(one for one in others if one[0] != pair.teacher)]
    splits = sorted(dataset.splits)
    train = dataset.training_split() if "train" in splits or len(splits) == 1 else splits[0]
    return cards.section(
        "Start a transfer",
        dmc.Stack(
            [
                dmc.MultiSelect(
                    id="tf-teachers",
                    label="Teachers",
                    description="One after another, at the same time, or by averaging their students: several add "
                    "settings below.",
                    data=[
                        {"value": name, "label": f"{name} ({formats.percent(accuracy, 1)})"}
                        for name, accuracy in options
                        if name != pair.student
                    ],
                    value=[pair.teacher],
                    searchable=True,
                    hidePickedOptions=True,
                    limit=MOST_LISTED,
                    comboboxProps={"withinPortal": True},
                ),
                html.Div(
                    [
                        dmc.Select(
                            id="tf-method",
                            label="Method",
                            data=[{"value": one, "label": one} for one in SHOWN],
                            value="kl_dp",
                            allowDeselect=False,
                        ),
                        dmc.Select(
                            id="tf-train", label="Learn from the split", data=splits, value=train, allowDeselect=False
                        ),
                        dmc.NumberInput(
                            id="tf-limit", label="At most so many samples", min=1, placeholder="all", allowDecimal=False
                        ),
                        dmc.Select(
                            id="tf-device",
                            label="Device",
                            data=["auto", "cpu", "cuda"],
                            value="auto",
                            allowDeselect=False,
                        ),
                    ],
                    className="form-grid",
                ),
                dmc.Text(id="tf-summary", size="sm", c="dimmed"),
                html.Div(id="tf-fields"),
                dmc.Checkbox(
                    id="tf-control",
                    label="Also train the same student without a teacher, to compare (doubles the cost)",
                    checked=True,
                ),
                html.Div(id="tf-preview"),
                html.Div(id="tf-error", className="error-text", role="alert"),
                dmc.Group([dmc.Button("Start the transfer", id="tf-start")]),
            ],
            gap="sm",
        ),
        text=f"{pair.student} learns; the zoo keeps it as it is and gets a new model.",
    )


def why_not(pair: PairDetail, models: Mapping[str, Model], dataset: Dataset) -> str | None:
    """What stands against training this pair, in a sentence that says what to do."""
    for name in (pair.teacher, pair.student):
        model = models.get(name)
        if model is None or not model.runnable:
            return (
                f"Of {name} only predictions are known, so it cannot be trained or asked. Add it: zoograft models add."
            )
        if dataset.source != "external" and model.num_classes not in (None, dataset.n_classes):
            return (
                f"{name} has {model.num_classes} classes, {dataset.name} has {dataset.n_classes}. Give it a head "
                f"first: zoograft finetune --model {name} --dataset {dataset.name}"
            )
    if dataset.source == "external":
        return f"Of {dataset.name} only labels are known. Add its images: zoograft datasets add."
    return None


def fields(method: str) -> list[Any]:
    """One input for each parameter of a method, the usual ones first."""
    schema = METHODS[method].model_json_schema()["properties"]
    names = [name for name in schema if name != "method" and name not in SEVERAL]
    first = [name for name in FIRST if name in names]
    rest = [name for name in names if name not in first]
    several = [_field(name, schema[name]) for name in SEVERAL if name in schema]
    return [
        html.Div([_field(name, schema[name]) for name in first], className="form-grid"),
        html.Div(html.Div(several, className="form-grid"), id="tf-several", style=HIDDEN),
        dmc.Accordion(
            dmc.AccordionItem(
                [
                    dmc.AccordionControl(f"{len(rest)} more settings"),
                    dmc.AccordionPanel(html.Div([_field(name, schema[name]) for name in rest], className="form-grid")),
                ],
                value="more",
            ),
            variant="contained",
            mt="sm",
        ),
    ]


def _field(name: str, schema: Mapping[str, Any]) -> Any:
    kinds = [schema, *schema.get("anyOf", ())]
    types = {one.get("type") for one in kinds}
    id = {"type": "tf", "field": name}
    label, text, default = name.replace("_", " "), schema.get("description"), schema.get("default")
    choices = next((one["enum"] for one in kinds if "enum" in one), None)
    if choices:
        return dmc.Select(id=id, label=label, description=text, data=choices, value=default, allowDeselect=False)
    if "boolean" in types:
        return dmc.Select(
            id=id,
            label=label,
            description=text,
            data=["false", "true"],
            value=str(default).lower(),
            allowDeselect=False,
        )
    whole = "integer" in types
    bounds: dict[str, Any] = {}
    for one in kinds:
        for key, bound in (("minimum", "min"), ("maximum", "max"), ("exclusiveMinimum", "min")):
            if key in one:
                bounds[bound] = one[key]
    return dmc.NumberInput(
        id=id,
        label=label,
        description=text,
        value="" if default is None else default,
        placeholder="none" if default is None else "",
        allowDecimal=not whole,
        step=1 if whole else 0.01,
        decimalScale=0 if whole else 10,
        hideControls=not whole,
        **bounds,
    )


def register(
    app: Dash, reads: Reads, actions: Actions, pair_at: Callable[[str | None, str | None], PairDetail | None]
) -> None:
    """The form's callbacks.

    Args:
        pair_at: The pair that the page at a path and query is about; None on other pages.
    """

    @app.callback(Output("tf-fields", "children"), Output("tf-summary", "children"), Input("tf-method", "value"))
    def show_fields(method: str) -> Any:
        return fields(method), " ".join((METHODS[method].__doc__ or "").split())

    app.clientside_callback(
        f"""function (teachers, _fields) {{
            return (teachers || []).length > 1 ? {json.dumps(VISIBLE)} : {json.dumps(HIDDEN)};
        }}""",
        Output("tf-several", "style"),
        Input("tf-teachers", "value"),
        Input("tf-fields", "children"),
    )

    def read(
        teachers: Sequence[str] | None,
        method: str,
        train: str,
        limit: Any,
        device: str,
        control: bool,
        values: Any,
        ids: Any,
        path: str,
        search: str,
    ) -> dict[str, Any] | None:
        pair = pair_at(path, search)
        if pair is None or not values:
            return None
        given = ask.changed(method, [one["field"] for one in ids], values)
        return ask.specification(pair, teachers or (), method, given, train, limit, device, control)

    names = (("teachers", "value"), ("method", "value"), ("train", "value"), ("limit", "value"), ("device", "value"))
    simple = (*names, ("control", "checked"))
    fields_given = ({"type": "tf", "field": ALL}, "value")
    behind = (State({"type": "tf", "field": ALL}, "id"), State("url", "pathname"), State("url", "search"))

    @app.callback(
        Output("tf-preview", "children"),
        Output("tf-start", "disabled"),
        Output("tf-error", "children"),
        *(Input(f"tf-{name}", value) for name, value in simple),
        Input(*fields_given),
        *behind,
    )
    def preview(*form: Any) -> Any:
        try:
            spec = read(*form)
        except BadInput as error:
            return no_update, True, error.message
        if spec is None:
            return no_update, no_update, no_update
        n_train = reads.dataset(spec["dataset"]).splits[spec["train_split"]].n_samples
        earlier = reads.transfers(spec["teachers"][0], spec["student"])
        base = request.host_url.rstrip("/")
        commands = (
            ("Command line", ask.as_command(spec)),
            ("REST", ask.as_curl(spec, base, token=reads.settings.token is not None)),
        )
        return (
            [
                dmc.Text(ask.cost(spec, n_train, earlier), size="sm", mb="xs", id="tf-cost"),
                *(
                    html.Div([dmc.Text(label, size="xs", c="dimmed"), dmc.Code(text, block=True, className="command")])
                    for label, text in commands
                ),
            ],
            not actions.may("submit"),
            "" if actions.may("submit") else "Your token may read; to start jobs it needs the scope submit.",
        )

    @app.callback(
        Output("url", "href", allow_duplicate=True),
        Output("tf-error", "children", allow_duplicate=True),
        Input("tf-start", "n_clicks"),
        *(State(f"tf-{name}", value) for name, value in simple),
        State(*fields_given),
        *behind,
        prevent_initial_call=True,
        running=[(Output("tf-start", "loading"), True, False)],
    )
    def start(clicks: int | None, *form: Any) -> Any:
        if not clicks or ctx.triggered_id != "tf-start":
            return no_update, no_update
        try:
            spec = read(*form)
            if spec is None:
                return no_update, no_update
            job = actions.submit("transfer", spec)
        except ZoograftError as error:
            return no_update, error.message
        return link("jobs", str(job.id)), ""
