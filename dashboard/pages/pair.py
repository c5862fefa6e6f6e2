"""Pair: one teacher and one student, down to the classes and images, and the transfer that follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update

from backend.domain.errors import BadInput, NotFound
from backend.domain.pairs import PairDetail
from dashboard import formats
from dashboard.actions import Actions
from dashboard.components import cards, controls, gallery, states, transfer_form
from dashboard.figures import classes
from dashboard.figures.frame import nothing
from dashboard.reads import Reads
from dashboard.theme import as_scheme
from dashboard.view import View, link, match, parse_query

PATH = "/pairs/{teacher}/{student}"
TITLE = "Pair"
NAV = None
DRAWN = True
SHOWN = 12


def title(view: View) -> str:
    return f"{view.params['teacher']} → {view.params['student']}"


def require(reads: Reads, view: View) -> None:
    teacher, student = view.params["teacher"], view.params["student"]
    if not reads.pair_boards(teacher, student) or teacher == student:
        raise NotFound("pair", f"{teacher} → {student}", "two models that were scored on the same split")


def layout(reads: Reads, view: View) -> Any:
    teacher, student = view.params["teacher"], view.params["student"]
    boards = reads.pair_boards(teacher, student)
    detail = _detail(reads, view)
    on = f"{detail.dataset}/{detail.split}"
    table = reads.class_table(detail)
    named = [(str(one.class_index), f"{one.class_name} ({one.positive_flips})") for one in table.records]
    here = View(view.path, view.params, {**view.query, "on": on})
    entries = reads.models([teacher, student])
    return [
        cards.page_title(
            f"{teacher} → {student}",
            f"What {teacher} (teacher) knows that {student} (student) does not, on {detail.dataset} ({detail.split}): "
            f"{detail.n_samples:,} samples of {detail.n_classes:,} classes compared.",
            controls.board_select(boards, next((b for b in boards if f"{b.dataset}/{b.split}" == on), None), here)
            if len(boards) > 1
            else None,
            dmc.Anchor("Turn round", href=link("pairs", student, teacher, on=on)),
            dmc.Anchor("Teacher", href=link("zoo", teacher)),
            dmc.Anchor("Student", href=link("zoo", student)),
        ),
        cards.number_row(_numbers(detail)),
        cards.figure_card(
            "pair-classes",
            "Flips by class",
            "A bar is a class, the one with the largest share of positive flips first. Click a bar to see its images.",
            height=430,
        ),
        html.Div([_similarity_card(reads, detail), _counts(detail)], className="two-columns"),
        cards.section(
            "Samples",
            controls.filters(
                controls.segments(
                    "kind",
                    view,
                    [
                        ("positive", f"Only the teacher right ({detail.positive_flips:,})"),
                        ("negative", f"Only the student right ({detail.negative_flips:,})"),
                        ("both_wrong", f"Both wrong ({detail.wrong_both:,})"),
                        ("both_right", f"Both right ({detail.right_both:,})"),
                    ],
                    default="positive",
                    label="Which samples",
                ),
                controls.select("class", "Class", view, [("", "all classes"), *named], w=260, searchable=True),
            ),
            html.Div(id="pair-gallery"),
            right=cards.downloads(None, "pair-samples", "these samples"),
        ),
        cards.section("Transfers on this pair", html.Div(id="pair-transfers")),
        transfer_form.card(reads, detail, entries),
        dcc.Interval(id="pair-live", interval=2000, disabled=True),
    ]


def register(app: Dash, reads: Reads, actions: Actions) -> None:
    @app.callback(
        Output("pair-classes", "figure"),
        Input("url", "search"),
        Input("scheme", "data"),
        State("url", "pathname"),
    )
    def draw_classes(search: str, scheme: str, path: str) -> Any:
        view = _view(path, search)
        if view is None:
            return no_update
        table = reads.class_table(_detail(reads, view))
        q_values = {one.class_index: float(table.q_values[one.class_index]) for one in table.records}
        return classes.histogram(table.records, table.positive, as_scheme(scheme), q_values)

    @app.callback(
        Output("pair-similarity", "figure"),
        Input("url", "search"),
        Input("scheme", "data"),
        State("url", "pathname"),
    )
    def draw_similarity(search: str, scheme: str, path: str) -> Any:
        view = _view(path, search)
        if view is None:
            return no_update
        detail = _detail(reads, view)
        embedding = reads.embedding(detail.dataset)
        if embedding is None:
            return nothing("No embedding table", as_scheme(scheme))
        return classes.similarity(
            classes.similarities(embedding, reads.class_table(detail).positive), as_scheme(scheme)
        )

    @app.callback(
        Output({"type": "q", "name": "class", "default": ""}, "value"),
        Input("pair-classes", "clickData"),
        prevent_initial_call=True,
    )
    def choose_class(click: Any) -> Any:
        if not click or not click.get("points"):
            return no_update
        return str(click["points"][0]["customdata"][3])

    @app.callback(Output("pair-gallery", "children"), Input("url", "search"), State("url", "pathname"))
    def draw_gallery(search: str, path: str) -> Any:
        view = _view(path, search)
        if view is None:
            return no_update
        detail = _detail(reads, view)
        kind = view.one_of("kind", ("positive", "negative", "both_wrong", "both_right"), "positive")
        class_index = _class(view)
        try:
            page = reads.samples(
                detail, kind=kind, class_index=class_index, limit=SHOWN, cursor=view.text("after") or None
            )
        except BadInput as error:
            return states.of_error(error)
        more = None
        if page.next_cursor:
            more = link("pairs", detail.teacher, detail.student, **{**view.query, "after": page.next_cursor})
        first = link("pairs", detail.teacher, detail.student, **{k: v for k, v in view.query.items() if k != "after"})
        return gallery.gallery(
            page.items,
            reads.class_names(detail.dataset),
            next_page=more,
            first_page=first if view.text("after") else None,
        )

    @app.callback(
        Output("pair-transfers", "children"),
        Output("pair-live", "disabled"),
        Input("url", "search"),
        Input("pair-live", "n_intervals"),
        State("url", "pathname"),
    )
    def draw_transfers(search: str, _ticks: int, path: str) -> Any:
        view = _view(path, search)
        if view is None:
            return no_update, no_update
        detail = _detail(reads, view)
        jobs = reads.transfers(detail.teacher, detail.student, detail.dataset)
        live = any(job.finished_at is None for job in jobs)
        if not jobs:
            return dmc.Text("None yet. Start one below.", c="dimmed", size="sm"), True
        rows = []
        for job in jobs:
            result = job.result or {}
            rows.append(
                [
                    dmc.Anchor(formats.moment(job.created_at), href=link("jobs", str(job.id)), size="sm"),
                    str((job.spec.get("method") or {}).get("method")),
                    cards.state_badge(job.state.value),
                    f"{job.progress.step} / {job.progress.total}" if job.progress.total else formats.NONE,
                    formats.signed_percent(result.get("transfer_delta")),
                    formats.interval(result.get("transfer_delta_low"), result.get("transfer_delta_high")),
                    formats.signed_percent(result.get("control_delta")),
                    dmc.Anchor(result["model"], href=link("zoo", result["model"]), size="sm")
                    if result.get("model")
                    else formats.NONE,
                ]
            )
        head = ("Asked for (UTC)", "Method", "State", "Steps", "Δ transfer", "95 %", "Δ control", "Student after")
        return cards.table(head, rows, label="Transfers on this pair", numeric=(3, 4, 5, 6)), not live

    def pair_at(path: str | None, search: str | None) -> PairDetail | None:
        view = _view(path or "", search or "")
        return None if view is None else _detail(reads, view)

    transfer_form.register(app, reads, actions, pair_at)


def _view(path: str, search: str) -> View | None:
    params = match(PATH, path or "")
    return None if params is None else View(path, params, parse_query(search))


def _detail(reads: Reads, view: View) -> PairDetail:
    dataset, split = controls.split_board(view.text("on"))
    if not dataset:
        boards = reads.pair_boards(view.params["teacher"], view.params["student"])
        if boards:
            dataset, split = boards[0].dataset, boards[0].split
    return reads.pair(view.params["teacher"], view.params["student"], dataset, split)


def _class(view: View) -> int | None:
    text = view.text("class")
    if not text:
        return None
    if not text.isdigit() or len(text) > 7:
        raise BadInput("class", text, "the index of a class")
    return int(text)


def _numbers(pair: PairDetail) -> list[dmc.Paper]:
    return [
        cards.number_card(
            "Positive flips",
            formats.percent(pair.positive_flip_rate),
            formats.bracket(pair.positive_flip_rate_low, pair.positive_flip_rate_high),
            f"{pair.positive_flips:,} samples only the teacher gets right",
        ),
        cards.number_card(
            "Negative flips",
            formats.percent(pair.negative_flip_rate),
            formats.bracket(pair.negative_flip_rate_low, pair.negative_flip_rate_high),
            f"{pair.negative_flips:,} samples only the student gets right",
        ),
        cards.number_card(
            "Accuracy, teacher − student",
            formats.signed_percent(pair.accuracy_difference),
            formats.bracket(pair.accuracy_difference_low, pair.accuracy_difference_high),
            f"McNemar p {formats.p_value(pair.mcnemar_p_value)}",
        ),
        cards.number_card(
            "Teacher's accuracy",
            formats.percent(pair.teacher_accuracy),
            formats.bracket(pair.teacher_accuracy_low, pair.teacher_accuracy_high),
        ),
        cards.number_card(
            "Student's accuracy",
            formats.percent(pair.student_accuracy),
            formats.bracket(pair.student_accuracy_low, pair.student_accuracy_high),
        ),
        cards.number_card(
            "Entropy of positive flips",
            f"{formats.number(pair.flip_entropy_nats)} nats",
            "low: few classes; high: spread over many",
        ),
    ]


def _counts(pair: PairDetail) -> dmc.Paper:
    n = pair.n_samples
    rows = [
        ["Teacher right", *(f"{v:,} ({formats.percent(v / n)})" for v in (pair.right_both, pair.positive_flips))],
        ["Teacher wrong", *(f"{v:,} ({formats.percent(v / n)})" for v in (pair.negative_flips, pair.wrong_both))],
    ]
    return cards.section(
        "Right and wrong together",
        cards.table(("", "Student right", "Student wrong"), rows, label="Samples by who is right", numeric=(1, 2)),
        text="Intervals on this page are from 10,000 multinomial draws of these four counts (seed 0); p is McNemar's "
        "exact two-sided test. Positive flips are also known as negative flips of the student (NFR), or backward "
        "incompatibility.",
    )


def _similarity_card(reads: Reads, pair: PairDetail) -> dmc.Paper:
    name = "Are the flipped classes alike?"
    if reads.embedding(pair.dataset) is not None:
        return cards.figure_card(
            "pair-similarity",
            name,
            "Mean cosine between the embeddings of the classes that hold most positive flips, beyond that of all.",
            height=300,
        )
    space = reads.dataset(pair.dataset).label_space
    files = [f"embeddings/{one}.npz" for one in (pair.dataset, space) if one]
    return cards.section(
        name,
        dmc.Text(
            [
                "No embedding of this data set's class names is configured, so nothing is claimed. "
                "Put an npz file with ",
                dmc.Code("vectors"),
                f" [classes, E] (CLIP's text encoder or any other) at {' or '.join(files)} in the data directory.",
            ],
            size="sm",
            c="dimmed",
        ),
    )


def _class_rows(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    table = reads.class_table(_detail(reads, view))
    for one in table.records:
        yield {**one.model_dump(), "mcnemar_q_value": float(table.q_values[one.class_index])}


def _similarity_rows(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    detail = _detail(reads, view)
    embedding = reads.embedding(detail.dataset)
    if embedding is None:
        return
    for p, one in classes.similarities(embedding, reads.class_table(detail).positive).items():
        yield {"top_percent": p, "coverage": one.coverage, **vars(one)}


def _sample_rows(reads: Reads, view: View) -> Iterator[dict[str, Any]]:
    detail = _detail(reads, view)
    kind = view.one_of("kind", ("positive", "negative", "both_wrong", "both_right"), "positive")
    cursor: str | None = None
    while True:
        page = reads.samples(detail, kind=kind, class_index=_class(view), limit=200, cursor=cursor)
        for one in page.items:
            row = one.model_dump()
            yield {n: " ".join(map(str, v)) if isinstance(v, tuple) else v for n, v in row.items()}
        cursor = page.next_cursor
        if cursor is None:
            return


TABLES = {"pair-classes": _class_rows, "pair-similarity": _similarity_rows, "pair-samples": _sample_rows}
