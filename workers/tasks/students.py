"""From a trained module to a catalogued student: its folder that plain timm opens, its entry, its lineage."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

from sqlalchemy import Connection
from torch import nn

from backend.domain.catalog import Lineage, Model
from backend.domain.datasets import Dataset
from backend.domain.errors import BadInput, Conflict, NotFound
from backend.domain.label_spaces import LABEL_SPACES
from backend.store import catalog
from workers.inputs.label_spaces import head_outputs
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
    """Raises BadInput unless the model's head has exactly the data set's classes, under whichever registered name."""
    if model.num_classes != dataset.n_classes:
        raise BadInput(
            field,
            model.name,
            f"a model of {dataset.n_classes} classes, as {dataset.name!r} has; it has {model.num_classes}. "
            f"Give it a head first: zoograft finetune --model {model.name} --dataset {dataset.name}",
        )
    if model.label_space and dataset.label_space and model.label_space != dataset.label_space:
        if _translation(model, dataset) == list(range(dataset.n_classes)):
            return
        raise BadInput(
            field, model.name, f"a model of label space {dataset.label_space!r}; its classes are {model.label_space!r}"
        )


def require_same_classes(connection: Connection, model: Model, dataset: Dataset, field: str) -> None:
    """Raises BadInput where a model was trained on another data set here whose classes have other names.

    A head of as many outputs proves nothing; where neither a label space nor a lineage says more, it is believed.
    """
    if model.label_space is not None or model.lineage is None or model.lineage.dataset in (None, dataset.name):
        return
    try:
        learnt = catalog.get_dataset(connection, model.lineage.dataset)
    except NotFound:
        return
    for index, (theirs, ours) in enumerate(zip(learnt.class_names, dataset.class_names, strict=False)):
        if theirs != ours:
            raise BadInput(
                field,
                model.name,
                f"a model of the classes of {dataset.name!r}; it was trained on {learnt.name!r}, whose class {index} "
                f"is {theirs!r} and not {ours!r}",
            )


def teacher_outputs(model: Model, dataset: Dataset) -> list[int] | None:
    """For each class of the data set the teacher's output that expresses it, -1 for none; None where its head is the
    data set's.

    Only between two named label spaces of the registry; a number of outputs says nothing about their meaning.

    Raises:
        BadInput: the head is another and one of the spaces is not named or not known, or fewer than two classes are
            shared.
    """
    outputs = _translation(model, dataset)
    if outputs is None:
        require_classes(model, dataset, "teachers")
        return None
    if sum(output >= 0 for output in outputs) < 2:
        raise BadInput("teachers", model.name, f"a head that knows at least two classes of {dataset.label_space}")
    return None if outputs == list(range(model.num_classes)) else outputs


def _translation(model: Model, dataset: Dataset) -> list[int] | None:
    """The map between two different label spaces of the registry, None where they are not that."""
    head, space = model.label_space, dataset.label_space
    if head == space or head not in LABEL_SPACES or space not in LABEL_SPACES:
        return None
    return head_outputs(LABEL_SPACES[head], LABEL_SPACES[space])
