"""The one door from pages to what is stored: every question a page asks, answered with records.

Nothing here writes. Pages and figures import the records' types from here or from `backend.domain`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from backend import studies as study_files
from backend import thumbnails
from backend.domain.analyses import AnalysisName
from backend.domain.catalog import Model
from backend.domain.datasets import Dataset
from backend.domain.errors import BadInput, NotFound
from backend.domain.evaluations import Evaluation
from backend.domain.flips import class_flips
from backend.domain.jobs import Artifact, Job, JobEvent
from backend.domain.kdep import KdepResult
from backend.domain.kdep_studies import KdepTable
from backend.domain.pairs import ClassFlips, FlippedSample, Pair, PairDetail, class_q_values, class_records
from backend.domain.remem_results import RememResult
from backend.domain.similarity import embedding_table
from backend.domain.study_summary import StudyRow, StudyTable, study_row, with_controls
from backend.settings import Settings
from backend.store import artifacts as artifact_store
from backend.store import catalog, workers
from backend.store.queries import analyses, board_columns, density, flipped, job_table
from backend.store.queries import catalog as catalog_queries
from backend.store.queries import jobs as job_queries
from backend.store.queries import pairs as pair_queries
from backend.store.queries import zoo as zoo_queries
from backend.store.queries.analyses import CandidateTeacher, Measured, Plane, PlaneModel, Run
from backend.store.queries.board_columns import Columns
from backend.store.queries.boards import Boards
from backend.store.queries.density import Density, HeatMap, PairFilter, Positions
from backend.store.queries.job_table import JobRow
from backend.store.queries.jobs import Study
from backend.store.queries.paging import Page
from backend.store.queries.pairs import Board
from backend.store.queries.zoo import ZooRow
from backend.store.session import Store
from backend.store.workers import Worker

__all__ = [
    "Board",
    "CandidateTeacher",
    "ClassTable",
    "Columns",
    "Density",
    "HeatMap",
    "JobRow",
    "Measured",
    "PairFilter",
    "Plane",
    "PlaneModel",
    "Positions",
    "Reads",
    "Run",
    "Study",
    "Worker",
    "ZooRow",
]

WORKER_SEEN_S = 120.0
MAX_PICTURE_BYTES = 5_000_000
MOST_REMEM_KEPT = 64


class ClassTable:
    """Flips of one pair per class: the records, largest share first; q-values and counts by class index."""

    def __init__(self, pair: flipped.Compared) -> None:
        counts = class_flips(pair.teacher_right, pair.student_right, pair.labels, max(1, pair.n_classes))
        self.records: list[ClassFlips] = class_records(counts, pair.class_names())
        self.q_values = class_q_values(counts)
        self.positive = counts.positive
        self.names = pair.class_names()


class Reads:
    """Questions to one store."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings = store, settings
        self.remem_cache: dict[UUID, tuple[RememResult, dict[str, Any]]] = {}
        self.boards_cache = Boards(store, settings.data_dir / "cache" / "boards")

    # --- catalog ---------------------------------------------------------------------------------------------------

    def boards(self) -> list[Board]:
        """Splits on which models were scored."""
        with self.store.read() as connection:
            return pair_queries.boards(connection)

    def board(self, dataset: str = "", split: str = "") -> Board | None:
        """The board that is meant: the one named, else the first of that data set, else the first; None without any.

        Raises:
            NotFound: a data set or split on which nothing was scored.
        """
        found = self.boards()
        if not dataset:
            return found[0] if found else None
        matching = [one for one in found if one.dataset == dataset and (not split or one.split == split)]
        if not matching:
            known = ", ".join(f"{one.dataset}/{one.split}" for one in found) or "nothing yet"
            raise NotFound("board", f"{dataset}/{split}" if split else dataset, f"models were scored on: {known}")
        return matching[0]

    def dataset(self, name: str) -> Dataset:
        with self.store.read() as connection:
            return catalog.get_dataset(connection, name)

    def datasets(self) -> list[Dataset]:
        with self.store.read() as connection:
            return list(catalog_queries.datasets(connection, limit=200).items)

    def model(self, name: str) -> Model:
        with self.store.read() as connection:
            return catalog.get_model(connection, name)

    def models(self, names: Sequence[str]) -> dict[str, Model]:
        """Entries by name; names that are gone are left out."""
        with self.store.read() as connection:
            known = set(catalog.model_names(connection))
            return {model.name: model for model in catalog.get_models(connection, [n for n in names if n in known])}

    def students_of(self, name: str) -> list[ZooRow]:
        """Models that were made from this one."""
        wanted = {"student": {"filterType": "text", "type": "equals", "filter": name}}
        with self.store.read() as connection:
            return zoo_queries.zoo(connection, filters=wanted, limit=200)[0]

    def evaluations(self, model: str) -> list[Evaluation]:
        with self.store.read() as connection:
            return list(catalog_queries.evaluations(connection, model=model, limit=200).items)

    def zoo(
        self,
        board: Board | None,
        *,
        search: str = "",
        filters: Mapping[str, Any] | None = None,
        sort: Sequence[Mapping[str, Any]] | None = None,
        offset: int = 0,
        limit: int = 100,
    ) -> tuple[list[ZooRow], int]:
        with self.store.read() as connection:
            return zoo_queries.zoo(
                connection,
                dataset=board.dataset if board else None,
                split=board.split if board else None,
                search=search,
                filters=filters,
                sort=sort,
                offset=offset,
                limit=limit,
            )

    # --- pairs -----------------------------------------------------------------------------------------------------

    def columns(self, board: Board, *, wait: bool = False) -> Columns | None:
        """All pairs of a board in memory; None while a big one is read for the first time."""
        return self.boards_cache.columns(board, wait=wait)

    def chosen(self, columns: Columns, wanted: PairFilter, sort: tuple[str, bool] | None = None) -> Positions:
        return self.boards_cache.chosen(columns, wanted, sort)

    def pair_records(self, columns: Columns, positions: Positions) -> list[Pair]:
        return board_columns.pair_records(columns, positions)

    def first_pairs(self, board: Board, wanted: PairFilter, sort: str, count: int) -> list[Pair]:
        """The first pairs straight from SQL, for the time in which a big board is being read."""
        with self.store.read() as connection:
            try:
                page = pair_queries.pairs(
                    connection,
                    dataset=board.dataset,
                    split=board.split,
                    teacher=wanted.teacher or None,
                    student=wanted.student or None,
                    ranges=wanted.ranges,
                    sort=sort,
                    limit=min(count, 200),
                )
            except NotFound:
                return []
        return list(page.items)

    def density(self, columns: Columns, chosen: Positions, x: str, y: str, view: density.View) -> Density:
        return density.density(columns, chosen, x, y, view)

    def inside(self, columns: Columns, chosen: Positions, x: str, y: str, view: density.View) -> Positions:
        return density.inside(columns, chosen, x, y, view)

    def extent(self, columns: Columns, chosen: Positions, x: str, y: str) -> density.View:
        return density.extent(columns, chosen, x, y)

    def sample(self, positions: Positions, most: int) -> Positions:
        return density.sample(positions, most)

    def heat_map(self, columns: Columns, chosen: Positions, value: str) -> HeatMap:
        return density.heat_map(columns, chosen, value)

    def pair(self, teacher: str, student: str, dataset: str, split: str) -> PairDetail:
        with self.store.read() as connection:
            return pair_queries.pair(connection, teacher, student, dataset=dataset or None, split=split or None)

    def pair_boards(self, teacher: str, student: str) -> list[Board]:
        """Boards on which both were scored.

        Raises:
            NotFound: an unknown name.
        """
        with self.store.read() as connection:
            scored = []
            for name in (teacher, student):
                found = catalog_queries.evaluations(connection, model=name, state="ready", limit=200)
                scored.append({(one.dataset, one.split) for one in found.items})
            return [one for one in pair_queries.boards(connection) if (one.dataset, one.split) in scored[0] & scored[1]]

    def class_table(self, detail: PairDetail) -> ClassTable:
        """Flips per class of one pair."""
        return ClassTable(self._compared(detail))

    def samples(
        self, detail: PairDetail, *, kind: str, class_index: int | None, limit: int, cursor: str | None = None
    ) -> Page[FlippedSample]:
        """A page of a pair's samples of one kind.

        Raises:
            BadInput: a class that the data set does not have, or a cursor of another question.
        """
        return flipped.samples(
            self.store,
            self.settings,
            detail.teacher,
            detail.student,
            dataset=detail.dataset,
            split=detail.split,
            kind=kind,
            class_index=class_index,
            limit=limit,
            cursor=cursor,
        )

    def class_names(self, dataset: str) -> list[str]:
        return list(self.dataset(dataset).class_names)

    def has_thumbnails(self, dataset: str, split: str) -> bool:
        found = self.dataset(dataset).splits.get(split)
        return found is not None and bool(thumbnails.packed_ids(self.settings, found.fingerprint))

    def embedding(self, dataset: str) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """The embedding table [C, E] of a data set's classes, where somebody put one; NaN rows have none.

        Looked for under `<data directory>/embeddings/`: `<data set>.npz`, else `<label space>.npz`, with `vectors`
        [K, E] and, unless there is one a class, `classes` [K].

        Raises:
            BadInput: a file of another shape.
        """
        entry = self.dataset(dataset)
        for name in (entry.name, entry.label_space):
            path = self.settings.data_dir / "embeddings" / f"{name}.npz"
            if name and path.is_file():
                return _embedding(path, path.stat().st_mtime, entry.n_classes)
        return None

    def _compared(self, detail: PairDetail) -> flipped.Compared:
        return flipped.compared(
            self.store, self.settings, detail.teacher, detail.student, dataset=detail.dataset, split=detail.split
        )

    # --- jobs and studies ------------------------------------------------------------------------------------------

    def job(self, id: UUID) -> Job:
        with self.store.read() as connection:
            return job_queries.job(connection, id)

    def job_rows(self, **wanted: Any) -> tuple[list[JobRow], int]:
        with self.store.read() as connection:
            return job_table.job_rows(connection, **wanted)

    def job_kinds(self) -> list[str]:
        with self.store.read() as connection:
            return job_table.kinds(connection)

    def any_open_job(self) -> bool:
        with self.store.read() as connection:
            return job_table.any_open(connection)

    def subject(self, job: Job) -> str:
        return job_table.subject(job.kind, job.spec)

    def children(self, id: UUID) -> dict[str, int]:
        """How many children of a study are in each state."""
        with self.store.read() as connection:
            return {state.value: count for state, count in job_queries.children(connection, id).items()}

    def log(self, id: UUID, count: int = 300) -> list[JobEvent]:
        with self.store.read() as connection:
            return job_table.log_tail(connection, id, count)

    def metrics(self, id: UUID) -> list[JobEvent]:
        with self.store.read() as connection:
            return job_table.metric_events(connection, id)

    def artifacts(self, id: UUID) -> list[Artifact]:
        with self.store.read() as connection:
            return list(job_queries.artifacts(connection, job_id=id, limit=200).items)

    def made_models(self, id: UUID) -> list[str]:
        with self.store.read() as connection:
            return job_table.made_models(connection, id)

    def retries(self, id: UUID) -> list[UUID]:
        with self.store.read() as connection:
            return job_table.retries_of(connection, id)

    def has_checkpoint(self, id: UUID) -> bool:
        with self.store.read() as connection:
            return job_table.has_checkpoint(connection, id)

    def owner_of(self, id: UUID) -> str:
        with self.store.read() as connection:
            return job_queries.owner_of(connection, id)

    def workers(self) -> list[Worker]:
        with self.store.read() as connection:
            return workers.list_workers(connection, seen_within_s=WORKER_SEEN_S)

    def transfers(self, teacher: str, student: str, dataset: str | None = None) -> list[Job]:
        with self.store.read() as connection:
            return job_table.transfers(connection, teacher=teacher, student=student, dataset=dataset)

    def transfer_rows(self, dataset: str | None = None) -> list[StudyRow]:
        """Every transfer that succeeded, whoever asked for it, with its control's Δ."""
        with self.store.read() as connection:
            jobs = job_table.finished_transfers(connection)
        rows = []
        for job in jobs:
            if job.result is None or (dataset and job.result.get("dataset") != dataset):
                continue
            method = job.spec["method"]
            parts = [method["method"], *(str(method[name]) for name in ("partition",) if name in method)]
            label = " ".join(parts) if job.result.get("teacher_names") else f"control {method['method']}"
            rows.append(study_row(str(job.id), label, method, job.result))
        by_id = {str(job.id): job for job in jobs}
        return [_own_control(row, by_id) for row in with_controls(rows)]

    def transfer_datasets(self) -> dict[str, str]:
        """The data set of every finished transfer, by job id."""
        with self.store.read() as connection:
            jobs = job_table.finished_transfers(connection)
        return {str(job.id): str(job.spec.get("dataset")) for job in jobs}

    def studies(self) -> list[Study]:
        with self.store.read() as connection:
            return list(job_queries.studies(connection, limit=100).items)

    def study(self, id: UUID) -> Study:
        with self.store.read() as connection:
            return job_queries.study(connection, id)

    def study_table(self, id: UUID) -> StudyTable | KdepTable:
        with self.store.read() as connection:
            return study_files.study_table(connection, id)

    # --- what was measured of models -------------------------------------------------------------------------------

    def measured(self, analysis: AnalysisName, **wanted: str | None) -> list[Measured[Any]]:
        """Results of an analysis, the newest of each model on each split first."""
        with self.store.read() as connection:
            return analyses.measured(connection, analysis, **wanted)  # type: ignore[arg-type]

    def planes(self) -> list[Plane]:
        with self.store.read() as connection:
            return analyses.planes(connection)

    def candidates(self, dataset: str, split: str) -> list[CandidateTeacher]:
        with self.store.read() as connection:
            return analyses.candidates(connection, dataset, split)

    def remem_runs(self) -> list[Run]:
        with self.store.read() as connection:
            return analyses.remem_runs(connection)

    def remem(self, id: UUID) -> tuple[RememResult, dict[str, Any]]:
        """A finished ReMem run; its result never changes, so that the last ones read are kept."""
        if id not in self.remem_cache:
            with self.store.read() as connection:
                found = analyses.remem(connection, id)
            if len(self.remem_cache) >= MOST_REMEM_KEPT:
                self.remem_cache.clear()
            self.remem_cache[id] = found
        return self.remem_cache[id]

    def kdep_runs(self, dataset: str | None = None) -> list[tuple[Run, KdepResult]]:
        with self.store.read() as connection:
            return analyses.kdep_runs(connection, dataset)

    def pictures(self, id: UUID, prefix: str) -> dict[str, Artifact]:
        """The pictures that a job published under a prefix of their names, by name."""
        found: dict[str, Artifact] = {}
        cursor = None
        with self.store.read() as connection:
            while True:
                page = job_queries.artifacts(connection, job_id=id, limit=200, cursor=cursor)
                found |= {one.name: one for one in page.items if one.name.startswith(prefix)}
                cursor = page.next_cursor
                if cursor is None:
                    return found

    def picture(self, id: UUID) -> bytes:
        """The bytes of a published PNG.

        Raises:
            NotFound: no such artifact, none that is a PNG, or its file is gone.
        """
        with self.store.read() as connection:
            artifact = job_queries.artifact(connection, id)
        if artifact.media_type != "image/png" or artifact.size > MAX_PICTURE_BYTES:
            raise NotFound("picture", str(id), "that artifact is no picture")
        try:
            return artifact_store.read(artifact.uri, artifact.sha256)
        except FileNotFoundError:
            raise NotFound("picture", str(id), "its file is gone from the artifact store") from None

    def thumbnail_links(self, dataset: str, split: str, sample_ids: Sequence[str]) -> dict[str, str]:
        """Where the pictures of samples are served, for those that have one."""
        found = self.dataset(dataset).splits.get(split)
        if found is None:
            return {}
        packed = thumbnails.packed_ids(self.settings, found.fingerprint)
        return {one: flipped.thumbnail_path(dataset, split, one) for one in sample_ids if one in packed}


