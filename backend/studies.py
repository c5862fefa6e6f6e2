"""Studies between file, store and table: read the YAML, leave out what an earlier run already made, gather the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from pydantic import ValidationError
from sqlalchemy import Connection

from backend.domain.errors import BadInput, Conflict, NotFound
from backend.domain.jobs import TERMINAL, Job, JobState
from backend.domain.kdep_studies import KdepStudySpec, KdepTable, is_kdep_study
from backend.domain.records import bad_input, canonical_json
from backend.domain.specs import FinetuneSpec, dump_spec
from backend.domain.studies import StudyChild, StudySpec, named_pairs, plan_study
from backend.domain.study_pairs import summarise_pairs
from backend.domain.study_summary import MOST_PAIRS, StudyTable, study_row, summarise
from backend.settings import Settings
from backend.store import catalog, job_reads, jobs
from backend.store.queries import flipped
from backend.store.queries import pairs as pair_queries
from backend.store.session import Store

MAX_FILE_BYTES = 1_000_000


def load(path: Path) -> StudySpec | KdepStudySpec:
    """The study a YAML file describes.

    Raises:
        BadInput: no YAML, or a field that is wrong; named.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadInput("file", str(path), f"a study file of at most {MAX_FILE_BYTES} bytes")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BadInput("file", str(path), f"a YAML file ({reason})") from None
    if is_kdep_study(content):
        from backend.kdep_studies import parse_kdep_study

        return parse_kdep_study(content)
    return parse(content)


def parse(content: Any) -> StudySpec:
    """The checked spec of a study.

    Raises:
        BadInput: names the first field that is wrong.
    """
    if not isinstance(content, dict):
        raise BadInput("study", content, "a mapping with name, dataset, models or zoo, and methods")
    try:
        spec = StudySpec.model_validate(content)
    except ValidationError as error:
        raise bad_input(error, "study") from None
    plan_study(spec)
    return spec


def children_to_run(connection: Connection, spec: StudySpec) -> list[StudyChild]:
    """The study's jobs without the trainings whose result is in the catalog already, made by the same spec.

    Raises:
        Conflict: the catalog has another model of a name that the study would make.
    """
    planned = plan_study(spec)
    made = {child.key for child in planned if _is_made(connection, child)}
    # The untrained base of a model that is there is not needed either.
    bases = {
        f"model/{child.spec.model}" for child in planned if child.key in made and isinstance(child.spec, FinetuneSpec)
    }
    gone = made | bases
    return [
        StudyChild(child.key, child.kind, child.spec, tuple(key for key in child.after if key not in gone))
        for child in planned
        if child.key not in gone
    ]


def study_table(connection: Connection, study_id: UUID) -> StudyTable | KdepTable:
    """Rows and summaries of a study as far as it is; a retried study counts what its earlier tries finished.

    Raises:
        NotFound: no such study.
    """
    job = jobs.get(connection, study_id)
    if job.kind != "study":
        raise NotFound("study", str(study_id), f"that job is a {job.kind}")
    if is_kdep_study(job.spec):
        from backend.kdep_studies import kdep_study_table

        return kdep_study_table(connection, study_id)
    spec = parse(job.spec)
    labels = {
        canonical_json(dump_spec(child.spec)): child.key for child in plan_study(spec) if child.kind == "transfer"
    }
    latest: dict[str, Job] = {}
    tries: list[Job] = [job]
    while tries[-1].retry_of is not None:
        tries.append(jobs.get(connection, tries[-1].retry_of))
    for one in reversed(tries):
        for child in job_reads.children_of(connection, one.id):
            if child.kind == "transfer":
                latest[canonical_json(child.spec)] = child
    order = {key: number for number, key in enumerate(labels)}
    rows, failed, waiting = [], 0, 0
    for text, child in sorted(latest.items(), key=lambda item: order.get(item[0], len(order))):
        if child.state is JobState.SUCCEEDED and child.result is not None:
            label = labels.get(text, child.spec["method"]["method"]).split(" | ")[0]
            rows.append(study_row(str(child.id), label, child.spec["method"], child.result))
        elif child.state in TERMINAL:
            failed += 1
        else:
            waiting += 1
    return _with_pairs(connection, spec, summarise(rows, failed, waiting))


def study_top_classes(
    store: Store, settings: Settings, study_id: UUID, ps: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Fig. 2 as rows: for every pair of a study and every p the top-p classes and how alike they are.

    Raises:
        NotFound: no such study.
    """
    with store.read() as connection:
        job = jobs.get(connection, study_id)
        if job.kind != "study" or is_kdep_study(job.spec):
            raise NotFound("study", str(study_id), "a study of pairs or transfers")
        table = study_table(connection, study_id)
    assert isinstance(table, StudyTable)
    for pair in table.pairs:
        tops = flipped.top_classes(
            store, settings, pair.teacher, pair.student, ps, dataset=pair.dataset, split=pair.split
        )
        for top in tops:
            values = top.model_dump(mode="json", exclude={"class_indices", "class_names"})
            yield {"teacher": pair.teacher, "student": pair.student, **values}


def _with_pairs(connection: Connection, spec: StudySpec, table: StudyTable) -> StudyTable:
    """The table with the pairs that the study's scan has counted."""
    if not spec.scan:
        return table
    try:
        dataset = catalog.get_dataset(connection, spec.dataset)
    except NotFound:
        return table
    wanted = named_pairs(spec)
    found = pair_queries.chosen_pairs(connection, dataset.name, dataset.evaluation_split(spec.split), wanted)
    shown = tuple(found) if len(found) <= MOST_PAIRS else ()
    summary = summarise_pairs(found, n_missing=len(wanted) - len(found))
    return table.model_copy(update={"pairs": shown, "pair_summary": summary})


def _is_made(connection: Connection, child: StudyChild) -> bool:
    spec = child.spec
    if not isinstance(spec, FinetuneSpec) or spec.save_as is None:
        return False
    try:
        model = catalog.get_model(connection, spec.save_as)
    except NotFound:
        return False
    if model.lineage is not None:
        maker = jobs.get(connection, model.lineage.job_id)
        if canonical_json(maker.spec) == canonical_json(dump_spec(spec)):
            return True
    raise Conflict(f"zoo: there is another model named {spec.save_as!r}; rename it in the study")
