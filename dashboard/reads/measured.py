"""What jobs measured of models: analyses, information planes, runs of ReMem and KDEP, and the pictures they drew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from backend import thumbnails
from backend.domain.analyses import AnalysisName
from backend.domain.errors import NotFound
from backend.domain.jobs import Artifact
from backend.domain.kdep import KdepResult
from backend.domain.remem_results import RememResult
from backend.store import artifacts as artifact_store
from backend.store.queries import analyses, flipped
from backend.store.queries import jobs as job_queries
from backend.store.queries.analyses import CandidateTeacher, Measured, Plane, Run
from dashboard.reads.catalog import CatalogReads

MAX_PICTURE_BYTES = 5_000_000


class MeasuredReads(CatalogReads):
    """Questions about what was measured."""

    def measured(self, analysis: AnalysisName, *, dataset: str = "", split: str = "") -> list[Measured[Any]]:
        """Results of an analysis, the newest of each model on each split first."""

        def ask() -> list[Measured[Any]]:
            with self.store.read() as connection:
                return analyses.measured(connection, analysis)

        return [
            one
            for one in self.kept(("measured", analysis), ask)
            if (not dataset or one.dataset == dataset) and (not split or one.split == split)
        ]

    def planes(self) -> list[Plane]:
        """Information planes of comparable models."""

        def ask() -> list[Plane]:
            with self.store.read() as connection:
                return analyses.planes(connection)

        return self.kept(("planes",), ask)

    def candidates(self, dataset: str, split: str) -> list[CandidateTeacher]:
        """Who may teach, by what was measured on a split."""

        def ask() -> list[CandidateTeacher]:
            with self.store.read() as connection:
                return analyses.candidates(connection, dataset, split)

        return self.kept(("candidates", dataset, split), ask)

    def remem_runs(self) -> list[Run]:
        """Finished ReMem jobs, the newest first."""
        with self.store.read() as connection:
            return analyses.remem_runs(connection)

    def remem(self, id: UUID) -> tuple[RememResult, dict[str, Any]]:
        """A finished ReMem run, and what else its result says."""

        def ask() -> tuple[RememResult, dict[str, Any]]:
            with self.store.read() as connection:
                return analyses.remem(connection, id)

        return self.kept(("remem", id), ask)

    def kdep_runs(self, dataset: str | None = None) -> list[tuple[Run, KdepResult]]:
        """Finished KDEP jobs with their records, the newest first."""

        def ask() -> list[tuple[Run, KdepResult]]:
            with self.store.read() as connection:
                return analyses.kdep_runs(connection)

        return [(run, result) for run, result in self.kept(("kdep",), ask) if not dataset or result.dataset == dataset]

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
