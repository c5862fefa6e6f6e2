"""What jobs measured of models: results of analyses, runs of ReMem and KDEP, and candidates for a teacher, as records.

An analysis holds one item a model. Of several results about the same thing the newest counts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import Connection, select

from backend.domain.analyses import AnalysisName
from backend.domain.errors import NotFound
from backend.domain.jobs import Job, JobState
from backend.domain.kdep import CompactnessResult, EmbeddingResult, KdepResult, LogmeResult
from backend.domain.pareto import pareto_front
from backend.domain.records import Record, content_hash, parted
from backend.domain.remem_results import CriticalityResult, ExpertnessResult, InformationResult, RememResult
from backend.store.job_records import moment
from backend.store.queries import jobs as job_queries
from backend.store.tables import datasets as dataset_table
from backend.store.tables import evaluations as evaluation_table
from backend.store.tables import jobs as job_table
from backend.store.tables import models as model_table

RECORDS: dict[AnalysisName, type[Record]] = {
    "expertness": ExpertnessResult,
    "information": InformationResult,
    "criticality": CriticalityResult,
    "compactness": CompactnessResult,
    "logme": LogmeResult,
    "embedding": EmbeddingResult,
}
MOST_JOBS = 500

T = TypeVar("T", bound=Record)
_c = job_table.c


@dataclass(frozen=True)
class Measured(Generic[T]):
    """One model's result of an analysis. `images` names the images it was measured on, `sample_ids` by position."""

    job_id: UUID
    model: str
    dataset: str
    split: str
    n_images: int
    finished_at: datetime | None
    sample_ids: dict[str, str]
    result: T


@dataclass(frozen=True)
class PlaneModel:
    """A model on the information plane of a split: its error there, its excess, and a student it taught."""

    model: str
    family: str
    job_id: UUID
    teacher_error: float
    information: InformationResult
    student: str | None = None
    student_error: float | None = None
    on_front: bool = False


@dataclass(frozen=True)
class Plane:
    """Models whose information may be compared: same images, same feature size, same decoder and training."""

    key: str
    dataset: str
    split: str
    members: tuple[PlaneModel, ...]


@dataclass(frozen=True)
class CandidateTeacher:
    """A candidate's scores side by side; None where one was not measured."""

    model: str
    family: str
    accuracy: float | None
    compactness: float | None
    logme: float | None


@dataclass(frozen=True)
class Run:
    """A finished job in a list: what it was about, without its result; whether it was asked for expertness too."""

    job_id: UUID
    subject: str
    finished_at: datetime | None
    expertness: bool = False


def measured(
    connection: Connection,
    analysis: AnalysisName,
    *,
    dataset: str | None = None,
    split: str | None = None,
    model: str | None = None,
    by: Callable[[Record], Hashable] | None = None,
) -> list[Measured[Any]]:
    """Results of an analysis, the newest first; one for each (data set, split, model), or what `by` tells apart."""
    found: dict[Hashable, Measured[Any]] = {}
    record = RECORDS[analysis]
    wanted: tuple[Any, ...] = (_c.spec["analysis"].as_string() == analysis,)
    if dataset is not None:
        wanted += (_c.spec["dataset"].as_string() == dataset,)
    for job in _finished(connection, "analysis", *wanted):
        result = job.result or {}
        if split is not None and result.get("split") != split:
            continue
        for item in result.get("items", ()):
            if model is not None and item.get("model") != model:
                continue
            one = record.model_validate(item)
            entry = Measured(
                job_id=job.id,
                model=str(item["model"]),
                dataset=str(result["dataset"]),
                split=str(result["split"]),
                n_images=int(result["n_images"]),
                finished_at=job.finished_at,
                sample_ids=dict(result.get("sample_ids") or {}),
                result=one,
            )
            key = (entry.dataset, entry.split, entry.model, by(one) if by is not None else None)
            found.setdefault(key, entry)
    return list(found.values())


def planes(connection: Connection) -> list[Plane]:
    """Information planes over catalogued models, the one with the most models first.

    A model stands on one if its information and its accuracy on the same split are known. Only comparable results share
    a plane. Of the students a model taught alone on that data set, the one that most of the plane's models taught.
    """
    groups: dict[str, list[Measured[InformationResult]]] = {}
    for entry in measured(connection, "information", by=_conditions):
        groups.setdefault(_conditions(entry.result), []).append(entry)
    found = []
    taught: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for key, entries in groups.items():
        board = (entries[0].dataset, entries[0].split)
        errors = {name: 1 - accuracy for name, accuracy in _accuracies(connection, *board).items()}
        families = _families(connection, [one.model for one in entries])
        members = [
            PlaneModel(
                model=one.model,
                family=families.get(one.model, "unknown"),
                job_id=one.job_id,
                teacher_error=errors[one.model],
                information=one.result,
            )
            for one in entries
            if one.model in errors
        ]
        if members:
            if board not in taught:
                taught[board] = _taught(connection, *board)
            members = _with_students(members, taught[board])
            found.append(Plane(key, *board, tuple(_with_front(members))))
    return sorted(found, key=lambda plane: (-len(plane.members), plane.key))


