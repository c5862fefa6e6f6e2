"""`zoograft study …` and `zoograft report`: grids of transfers, and a page to keep or to send."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from backend.cli.follow import Detach, attach, require_workers, show_queued
from backend.cli.opening import open_store, parse_id
from backend.cli.output import Json, Limit, note, pages, plain, print_fields, print_items, print_json, print_table, when
from backend.domain.errors import BadInput

if TYPE_CHECKING:
    from backend.store.session import Store

app = typer.Typer(no_args_is_help=True, help="Studies: many transfers as one job.")


def register(main: typer.Typer) -> None:
    main.command("report")(report)


@app.command("run")
def run_study(
    file: Annotated[Path, typer.Argument(help="The study, as YAML.")], detach: Detach = False, json: Json = False
) -> None:
    """Run a study: every combination of its grid is a job, and the report compares them.

    zoograft study run examples/digits.yaml
    """
    from backend import studies, submission

    if not detach:
        require_workers("study", "study run")
    if not file.is_file():
        raise BadInput("file", str(file), "an existing YAML file")
    with open_store() as (settings, store):
        job = submission.submit(store, settings, "study", studies.load(file)).job
        if detach:
            show_queued(job, json=json)
            return
        try:
            attach(settings, store, job, json=json)
        finally:
            if not json:
                _show_table(store, job.id)
        note(f"a page of it: zoograft report --study {job.id} -o study.html")


@app.command("ls")
def list_studies(limit: Limit = None, json: Json = False) -> None:
    """List studies, the newest first."""
    from backend.store.queries import jobs as queries

    with open_store() as (_, store), store.read() as connection:
        items = pages(lambda size, cursor: queries.studies(connection, limit=size, cursor=cursor), limit)
        if json:
            print_items(items)
            return
        print_table(
            ("id", "state", "children", "created (UTC)"),
            (
                (
                    study.job.id,
                    study.job.state,
                    ", ".join(f"{number} {state}" for state, number in sorted(study.children.items())),
                    when(study.job.created_at),
                )
                for study in items
            ),
        )


@app.command("show")
def show_study(id: Annotated[str, typer.Argument(help="The study's id.")], json: Json = False) -> None:
    """Show one study: its children by state, and its result."""
    from backend.store.queries import jobs as queries

    with open_store() as (_, store):
        with store.read() as connection:
            study = queries.study(connection, parse_id(id))
        if json:
            print_json(study)
            return
        print_fields(study.model_dump(mode="json", exclude={"job": {"spec", "result"}}))
        _show_table(store, study.job.id)


def _show_table(store: Store, id: UUID) -> None:
    """One line a method, one a paired difference, as far as the study is."""
    from backend.studies import study_table

    with store.read() as connection:
        table = study_table(connection, id)
    for title, records in (("methods", table.methods), ("differences", table.differences)):
        rows = [plain(record) for record in records]
        if not rows:
            continue
        columns = [name for name, value in rows[0].items() if not isinstance(value, (dict, list))]
        print(f"\n{title}")
        print_table(columns, ([row[name] for name in columns] for row in rows))


def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")],
    pair: Annotated[
        tuple[str, str] | None, typer.Option(help="A teacher and a student.", metavar="TEACHER STUDENT")
    ] = None,
    study: Annotated[str | None, typer.Option(help="A study's id.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Of the pair: the only one they share may be left out.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the pair.")] = None,
    json: Json = False,
) -> None:
    """Write one pair or one study as a self-contained HTML page, plots included.

    zoograft report --pair resnet18 vit_tiny -o pair.html
    """
    if (pair is None) == (study is None):
        raise BadInput("--pair", None, "either --pair TEACHER STUDENT or --study ID")
    from backend.cli.report import write_report

    with open_store() as (settings, store):
        write_report(
            settings,
            store,
            output,
            pair=pair,
            study=None if study is None else parse_id(study, "--study"),
            dataset=dataset,
            split=split,
        )
    if json:
        print_json({"file": str(output)})
    else:
        note(f"written to {output}")
