"""Information plane: how much of an image a teacher still knows, against its error (Dong et al., Fig. 1-4, 6, Table 1).

Two kinds of planes: models of the zoo whose information may be compared, and the teachers that one ReMem run prepared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, html, no_update

from backend.domain.errors import BadInput, NotFound
from backend.domain.remem_protocol import sweep_table
from backend.domain.remem_results import RememResult
from dashboard import formats
from dashboard.components import cards, controls, remem_parts, states
from dashboard.figures import sweeps
from dashboard.figures.information_plane import information_plane
from dashboard.figures.model_plane import model_plane
from dashboard.reads import Plane, Reads, as_id
from dashboard.theme import Scheme, as_scheme
from dashboard.view import View, link, parse_query

PATH = "/plane"
HREF = "/plane"
TITLE = "Information plane"
NAV = ("Information", "plane")
DRAWN = True
ZOO = "zoo-"


def layout(reads: Reads, view: View) -> Any:
    options = _options(reads, reads.planes())
    head = cards.page_title(
        "Information plane",
        "A strong teacher that forgot its images teaches badly: error against what a decoder can still restore.",
    )
    if not options:
        return [
            head,
            states.empty(
                "Nothing has been measured yet",
                "Measure how much information the features of models hold (they need a scan on the same split), or "
                "let ReMem prepare a teacher and distil it; every snapshot becomes a point here.",
                [
                    "zoograft analyse information --model NAME --model OTHER --dataset DATA",
                    "zoograft remem --model VIT --student NET --dataset DATA --set settings=all",
                ],
                [("To the zoo", "/"), ("Jobs", "/jobs")],
            ),
        ]
    return [
        head,
        controls.filters(
            controls.select("of", "What to look at", view, options, default=options[0][0], w=520, searchable=True)
        ),
        html.Div(states.skeleton(), id="plane-body"),
    ]


def register(app: Dash, reads: Reads, actions: Any) -> None:
    @app.callback(
        Output("plane-body", "children"),
        Input("url", "search"),
        Input("scheme", "data"),
        State("url", "pathname"),
    )
    def draw(search: str, scheme: str, path: str) -> Any:
        if path.rstrip("/") != PATH:
            return no_update
        try:
            chosen = _chosen(reads, View(PATH, {}, parse_query(search)))
        except (NotFound, BadInput) as error:
            return states.of_error(error)
        if chosen is None:
            return states.empty("That plane is not there", "Choose another one above; its models may be gone.")
        if isinstance(chosen, Plane):
            return _zoo(chosen, as_scheme(scheme))
        return _remem(*chosen, as_scheme(scheme))

    app.clientside_callback(
        "dash_clientside.zoograft.follow",
        Output("plane-points", "className"),
        Input("plane-points", "clickData"),
        prevent_initial_call=True,
    )


def _options(reads: Reads, planes: list[Plane]) -> list[tuple[str, str]]:
    """ReMem runs, then planes of several models, then models alone on theirs."""
    runs = [
        (str(run.job_id), f"ReMem: {run.subject}, {formats.moment(run.finished_at)[:16]}") for run in reads.remem_runs()
    ]
    zoo = [
        (
            ZOO + plane.key,
            f"Zoo: {len(plane.members)} model{'s' if len(plane.members) > 1 else ''} on {plane.dataset} ({plane.split})"
            f", features of {_feature(plane)}",
        )
        for plane in planes
    ]
    return [*runs, *zoo]


def _feature(plane: Plane) -> str:
    told = plane.members[0].information
    return f"{'×'.join(map(str, told.feature_grid))}×{told.feature_width}"


def _chosen(reads: Reads, view: View) -> Plane | tuple[str, RememResult, dict[str, Any]] | None:
    wanted = view.text("of")
    planes = [] if wanted and not wanted.startswith(ZOO) else reads.planes()
    if not wanted:
        options = _options(reads, planes)
        wanted = options[0][0] if options else ""
    if wanted.startswith(ZOO):
        return next((plane for plane in planes if ZOO + plane.key == wanted), None)
    return (wanted, *reads.remem(as_id(wanted, "ReMem run"))) if wanted else None


def _zoo(plane: Plane, scheme: Scheme) -> list[Any]:
    told = plane.members[0].information
    student = next((one.student for one in plane.members if one.student), None)
    size = (
        f"Markers grow with the error of {student} taught by that model alone."
        if student
        else "No student was taught by one of them alone on these data, so that all markers are small."
    )
    rows = [
        [
            dmc.Anchor(one.model, href=link("zoo", one.model), size="sm"),
            formats.percent(one.teacher_error),
            f"{one.information.excess_nats:.4f}",
            f"{one.information.loss_nats:.4f}",
            f"{one.information.floor_nats:.4f}",
            formats.percent(one.student_error),
            "yes" if one.on_front else "",
        ]
        for one in sorted(plane.members, key=lambda one: one.teacher_error)
    ]
    conditions: list[tuple[str, Any]] = [
        ("Images", f"{told.data}; {told.n_images:,} to learn the decoder, {told.n_heldout:,} to score it"),
        ("Features", f"{told.feature_grid[0]} × {told.feature_grid[1]}, {told.feature_width:,} channels"),
        ("Restored images", f"{told.image_size[0]} × {told.image_size[1]} pixels"),
        (
            "Decoder",
            f"{told.updates:,} updates of {told.batch_size} images, lr {told.lr:g}, decay {told.weight_decay:g}",
        ),
    ]
    return [
        cards.figure_card(
            "plane-points",
            f"Models on {plane.dataset} ({plane.split})",
            f"Lower left is a better teacher. {size} Click a model to open it.",
            height=540,
            figure=model_plane(plane.members, scheme),
        ),
        cards.section(
            "Models",
            cards.table(
                ("Model", "Test error", "Excess (nats)", "Loss", "Floor", "Student's error", "On the front"),
                rows,
                label="Models on this plane",
                numeric=(1, 2, 3, 4, 5),
            ),
            right=cards.downloads(None, "plane-points", "the models of this plane"),
        ),
        cards.section(
            "What makes them comparable",
            cards.facts(conditions),
            text="Models that differ in any of this stand on planes of their own.",
        ),
    ]


def _remem(id: str, result: RememResult, rest: dict[str, Any], scheme: Scheme) -> list[Any]:
    best = result.teachers[result.best]
    student = best.best_student
    teacher_name, student_name = rest.get("published_teacher"), rest.get("published_student")
    job = link("jobs", id)
    links = [link("zoo", teacher_name) if teacher_name and _is_best(point, result) else job for point in result.plane]
    facts: list[tuple[str, Any]] = [
        ("Job", dmc.Anchor(id, href=job)),
        ("Teacher", dmc.Anchor(result.model, href=link("zoo", result.model))),
        ("Data", result.dataset),
        ("Metric", {"top1": "top-1 accuracy", "mean_per_class": "mean accuracy per class"}[result.metric]),
    ]
    if result.student:
        facts.insert(2, ("Student", dmc.Anchor(result.student, href=link("zoo", result.student))))
    if teacher_name:
        facts.append(("Prepared teacher", dmc.Anchor(teacher_name, href=link("zoo", teacher_name))))
    if student_name and student is not None:
        facts.append(("Distilled student", dmc.Anchor(student_name, href=link("zoo", student_name))))
    facts += [("Left out", text) for text in result.failures]
    pruned = sweep_table(result.teachers, "pruned_blocks")
    swept = [rows for name in sweeps.PARAMETERS if len(rows := sweep_table(result.teachers, name)) > 1]
    return [
        remem_parts.numbers(result),
        cards.figure_card(
            "plane-points",
            f"Teachers prepared from {result.model}",
            "Every snapshot is a point; markers grow with the student's error; the Pareto front of each setting is "
            "dashed. Click a point to open the published teacher, or the job of one that was not kept.",
            height=540,
            figure=information_plane(result.plane, scheme, links),
        ),
        html.Div(
            [
                cards.figure_card(
                    "plane-settings",
                    "Settings",
                    "Accuracy on test of the teacher and of the student chosen on validation.",
                    height=340,
                    figure=sweeps.settings(result.table, scheme),
                ),
                cards.section(
                    "In numbers",
                    remem_parts.settings_table(result.table),
                    html.Div(cards.facts(facts), style={"marginTop": "12px"}),
                    text="Means over seeds; gain: the student above the baseline's of the same seed; excess in nats.",
                ),
            ],
            className="two-columns",
        ),
        html.Div(
            [
                cards.figure_card(
                    f"plane-sweep-{rows[0].parameter.replace('_', '-')}",
                    sweeps.PARAMETERS[rows[0].parameter],
                    "At each value everything else is chosen on validation.",
                    table="plane-sweeps",
                    height=340,
                    figure=sweeps.sweep(rows, scheme),
                )
                for rows in swept
            ],
            className="two-columns" if len(swept) > 1 else None,
        ),
        html.Div(
            [
                cards.figure_card(
                    f"plane-pruning-{name}",
                    title,
                    "Branches pruned from the top; the number at a point says in how many blocks.",
                    table="plane-sweeps",
                    height=380,
                    figure=sweeps.pruning(pruned, field, scheme),
                )
                for name, title, field in (
                    ("information", "Information under pruning", "excess_nats"),
                    ("student", "Student against teacher under pruning", "student_accuracy"),
                )
            ],
            className="two-columns",
        )
        if pruned
        else None,
    ]


def _is_best(point: Any, result: RememResult) -> bool:
    best = result.teachers[result.best]
    tuning = best.tuning
    return (point.stop_point, point.seed, point.lr, point.rho, point.mlp_weight) == (
        best.best_stop_point,
        tuning.seed,
        tuning.lr,
        tuning.rho,
        tuning.mlp_weight,
    )


def _points_csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    chosen = _chosen(reads, view)
    if isinstance(chosen, Plane):
        for one in chosen.members:
            told = one.information.model_dump(mode="json", exclude={"model", "feature_grid", "image_size"})
            yield {
                "model": one.model,
                "family": one.family,
                "teacher_error": one.teacher_error,
                "student": one.student,
                "student_error": one.student_error,
                "on_front": one.on_front,
                **told,
                "feature_grid": "x".join(map(str, one.information.feature_grid)),
                "image_size": "x".join(map(str, one.information.image_size)),
            }
    elif chosen is not None:
        for point in chosen[1].plane:
            yield point.model_dump()


def _settings_csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    chosen = _chosen(reads, view)
    if chosen is not None and not isinstance(chosen, Plane):
        for row in chosen[1].table:
            yield row.model_dump()


def _sweeps_csv(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    chosen = _chosen(reads, view)
    if chosen is not None and not isinstance(chosen, Plane):
        for name in sweeps.PARAMETERS:
            rows = sweep_table(chosen[1].teachers, name)
            if len(rows) > 1:
                for row in rows:
                    yield row.model_dump()


TABLES = {"plane-points": _points_csv, "plane-settings": _settings_csv, "plane-sweeps": _sweeps_csv}