def candidates(connection: Connection, dataset: str, split: str) -> list[CandidateTeacher]:
    """Models with a compactness or LogME on a split, beside their accuracy there; by name."""
    compactness = {one.model: one.result for one in measured(connection, "compactness", dataset=dataset, split=split)}
    evidence = {one.model: one.result for one in measured(connection, "logme", dataset=dataset, split=split)}
    names = sorted(compactness.keys() | evidence.keys())
    accuracy, families = _accuracies(connection, dataset, split), _families(connection, names)
    return [
        CandidateTeacher(
            model=name,
            family=families.get(name, "unknown"),
            accuracy=accuracy.get(name),
            compactness=compactness[name].compactness if name in compactness else None,
            logme=evidence[name].logme if name in evidence else None,
        )
        for name in names
    ]


def remem_runs(connection: Connection) -> list[Run]:
    """Finished ReMem jobs, the newest first."""
    statement = select(_c.id, _c.spec, _c.finished_at).where(_c.kind == "remem", _c.state == JobState.SUCCEEDED.value)
    rows = connection.execute(statement.order_by(_c.finished_at.desc(), _c.id).limit(MOST_JOBS))
    return [
        Run(
            row.id,
            _remem_subject(row.spec),
            moment(row.finished_at),
            bool((row.spec.get("params") or {}).get("expertness")),
        )
        for row in rows
    ]


def remem(connection: Connection, id: UUID) -> tuple[RememResult, dict[str, Any]]:
    """A run's record, and the rest of its result (what it published, its provenance).

    Raises:
        NotFound: no such ReMem job, or it has not succeeded.
    """
    job = job_queries.job(connection, id)
    if job.kind != "remem" or job.result is None:
        raise NotFound("ReMem run", str(id), "the list has the runs that succeeded")
    return parted(RememResult, job.result)


def kdep_runs(connection: Connection, dataset: str | None = None) -> list[tuple[Run, KdepResult]]:
    """Finished KDEP jobs with their records, the newest first."""
    wanted = () if dataset is None else (_c.spec["dataset"].as_string() == dataset,)
    found = []
    for job in _finished(connection, "kdep", *wanted):
        result, _ = parted(KdepResult, job.result or {})
        found.append((Run(job.id, result.model, job.finished_at), result))
    return found


def _finished(connection: Connection, kind: str, *conditions: Any) -> list[Job]:
    statement = select(_c.id).where(_c.kind == kind, _c.state == JobState.SUCCEEDED.value, *conditions)
    ids = list(connection.execute(statement.order_by(_c.finished_at.desc(), _c.id).limit(MOST_JOBS)).scalars())
    return [job_queries.job(connection, id) for id in ids]


def _remem_subject(spec: dict[str, Any]) -> str:
    student = spec.get("student")
    arrow = f" → {student}" if student else ""
    return f"{spec['model']}{arrow} on {spec['dataset']}"


def _conditions(result: Record) -> str:
    """Equal for results that `InformationResult.differences` finds comparable."""
    told = result.model_dump(mode="json")
    for name in ("model", "loss_nats", "floor_nats", "excess_nats", "seed", "cached"):
        del told[name]
    return content_hash(told)[:16]


def _accuracies(connection: Connection, dataset: str, split: str) -> dict[str, float]:
    """Accuracy of every model on a split: of several evaluations the one with most samples, then the newest."""
    e = evaluation_table.c
    statement = (
        select(model_table.c.name, e.accuracy)
        .join(model_table, model_table.c.id == e.model_id)
        .join(dataset_table, dataset_table.c.id == e.dataset_id)
        .where(dataset_table.c.name == dataset, e.split == split, e.state == "ready", e.accuracy.is_not(None))
        .order_by(e.n_samples, e.created_at)
    )
    return {row.name: float(row.accuracy) for row in connection.execute(statement)}


def _families(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    m = model_table.c
    return {row.name: row.family for row in connection.execute(select(m.name, m.family).where(m.name.in_(names)))}


def _taught(connection: Connection, dataset: str, split: str) -> dict[str, dict[str, float]]:
    """Student → teacher → the student's lowest error after a transfer from that teacher alone."""
    # The numbers are taken out by the database: results of thousands of transfers are many megabytes.
    after = _c.result["student_accuracy_after"].as_float()
    statement = select(_c.spec["teachers"].label("teachers"), _c.result["student"].as_string(), after).where(
        _c.kind == "transfer",
        _c.state == JobState.SUCCEEDED.value,
        _c.spec["dataset"].as_string() == dataset,
        _c.result["split"].as_string() == split,
        after.is_not(None),
    )
    found: dict[str, dict[str, float]] = {}
    for teachers, student, accuracy in connection.execute(statement):
        if len(teachers) == 1:
            by_teacher = found.setdefault(str(student), {})
            by_teacher[teachers[0]] = min(1 - float(accuracy), by_teacher.get(teachers[0], 1.0))
    return found


def _with_students(members: list[PlaneModel], taught: dict[str, dict[str, float]]) -> list[PlaneModel]:
    """Sizes mean something only for one and the same student: the one that most members taught."""
    names = {one.model for one in members}
    shared = {student: len(names & by_teacher.keys()) for student, by_teacher in taught.items()}
    student = max(shared, key=lambda name: (shared[name], name), default=None)
    if student is None or not shared[student]:
        return members
    errors = taught[student]
    return [
        replace(one, student=student, student_error=errors[one.model]) if one.model in errors else one
        for one in members
    ]


def _with_front(members: list[PlaneModel]) -> list[PlaneModel]:
    front = set(pareto_front([(one.teacher_error, one.information.excess_nats) for one in members]))
    return [replace(one, on_front=i in front) for i, one in enumerate(members)]
