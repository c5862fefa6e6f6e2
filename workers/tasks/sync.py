"""Sync: catalog all of timm's pretrained tags with their metadata, and accuracies from its results CSVs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backend.domain.progress import Progress
from backend.domain.specs import SyncSpec
from backend.store import catalog
from workers.inputs.roots import inside_roots
from workers.inputs.timm_catalog import describe_tags, pretrained_tags, read_results, results_name
from workers.lifecycle import RunningJob

_STEP = 100


def run(job: RunningJob) -> dict[str, Any]:
    """How many entries were added, updated and kept as they are; and rows of the CSVs that name no tag of timm's."""
    spec: SyncSpec = job.spec
    files = [inside_roots(Path(path), job.settings.data_roots, "results") for path in spec.results]
    reported = {results_name(path): read_results(path) for path in files}
    tags = pretrained_tags(spec.filter)

    def step(done: int, total: int) -> None:
        if done % _STEP == 0 or done == total:
            job.record(Progress(step=done, total=total, unit="models"))

    models = describe_tags(tags, reported, step=step)
    with job.write() as connection:
        added, updated, kept = catalog.sync_models(connection, models)
    known = set(tags)
    unknown = sorted({row.model for rows in reported.values() for row in rows} - known) if spec.filter is None else []
    if unknown:
        job.log(f"{len(unknown)} names in the results are no tags of this timm: {', '.join(unknown[:5])}")
    return {"models": len(models), "added": added, "updated": updated, "kept": kept, "unknown_results": len(unknown)}
