"""From a trained module to a catalogued student: its folder that plain timm opens, its entry, its lineage."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

from sqlalchemy import Connection
from torch import nn

from backend.domain.catalog import Lineage, Model
from backend.domain.datasets import Dataset
from backend.domain.errors import BadInput, Conflict, NotFound
from backend.store import catalog
from workers.inputs.models import count_parameters, hash_weights, save_student
from workers.lifecycle import RunningJob
from workers.science.preprocessed import Preprocessed


def student_name(job: RunningJob, wanted: str | None, base: str, suffix: str) -> str:
    """The name asked for, else `<student>-<how>-<end of the job's id>`; refused early if it is taken.

    Raises:
        Conflict: There is a model of that name.
    """
    name = wanted or f"{base}-{suffix}-{job.id.hex[-8:]}"[-200:]
    with job.store.read() as connection:
        try:
            taken = catalog.get_model(connection, name)
        except NotFound:
            return name
    if taken.lineage is not None and taken.lineage.job_id == job.id:
        return name
    raise Conflict(f"save_as: there is a model named {name!r} already; choose another name")


def publish_student(
    job: RunningJob,
    module: nn.Module,
    base: Model,
    dataset: Dataset,
    lineage: Lineage,
    name: str,
    *,
    folder: str = "student",
) -> Model:
    """Attach `model.safetensors` and `config.json`, and add the entry to the catalog when the job succeeds.

    Args:
        module: The student, with or without `Preprocessed` around it.
        base: The entry it was built from.
        folder: Where its files lie among the job's artifacts.
    """
    inner = module.model if isinstance(module, Preprocessed) else module
    kwargs = {**base.kwargs, "num_classes": dataset.n_classes} if base.source == "timm" else base.kwargs
    described = base.model_copy(update={"kwargs": kwargs, "num_classes": dataset.n_classes})
    weights, config = save_student(job.scratch / folder, inner, described, class_names=dataset.class_names)
    uri = job.attach(f"{folder}/model.safetensors", weights, "application/octet-stream")
    job.attach(f"{folder}/config.json", config, "application/json")
    student = described.model_copy(
        update={
            "id": uuid4(),
            "name": name,
            "pretrained": False,
            "checkpoint": uri,
            "weights_hash": hash_weights(inner),
            "label_space": dataset.label_space,
            "param_count": count_parameters(inner),
            "reported_accuracy": {},
            "lineage": lineage,
            "created_at": datetime.now(UTC),
        }
    )

    def add(connection: Connection) -> None:
        catalog.add_model(connection, student)

    job.on_publish(add)
    return student


def require_classes(model: Model, dataset: Dataset, field: str) -> None:
    """Raises BadInput unless the model's head has exactly the data set's classes."""
    if model.num_classes != dataset.n_classes:
        raise BadInput(
            field,
            model.name,
            f"a model of {dataset.n_classes} classes, as {dataset.name!r} has; it has {model.num_classes}. "
            f"Give it a head first: zoograft finetune --model {model.name} --dataset {dataset.name}",
        )
    if model.label_space and dataset.label_space and model.label_space != dataset.label_space:
        raise BadInput(
            field, model.name, f"a model of label space {dataset.label_space!r}; its classes are {model.label_space!r}"
        )
