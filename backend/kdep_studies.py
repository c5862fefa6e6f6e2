"""KDEP studies between file, store and table: read the YAML, submit its tree of jobs, gather the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import Connection

from backend.domain.errors import Conflict, NotFound
from backend.domain.jobs import TERMINAL, Job, JobState
from backend.domain.kdep_studies import (
    KdepRow,
    KdepStudySpec,
    KdepTable,
    is_kdep_study,
    kdep_row,
    method_labels,
    plan_kdep_study,
    summarise_kdep,
)
from backend.domain.records import bad_input, canonical_json
from backend.domain.specs import dump_spec
from backend.settings import Settings
from backend.store import catalog, job_reads, jobs
from backend.store.session import Store
from backend.submission import Child, Submitted, submit_study


def parse_kdep_study(content: Mapping[str, Any]) -> KdepStudySpec:
    """The checked spec.

    Raises:
        BadInput: names the first field that is wrong.
    """
    try:
        spec = KdepStudySpec.model_validate({key: value for key, value in content.items() if key != "kind"})
    except ValidationError as error:
        raise bad_input(error, "study") from None
    plan_kdep_study(spec)
    return spec


def submit_kdep_study(store: Store, settings: Settings, spec: KdepStudySpec, **options: Any) -> Submitted:
    """Queue the study's jobs under one parent; data sets and models that the catalog has already are not made again.

    Args:
        options: As of `submit_study`: priority, after, owner, idempotency_key.
    """
    planned = plan_kdep_study(spec)
    with store.read() as connection:
        there = {child.key for child in planned if child.kind == "register" and _exists(connection, child.spec)}
    children = [
        Child(child.key, child.kind, child.spec, tuple(key for key in child.after if key not in there))
        for child in planned
        if child.key not in there
    ]
    return submit_study(store, settings, spec.model_dump(mode="json"), children, derived=True, **options)


def _exists(connection: Connection, spec: Any) -> bool:
    """Whether the catalog has what a registration would add.

    Raises:
        Conflict: it has another model of that name.
    """
    try:
        if spec.model is None:
            catalog.get_dataset(connection, spec.dataset.name)
            return True
        found = catalog.get_model(connection, spec.model.name)
    except NotFound:
        return False
    fixed = ("architecture", "kwargs", "pretrained", "init_seed")
    if any(getattr(found, name) != getattr(spec.model, name) for name in fixed):
        raise Conflict(f"study: there is another model named {spec.model.name!r}; rename it in the study")
    return True


def kdep_study_table(connection: Connection, study_id: UUID) -> KdepTable:
    """Rows and summaries of a KDEP study as far as it is; a retried study counts what its earlier tries finished.

    Raises:
        NotFound: no such study.
    """
    job = jobs.get(connection, study_id)
    if job.kind != "study" or not is_kdep_study(job.spec):
        raise NotFound("study", str(study_id), f"that job is a {job.kind} without a KDEP study")
    spec = parse_kdep_study(job.spec)
    labels = {canonical_json(dump_spec(one.spec)): one.key for one in plan_kdep_study(spec) if one.kind == "kdep"}
    methods = method_labels(spec)
    tries: list[Job] = [job]
    while tries[-1].retry_of is not None:
        tries.append(jobs.get(connection, tries[-1].retry_of))
    latest: dict[str, Job] = {}
    for one in reversed(tries):
        for child in job_reads.children_of(connection, one.id):
            if child.kind == "kdep":
                latest[canonical_json(child.spec)] = child
    rows: list[KdepRow] = []
    failed = waiting = 0
    for text, key in labels.items():
        if text not in latest:
            continue
        state, result = latest[text].state, latest[text].result
        if state is JobState.SUCCEEDED and result is not None:
            label = key.split(" | ")[0]
            rows.append(
                kdep_row(
                    str(latest[text].id),
                    label,
                    latest[text].spec,
                    result,
                    method=methods.get(label),
                    job_s=_seconds(latest[text]),
                )
            )
        elif state in TERMINAL:
            failed += 1
        else:
            waiting += 1
    return summarise_kdep(rows, failed, waiting)


def _seconds(job: Job) -> float | None:
    """From its first start to its end, waiting between attempts included."""
    if job.started_at is None or job.finished_at is None:
        return None
    return (job.finished_at - job.started_at).total_seconds()
