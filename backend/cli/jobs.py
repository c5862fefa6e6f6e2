"""`zoograft jobs …`: what runs, what it said, and how to stop it or try it again."""

from __future__ import annotations

import json as json_module
from typing import Annotated
from uuid import UUID

import typer

from backend.cli.follow import attach, finish, follow_only, require_workers, show_queued
from backend.cli.opening import open_store, parse_id
from backend.cli.output import Json, Limit, note, pages, plain, print_fields, print_items, print_json, print_table, when

app = typer.Typer(no_args_is_help=True, help="Jobs: list, watch, cancel, try again.")

Id = Annotated[str, typer.Argument(help="The job's id.")]
Follow = Annotated[bool, typer.Option("--follow", help="Run the new job here and follow it.")]


@app.command("ls")
def list_jobs(
    state: Annotated[
        list[str] | None,
        typer.Option(help="queued, running, cancelling, succeeded, failed or cancelled. Repeatable."),
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="scan, transfer, study, … Repeatable.")] = None,
    parent: Annotated[str | None, typer.Option(help="Only the children of this study.")] = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """List jobs, the newest first."""
    from backend.store.queries import jobs as queries

    of = None if parent is None else parse_id(parent, "--parent")
    with open_store() as (_, store), store.read() as connection:
        items = pages(
            lambda size, cursor: queries.jobs(
                connection, state=state or (), kind=kind or (), parent=of, limit=size, cursor=cursor
            ),
            limit,
        )
        if json:
            print_items(items)
            return
        print_table(
            ("id", "kind", "state", "progress", "created (UTC)", "cause"),
            (
                (
                    job.id,
                    job.kind,
                    job.state,
                    f"{job.progress.step}/{job.progress.total}" if job.progress.total else "",
                    when(job.created_at),
                    job.cause,
                )
                for job in items
            ),
        )


@app.command("show")
def show_job(id: Id, json: Json = False) -> None:
    """Show one job: what was asked, how far it is, why it ended, what came out; and what it waits for."""
    from backend.store.queries import jobs as queries
    from backend.store.queries.attempts import waiting_for

    with open_store() as (_, store), store.read() as connection:
        job = queries.job(connection, parse_id(id))
        why = waiting_for(connection, job.id)
    if json:
        print_json(job)
    else:
        print_fields(job.model_dump(mode="json"))
        if why is not None:
            note(why)


@app.command("logs")
def show_logs(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    json: Json = False,
) -> None:
    """Show the history of a job: its states and what it said. With --json one event a line."""
    from backend.store.queries import jobs as queries

    job_id = parse_id(id)
    with open_store() as (_, store):
        last = 0
        while True:
            with store.read() as connection:
                queries.job(connection, job_id)
                events = queries.events(connection, job_id, after_id=last, types=("state", "log"))
            for event in events:
                last = event.id
                if json:
                    print(json_module.dumps(plain(event)))
                else:
                    print(f"{when(event.at)}  {event.attempt}  {_said(event.type, event.data)}")
            if not events:
                break
        if follow:
            finish(follow_only(store, job_id), json=json)


def _said(type: str, data: dict[str, object]) -> str:
    if type == "log":
        return "".join(c if c.isprintable() else " " for c in str(data.get("message", "")))
    cause = f" ({data['cause']})" if data.get("cause") else ""
    return f"{data.get('from') or 'new'} → {data.get('to')}{cause}"


@app.command("cancel")
def cancel_job(id: Id, json: Json = False) -> None:
    """Ask a job to stop at its next step; it keeps its checkpoint. One that has ended stays as it is."""
    from backend import submission

    with open_store() as (settings, store):
        job = submission.cancel(store, settings, parse_id(id))
    if json:
        print_json(job)
    else:
        note(f"{job.kind} {job.state}")


@app.command("retry")
def retry_job(
    id: Id,
    resume: Annotated[bool, typer.Option("--resume", help="From its last checkpoint.")] = False,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """Queue a new job that does the same; the old one stays as it is."""
    _again(parse_id(id), resume=resume, follow=follow, json=json)


@app.command("resume")
def resume_job(id: Id, follow: Follow = False, json: Json = False) -> None:
    """Queue a new job that goes on from the last checkpoint of an ended one."""
    _again(parse_id(id), resume=True, follow=follow, json=json)


def _again(id: UUID, *, resume: bool, follow: bool, json: bool) -> None:
    from backend import submission

    with open_store() as (settings, store):
        job = submission.retry(store, settings, id, resume=resume)
        if follow:
            require_workers(job.kind, job.kind)
            attach(settings, store, job, json=json)
        else:
            show_queued(job, json=json)
