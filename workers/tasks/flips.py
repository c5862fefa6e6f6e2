"""Flips: count every ordered pair of the models that were scored on a split, anew. Needs no torch and no images."""

from __future__ import annotations

from typing import Any

from backend.domain.progress import Progress
from backend.domain.specs import FlipsSpec
from backend.pairing import refresh_pairs
from backend.store import catalog, results
from workers.lifecycle import RunningJob


def run(job: RunningJob) -> dict[str, Any]:
    """Read the predictions, count, replace the rows."""
    spec: FlipsSpec = job.spec
    with job.store.read() as connection:
        dataset = catalog.get_dataset(connection, spec.dataset)
        split = dataset.evaluation_split(spec.split)
        models = len(results.current_evaluations(connection, dataset.name, split))
    job.check()
    pairs = refresh_pairs(job.store, job.settings, dataset.name, split)
    job.record(Progress(step=pairs, total=pairs, unit="pairs"))
    return {"dataset": dataset.name, "split": split, "models": models, "pairs": pairs}
