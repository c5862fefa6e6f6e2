"""The figures and tables about many transfers: the same on a study's page and over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update

from backend.domain.catalog import Model
from backend.domain.study_summary import MethodSummary, StudyRow, StudyTable
from dashboard import formats
from dashboard.components import cards
from dashboard.figures import transfers
from dashboard.theme import Scheme
from dashboard.view import link

MOST_ROWS = 40
FIGURES = {
    "success": ("How often it succeeds", "Share of a student's transfers with Δ > 0; a point is a student."),
    "methods": ("Mean Δ", "Of every method, and above the same training without a teacher."),
    "bins": (
        "Δ against the accuracy difference",
        "Weaker teachers to the left; circles are the best quarter of a bin.",
    ),
    "balance": ("Gain against loss", "A point is a transfer; above the dashed line it succeeded. Click opens its job."),
    "top": ("Transfer rate by class", "On the classes that hold most of the positive flips; bars one standard error."),
    "size": ("Transfer rate by student", "By the student's size and family."),
    "student-size": ("Δ by the student's size", "Mean over its teachers."),
    "student-accuracy": ("Δ by the student's accuracy", "Mean over its teachers."),
    "datasets": ("Mean Δ by data set", "Other data and shifted domains beside each other."),
}


def board(prefix: str, names: Sequence[str]) -> html.Div:
    """Cards for the named figures, which `register` fills; `PREFIX-first` says that the first one is there."""
    figures = [cards.figure_card(f"{prefix}-{name}", *FIGURES[name], height=360) for name in names]
    return html.Div([*figures, dcc.Store(id=f"{prefix}-first")], className="two-columns")


def register(
    app: Dash, prefix: str, names: Sequence[str], asked: Sequence[Input | State], drawn: Callable[..., Any]
) -> None:
    """Draw the first figure of a `board` when one of `asked` changes, and the others when it is there.

    Args:
        drawn: (name, *values of `asked`) → the figure, or `no_update` where the page is another one.
    """
    first, *others = names

    @app.callback(Output(f"{prefix}-{first}", "figure"), Output(f"{prefix}-first", "data"), *asked)
    def draw_first(*values: Any) -> Any:
        made = drawn(first, *values)
        return made, no_update if made is no_update else values

    for name in others:

        @app.callback(Output(f"{prefix}-{name}", "figure"), Input(f"{prefix}-first", "data"), prevent_initial_call=True)
        def draw_next(values: Sequence[Any], name: str = name) -> Any:
            return drawn(name, *values)


def draw(
    name: str,
    rows: Sequence[StudyRow],
    methods: Sequence[MethodSummary],
    models: Mapping[str, Model],
    datasets: Mapping[str, str],
    scheme: Scheme,
) -> Any:
    """One figure. `methods` is looked at by the figure of that name alone."""
    made = {
        "success": lambda: transfers.success_boxes(rows, scheme),
        "methods": lambda: transfers.method_bars(methods, scheme),
        "bins": lambda: transfers.binned_deltas(rows, scheme),
        "balance": lambda: transfers.gain_against_loss(rows, scheme),
        "top": lambda: transfers.rates_by_top(rows, scheme),
        "size": lambda: transfers.rates_by_student(rows, models, scheme),
        "student-size": lambda: transfers.deltas_by_student(rows, models, scheme),
        "student-accuracy": lambda: transfers.deltas_by_student(rows, models, scheme, of="accuracy"),
        "datasets": lambda: transfers.by_dataset(rows, datasets, scheme),
    }
    return made[name]()


def summary(table: StudyTable) -> Any:
    """One line a method."""
    head = (
        "Method",
        "Transfers",
        "Succeed",
        "Of weaker teachers",
        "Mean Δ",
        "Above control",
        "Beat control",
        "Gain",
        "Loss",
    )
    rows = [
        [
            one.label,
            formats.whole(one.n_transfers),
            cards.with_interval(formats.percent(one.success_rate, 0), one.success_rate_low, one.success_rate_high, 0),
            f"{formats.percent(one.success_rate_weaker, 0)} of {one.n_weaker}" if one.n_weaker else formats.NONE,
            cards.with_interval(formats.signed_percent(one.mean_delta), one.mean_delta_low, one.mean_delta_high),
            cards.with_interval(
                formats.signed_percent(one.mean_delta_above_control),
                one.mean_delta_above_control_low,
                one.mean_delta_above_control_high,
            ),
            formats.percent(one.success_rate_above_control, 0),
            formats.percent(one.mean_gain),
            formats.percent(one.mean_loss),
        ]
        for one in table.methods
    ]
    return cards.table(head, rows, label="Methods", numeric=tuple(range(1, 9)))


def teacher_sets(table: StudyTable) -> Any:
    """Several teachers beside the best and the most accurate of them alone."""
    head = (
        "Method",
        "Against",
        "Sets and seeds",
        "Mean Δ",
        "One teacher",
        "Difference",
        "Better in",
    )
    rows = [
        [
            one.label,
            one.against,
            formats.whole(one.n_transfers),
            formats.signed_percent(one.mean_delta),
            formats.signed_percent(one.mean_single_delta),
            cards.with_interval(
                formats.signed_percent(one.mean_delta_difference),
                one.mean_delta_difference_low,
                one.mean_delta_difference_high,
            ),
            formats.percent(one.win_rate, 0),
        ]
        for one in table.teacher_set_summaries
    ]
    return cards.table(head, rows, label="Several teachers against one", numeric=tuple(range(2, 7)))


def differences(table: StudyTable) -> Any:
    """Paired differences between methods: the same pairs and seeds by both."""
    if not table.differences:
        return dmc.Text("Two methods on the same pairs are needed for a difference.", size="sm", c="dimmed")
    head = ("Method", "Beside", "Same transfers", "Succeeds more often by", "Mean Δ larger by")
    rows = [
        [
            one.label,
            one.baseline,
            formats.whole(one.n_pairs),
            cards.with_interval(
                formats.signed_percent(one.success_rate_difference, 0),
                one.success_rate_difference_low,
                one.success_rate_difference_high,
                0,
            ),
            cards.with_interval(
                formats.signed_percent(one.mean_delta_difference),
                one.mean_delta_difference_low,
                one.mean_delta_difference_high,
            ),
        ]
        for one in table.differences
    ]
    return cards.table(head, rows, label="Paired differences of methods", numeric=(2, 3, 4))


def listing(rows: Sequence[StudyRow], most: int = MOST_ROWS) -> Any:
    """The transfers themselves, the largest Δ first.

    Not all of hundreds: Dash asks every component of a page about every change, and a page of thousands stands still.
    """
    ordered = sorted(rows, key=lambda row: -row.transfer_delta)[:most]
    head = ("Job", "Method", "Teachers", "Student", "Δ", "Above control", "Gain", "Loss", "Before", "After")
    shown = [
        [
            dmc.Anchor(row.job_id[-8:], href=link("jobs", row.job_id), size="sm"),
            row.label,
            ", ".join(row.teachers) or "none",
            row.student,
            formats.signed_percent(row.transfer_delta),
            formats.signed_percent(row.delta_above_control),
            formats.percent(row.knowledge_gain),
            formats.percent(row.knowledge_loss),
            formats.percent(row.student_accuracy_before),
            formats.percent(row.student_accuracy_after),
        ]
        for row in ordered
    ]
    note = None
    if len(rows) > most:
        text = f"The {most} of {len(rows):,} transfers with the largest Δ; the CSV has all."
        note = dmc.Text(text, size="sm", c="dimmed", mt="xs")
    return html.Div([cards.table(head, shown, label="Transfers", numeric=tuple(range(4, 10))), note])


def csv_rows(rows: Sequence[StudyRow], datasets: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Every number of every transfer."""
    for row in rows:
        flat = row.model_dump(mode="json", exclude={"params", "transfer_rate", "teachers"})
        flat["teachers"] = " ".join(row.teachers)
        flat["dataset"] = datasets.get(row.job_id, "")
        for p in transfers.TOP_P:
            flat[f"transfer_rate_{p}"] = row.transfer_rate.get(str(p))
        yield flat