def _own_control(row: StudyRow, jobs: Mapping[str, Job]) -> StudyRow:
    """A transfer that trained its own control has its Δ in its result."""
    result = jobs[row.job_id].result or {}
    if row.control_delta is None and result.get("control_delta") is not None:
        above = row.transfer_delta - result["control_delta"]
        return row.model_copy(update={"control_delta": result["control_delta"], "delta_above_control": above})
    return row


@lru_cache(maxsize=8)
def _embedding(path: Path, changed: float, n_classes: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            vectors = np.asarray(stored["vectors"], dtype=np.float64)
            classes = stored["classes"].tolist() if "classes" in stored else list(range(len(vectors)))
    except (OSError, ValueError, KeyError) as error:
        raise BadInput("embeddings", path.name, f"an npz file with `vectors` [K, E] ({error})") from None
    if vectors.ndim != 2 or len(classes) != len(vectors):
        raise BadInput("embeddings", path.name, "`vectors` [K, E], and `classes` [K] where K is not all classes")
    return embedding_table({int(c): vector for c, vector in zip(classes, vectors, strict=True)}, n_classes)


def as_id(text: str, kind: str = "job") -> UUID:
    """A UUID from an address.

    Raises:
        NotFound: no id at all.
    """
    try:
        return UUID(text)
    except ValueError:
        raise NotFound(kind, text, "an id looks like 0b3c1f0e-…; see the list") from None


def to_json(record: Any) -> str:
    """Indented JSON of a stored value."""
    return json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)
