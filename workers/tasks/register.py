"""Register: build one model, or read one data set, and catalog it if that works."""

from __future__ import annotations

from typing import Any

from backend.domain.progress import Progress
from backend.domain.specs import RegisterSpec
from backend.store import catalog
from workers.inputs.datasets import read_dataset
from workers.inputs.models import register_model
from workers.lifecycle import RunningJob


def run(job: RunningJob) -> dict[str, Any]:
    """The entry as it is catalogued; one that is there already is returned as it is."""
    spec: RegisterSpec = job.spec
    if spec.model is not None:
        model = register_model(spec.model, job.settings)
        job.record(Progress(step=1, total=1, unit="models"))
        with job.write() as connection:
            stored = catalog.add_model(connection, model)
        return {"model": stored.model_dump(mode="json")}
    assert spec.dataset is not None
    dataset = read_dataset(spec.dataset, job.settings)
    job.record(Progress(step=1, total=1, unit="datasets"))
    with job.write() as connection:
        added = catalog.add_dataset(connection, dataset)
    return {"dataset": added.model_dump(mode="json")}
