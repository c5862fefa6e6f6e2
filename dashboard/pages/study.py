"""One study: its methods beside each other with intervals, every figure of the paper, its jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update

from backend.domain.errors import ZoograftError
from backend.domain.jobs import TERMINAL
from backend.domain.kdep_studies import KdepTable
from backend.domain.records import Record
from backend.domain.study_summary import StudyTable
from dashboard import formats
from dashboard.actions import Actions
from dashboard.components import cards, states, transfer_charts
from dashboard.figures import kdep
from dashboard.reads import Reads, Study, as_id, to_json
from dashboard.theme import as_scheme
from dashboard.view import View, link, match

PATH = "/studies/{id}"
TITLE = "Study"
NAV = None
DRAWN = True
SHOWN = ("success", "methods", "bins", "balance", "top", "size", "student-size", "student-accuracy")
PREFIX = "study"
REFRESH_MS = 4000


def require(reads: Reads, view: View) -> None:
    reads.study(as_id(view.params["id"], "study"))


def layout(reads: Reads, view: View) -> Any:
    study = reads.study(as_id(view.params["id"], "study"))
    open_ = study.job.state not in TERMINAL
    of_transfers = isinstance(reads.study_table(study.job.id), StudyTable)
    return [
        cards.page_title(
            str(study.job.spec.get("name") or "Study"),
            study.job.spec.get("description") or f"Study {study.job.id}",
            dmc.Button("Cancel", id="study-cancel", variant="default", disabled=not open_),
            dmc.Button(
                "Retry what failed",
                id="study-retry",
                variant="default",
                disabled=study.job.state.value not in ("failed", "cancelled"),
            ),
        ),
        html.Div(id="study-said", className="error-text", role="alert"),
        html.Div(_status(study), id="study-status"),
        html.Div(_tables(reads, study), id="study-tables"),
        transfer_charts.board(PREFIX, SHOWN) if of_transfers else html.Div(id="study-pretraining"),
        html.Div(_listing(reads, study), id="study-listing"),
        cards.folded("The study file", dmc.Code(to_json(study.job.spec), block=True, className="command")),
        dcc.Store(id="study-version", data=_version(reads, study)),
        dcc.Interval(id="study-live", interval=REFRESH_MS, disabled=not open_),
    ]


def register(app: Dash, reads: Reads, actions: Actions) -> None:
    def drawn(name: str, scheme: str, _version: str, path: str) -> Any:
        study = _study(reads, path)
        table = None if study is None else reads.study_table(study.job.id)
        if not isinstance(table, StudyTable):
            return no_update
        models = reads.models(sorted({row.student for row in table.rows}))
        return transfer_charts.draw(name, table.rows, table.methods, models, {}, as_scheme(scheme))

    asked = (Input("scheme", "data"), Input("study-version", "data"), State("url", "pathname"))
    transfer_charts.register(app, PREFIX, SHOWN, asked, drawn)

    @app.callback(
        Output("study-pretraining", "children"),
        Input("scheme", "data"),
        Input("study-version", "data"),
        State("url", "pathname"),
    )
    def draw_pretraining(scheme: str, _version: str, path: str) -> Any:
        study = _study(reads, path)
        table = None if study is None else reads.study_table(study.job.id)
        if not isinstance(table, KdepTable) or not table.summaries:
            return no_update
        titled = (
            ("study-shares", "Downstream by the images pre-trained on", kdep.over_shares),
            ("study-seen", "Downstream by the images seen", kdep.over_images_seen),
            ("study-sets", "Downstream sets, on the largest share", kdep.downstream_sets),
        )
        shown = [
            cards.figure_card(
                id, title, "Mean over seeds.", table="study-summary", figure=draw(table.summaries, as_scheme(scheme))
            )
            for id, title, draw in titled
        ]
        return html.Div(shown, className="two-columns")

    @app.callback(
        Output("study-status", "children"),
        Output("study-tables", "children"),
        Output("study-listing", "children"),
        Output("study-live", "disabled"),
        Output("study-version", "data"),
        Input("study-live", "n_intervals"),
        State("url", "pathname"),
        State("study-version", "data"),
        prevent_initial_call=True,
    )
    def watch(_ticks: int, path: str, before: str) -> Any:
        study = _study(reads, path)
        if study is None:
            return (no_update,) * 5
        version, ended = _version(reads, study), study.job.state in TERMINAL
        if version == before:
            return _status(study), no_update, no_update, ended, no_update
        return _status(study), _tables(reads, study), _listing(reads, study), ended, version

    @app.callback(
        Output("study-said", "children"),
        Output("url", "href", allow_duplicate=True),
        Input("study-cancel", "n_clicks"),
        Input("study-retry", "n_clicks"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def act(cancels: int | None, retries: int | None, path: str) -> Any:
        study = _study(reads, path)
        if study is None or not (cancels or retries):
            return no_update, no_update
        try:
            if retries:
                return "", link("studies", str(actions.retry(study.job.id).id))
            actions.cancel(study.job.id)
            return "Cancelling; running jobs stop at their next step.", no_update
        except ZoograftError as error:
            return error.message, no_update

    app.clientside_callback(
        "dash_clientside.zoograft.follow",
        Output(f"{PREFIX}-balance", "className"),
        Input(f"{PREFIX}-balance", "clickData"),
        prevent_initial_call=True,
    )


def _study(reads: Reads, path: str) -> Study | None:
    params = match(PATH, path or "")
    return None if params is None else reads.study(as_id(params["id"], "study"))


def _version(reads: Reads, study: Study) -> str:
    """How many rows its tables have, and how many jobs are in which state: what tables and figures hang on."""
    counts = ", ".join(f"{count} {state}" for state, count in sorted(study.children.items()))
    return f"{len(reads.study_table(study.job.id).rows)} rows; {counts}"


def _status(study: Study) -> Any:
    counts = {state.value: count for state, count in study.children.items()}
    done = sum(counts.get(state.value, 0) for state in TERMINAL)
    share = 100 * done / study.children_total if study.children_total else 0
    rows: list[tuple[str, Any]] = [
        ("State", cards.state_badge(study.job.state.value)),
        ("Jobs", ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"),
        ("Asked for", f"{formats.moment(study.job.created_at)} UTC"),
        ("Ran for", formats.ran_for(study.job.started_at, study.job.finished_at)),
    ]
    if study.job.message:
        rows.append(("Message", study.job.message))
    return cards.section(
        "State",
        dmc.Progress(value=share, mb="sm", **{"aria-label": "Progress"}),
        dmc.Text(f"{done:,} of {study.children_total:,} jobs done ({share:.0f} %)", size="sm", mb="sm"),
        cards.facts(rows),
        right=dmc.Anchor("Its jobs", href="/jobs"),
    )


def _tables(reads: Reads, study: Study) -> Any:
    table = reads.study_table(study.job.id)
    if not table.rows and isinstance(table, StudyTable) and table.pair_summary is not None:
        shown = cards.downloads(None, "study-pairs", "the pairs")
        return cards.section(
            "Pairs",
            cards.facts([(name.replace("_", " "), _shown(value)) for name, value in table.pair_summary]),
            dmc.Anchor("To the pairs", href=link("pairs"), size="sm"),
            text="Flips of the study's pairs; nothing was transferred.",
            right=shown,
        )
    if not table.rows:
        return states.empty(
            "No transfer of this study has finished yet",
            "Tables and figures fill themselves while its jobs run.",
        )
    if not isinstance(table, StudyTable):
        return _plain(table.summaries, "Summary", "study-summary")
    note = f"{len(table.rows)} transfers"
    if table.n_failed or table.n_open:
        note += f"; {table.n_failed} failed, {table.n_open} not done yet"
    shown = [
        cards.section(
            "Methods",
            transfer_charts.summary(table),
            text=f"{note}. Success: Δ > 0. Controls are the same training without a teacher.",
            right=cards.downloads(None, "study-summary", "the methods"),
        ),
        cards.section(
            "Differences between methods",
            transfer_charts.differences(table),
            text="Paired: the same teachers, student and seed by both; 95 % by 10,000 bootstrap draws, seed 0.",
            right=cards.downloads(None, "study-differences", "the differences"),
        ),
    ]
    if table.teacher_set_summaries:
        shown.append(
            cards.section(
                "Several teachers against one",
                transfer_charts.teacher_sets(table),
                text="The same student, method, settings and seed. The best single teacher is known only afterwards, "
                "the most accurate one beforehand. 95 % by 10,000 bootstrap draws of sets and seeds, seed 0.",
                right=cards.downloads(None, "study-sets", "the sets of teachers"),
            )
        )
    return shown


def _listing(reads: Reads, study: Study) -> Any:
    table = reads.study_table(study.job.id)
    if not table.rows:
        return None
    if not isinstance(table, StudyTable):
        return _plain(table.rows, "Runs", "study-transfers")
    right = cards.downloads(None, "study-transfers", "the transfers")
    return cards.section("Transfers", transfer_charts.listing(table.rows), right=right)


def _plain(records: Sequence[Record], title: str, csv: str) -> Any:
    """Any records as a table, for studies of other things than transfers."""
    rows = [flat(one) for one in records]
    head = list(rows[0]) if rows else []
    shown = [[_shown(row[name]) for name in head] for row in rows[: transfer_charts.MOST_ROWS]]
    return cards.section(
        title,
        cards.table([name.replace("_", " ") for name in head], shown, label=title),
        right=cards.downloads(None, csv, title),
    )


def flat(record: Record) -> dict[str, Any]:
    """A record as one row: what is nested gets names with a dot."""
    row: dict[str, Any] = {}
    for name, value in record.model_dump(mode="json").items():
        if isinstance(value, dict):
            row |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            row[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return row


def _shown(value: Any) -> str:
    return formats.NONE if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _csv(reads: Reads, view: View, part: str) -> Iterator[dict[str, Any]]:
    table = reads.study_table(as_id(view.params["id"], "study"))
    if isinstance(table, StudyTable):
        if part == "rows":
            yield from transfer_charts.csv_rows(table.rows, {})
            return
        named = {
            "summaries": table.methods,
            "differences": table.differences,
            "sets": table.teacher_sets,
            "pairs": table.pairs,
        }
        records: Sequence[Record] = named[part]
    else:
        records = getattr(table, part)
    for one in records:
        yield flat(one)


TABLES = {
    "study-summary": partial(_csv, part="summaries"),
    "study-differences": partial(_csv, part="differences"),
    "study-pairs": partial(_csv, part="pairs"),
    "study-sets": partial(_csv, part="sets"),
    "study-transfers": partial(_csv, part="rows"),
    **{f"{PREFIX}-{name}": partial(_csv, part="rows") for name in SHOWN},
}
