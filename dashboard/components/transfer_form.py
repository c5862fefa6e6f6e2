"""The form that starts a transfer: fields from the method's JSON schema, what it costs, and the equal commands."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, Dash, Input, Output, State, ctx, html, no_update
from flask import request

from backend.domain.catalog import Model
from backend.domain.datasets import Dataset
from backend.domain.errors import BadInput, ZoograftError
from backend.domain.methods import METHODS, parse_method
from backend.domain.pairs import PairDetail
from dashboard import formats
from dashboard.actions import Actions
from dashboard.components import cards
from dashboard.reads import Reads
from dashboard.view import link, match, parse_query

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
SINGLE = ("multi", "teacher_order")
LARGE = 100_000


def card(reads: Reads, pair: PairDetail, models: Mapping[str, Model]) -> dmc.Paper:
    """The form, or why this pair cannot be transferred."""
    dataset = reads.dataset(pair.dataset)
    reason = why_not(pair, models, dataset)
    if reason:
        return cards.section("Start a transfer", dmc.Text(reason, size="sm"))
    splits = sorted(dataset.splits)
    train = dataset.training_split() if "train" in splits or len(splits) == 1 else splits[0]
    return cards.section(
        "Start a transfer",
        dmc.Stack(
            [
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
        text=f"{pair.student} learns from {pair.teacher}; the zoo keeps {pair.student} as it is and gets a new model.",
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
    names = [name for name in schema if name != "method" and name not in SINGLE]
    first = [name for name in FIRST if name in names]
    rest = [name for name in names if name not in first]
    return [
        html.Div([_field(name, schema[name]) for name in first], className="form-grid"),
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


def changed(method: str, names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """The parameters that differ from the method's defaults, checked.

    Raises:
        BadInput: a value out of range.
    """
    known = METHODS[method].model_fields
    given: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        if name not in known:
            continue
        default = known[name].default
        if isinstance(default, bool):
            value = value == "true"
        elif value in ("", None):
            value = None
        elif isinstance(default, float) and isinstance(value, int):
            value = float(value)
        if value != default:
            given[name] = value
    parse_method(method, given)
    return given


def specification(
    pair: PairDetail, method: str, given: Mapping[str, Any], train: str, limit: Any, device: str, control: bool
) -> dict[str, Any]:
    """The spec of the transfer job, without what is the default anyway."""
    spec: dict[str, Any] = {
        "teachers": [pair.teacher],
        "student": pair.student,
        "dataset": pair.dataset,
        "method": {"method": method, **given},
        "train_split": train,
        "split": pair.split,
    }
    if limit not in (None, ""):
        spec["subset"] = {"limit": limit}
    if device != "auto":
        spec["device"] = device
    if not control:
        spec["control"] = False
    return spec


def as_command(spec: Mapping[str, Any]) -> str:
    """The same as a `zoograft` command."""
    method = dict(spec["method"])
    words = ["zoograft", "transfer"]
    words += [word for teacher in spec["teachers"] for word in ("--teacher", teacher)]
    words += ["--student", spec["student"], "--dataset", spec["dataset"], "--method", method.pop("method")]
    words += ["--train-split", spec["train_split"], "--split", spec["split"]]
    if "subset" in spec:
        words += ["--limit", str(spec["subset"]["limit"])]
    for name, value in method.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    if "device" in spec:
        words += ["--device", spec["device"]]
    if not spec.get("control", True):
        words.append("--no-control")
    return " ".join(shlex.quote(word) for word in words)


def as_curl(spec: Mapping[str, Any], base: str, *, token: bool) -> str:
    """The same as a request."""
    body = json.dumps({"kind": "transfer", "spec": dict(spec)})
    secret = ' -H "Authorization: Bearer $ZOOGRAFT_TOKEN"' if token else ""
    return f"curl -X POST {base}/api/v1/jobs{secret} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def n_steps(spec: Mapping[str, Any], n_train: int) -> tuple[int, int]:
    """Optimizer steps of one training, and samples learnt from."""
    params = parse_method(spec["method"]["method"], {k: v for k, v in spec["method"].items() if k != "method"})
    limit = (spec.get("subset") or {}).get("limit")
    samples = min(n_train, limit) if limit else n_train if n_train < LARGE else math.ceil(n_train * 0.1)
    return params.steps or params.epochs * max(1, math.ceil(samples / params.batch_size)), samples


def cost(reads: Reads, spec: Mapping[str, Any], n_train: int) -> str:
    """How much work this is, and how long it takes by the transfers of this student so far."""
    steps, samples = n_steps(spec, n_train)
    trainings = 2 if spec.get("control", True) else 1
    text = f"{samples:,} samples; {steps:,} steps{' for each of 2 trainings' if trainings == 2 else ''}"
    speeds = [
        job.progress.total / (job.finished_at - job.started_at).total_seconds()
        for job in reads.transfers(spec["teachers"][0], spec["student"])
        if job.result is not None and job.started_at and job.finished_at and job.finished_at > job.started_at
    ]
    if not speeds:
        return f"{text}. How long a step takes is not known yet for this pair; the job says so once it runs."
    seconds = steps * trainings / sorted(speeds)[len(speeds) // 2]
    return f"{text}. About {formats.duration(seconds)}, by {len(speeds)} earlier transfer(s) of this pair."


def register(app: Dash, reads: Reads, actions: Actions, path: str) -> None:
    @app.callback(Output("tf-fields", "children"), Output("tf-summary", "children"), Input("tf-method", "value"))
    def show_fields(method: str) -> Any:
        return fields(method), " ".join((METHODS[method].__doc__ or "").split())

    chosen = (
        State("tf-method", "value"),
        State("tf-train", "value"),
        State("tf-limit", "value"),
        State("tf-device", "value"),
        State("tf-control", "checked"),
        State({"type": "tf", "field": ALL}, "value"),
        State({"type": "tf", "field": ALL}, "id"),
        State("url", "pathname"),
        State("url", "search"),
    )

    def read(method: str, train: str, limit: Any, device: str, control: bool, values: Any, ids: Any, at: str, q: str):  # type: ignore[no-untyped-def]
        params = match(path, at)
        if params is None or not values:
            return None
        dataset, _, split = parse_query(q).get("on", "").partition("/")
        pair = reads.pair(params["teacher"], params["student"], dataset, split)
        given = changed(method, [one["field"] for one in ids], values)
        return specification(pair, method, given, train, limit, device, control)

    @app.callback(
        Output("tf-preview", "children"),
        Output("tf-start", "disabled"),
        Output("tf-error", "children"),
        Input("tf-method", "value"),
        Input("tf-train", "value"),
        Input("tf-limit", "value"),
        Input("tf-device", "value"),
        Input("tf-control", "checked"),
        Input({"type": "tf", "field": ALL}, "value"),
        *chosen[6:],
    )
    def preview(
        method: str, train: str, limit: Any, device: str, control: bool, values: Any, ids: Any, at: str, q: str
    ) -> Any:
        try:
            spec = read(method, train, limit, device, control, values, ids, at, q)
        except BadInput as error:
            return no_update, True, error.message
        if spec is None:
            return no_update, no_update, no_update
        n_train = reads.dataset(spec["dataset"]).splits[train].n_samples
        base = request.host_url.rstrip("/")
        commands = (
            ("Command line", as_command(spec)),
            ("REST", as_curl(spec, base, token=reads.settings.token is not None)),
        )
        return (
            [
                dmc.Text(cost(reads, spec, n_train), size="sm", mb="xs", id="tf-cost"),
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
        *chosen,
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
