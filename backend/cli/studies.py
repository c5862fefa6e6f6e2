"""`zoograft study …` and `zoograft report`: grids of transfers, and a page to keep or to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli.follow import Detach, attach, finish, require_workers, show_queued
from backend.cli.opening import open_store, parse_id
from backend.cli.output import Json, Limit, note, pages, print_items, print_json, print_table, when
from backend.cli.study_table import print_study, write_records, write_rows
from backend.domain.errors import BadInput

app = typer.Typer(no_args_is_help=True, help="Studies: many transfers as one job.")


def register(main: typer.Typer) -> None:
    main.command("report")(report)


@app.command("run")
def run_study(
    file: Annotated[Path, typer.Argument(help="The study, as YAML.")], detach: Detach = False, json: Json = False
) -> None:
    """Run a study: every combination of its grid is a job, and the table at the end compares them.

    What an earlier run of the same study trained already is used again.

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
        ended = attach(settings, store, job, json=False, finish_it=False)
        with store.read() as connection:
            table = studies.study_table(connection, job.id)
        if json:
            print_json({"job": ended, "table": table})
        else:
            print_study(table)
            note(f"study {job.id}; keep it: zoograft report --study {job.id} -o report.html")
        finish(ended, json=json, silent=True)


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
def show_study(
    id: Annotated[str, typer.Argument(help="The study's id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write one row a transfer here: .csv or .parquet.")
    ] = None,
    top_classes: Annotated[
        Path | None,
        typer.Option(help="Write every pair's top-p classes and how alike they are here: .csv or .parquet."),
    ] = None,
    json: Json = False,
) -> None:
    """Show one study: its children by state, and the table of its methods."""
    from backend import studies
    from backend.domain.transfers import TOP_P
    from backend.store.queries import jobs as queries

    with open_store() as (settings, store):
        with store.read() as connection:
            study = queries.study(connection, parse_id(id))
            table = studies.study_table(connection, study.job.id)
        if top_classes is not None:
            tops = list(studies.study_top_classes(store, settings, study.job.id, (*TOP_P,)))
            write_records(top_classes, list(tops[0]) if tops else ["teacher", "student", "p"], tops)
            note(f"{len(tops)} rows written to {top_classes}")
            return
    if output is not None:
        write_rows(table, output)
        note(f"{len(table.rows) or len(getattr(table, 'pairs', ()))} rows written to {output}")
    elif json:
        print_json({**study.model_dump(mode="json"), "table": table})
    else:
        states = ", ".join(f"{number} {state}" for state, number in sorted(study.children.items()))
        note(f"study {study.job.spec.get('name', '')} {study.job.state}: {states}")
        print_study(table)


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
