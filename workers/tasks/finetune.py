"""Supervised training of a zoo entry on a data set: a zoo to study, a head for new classes, a teacher to prepare."""

from __future__ import annotations

from typing import Any

import numpy as np

from backend.domain.catalog import Lineage
from backend.domain.datasets import Subset
from backend.domain.specs import FinetuneSpec
from backend.store import catalog
from workers.inputs.canvas import Canvas, common_view
from workers.inputs.datasets import open_split
from workers.inputs.models import build, wrap
from workers.lifecycle import RunningJob
from workers.science.ranks import ALONE
from workers.science.tensor_batches import TensorBatches
from workers.science.top1 import predict_top1
from workers.science.training import Training, fit
from workers.science.transfer import Roles, build_objective
from workers.tasks.provenance import provenance
from workers.tasks.students import publish_student, student_name


def run(job: RunningJob) -> dict[str, Any]:
    """Train, evaluate once, save the student as a timm checkpoint and catalog it."""
    spec: FinetuneSpec = job.spec
    with job.store.read() as connection:
        model = catalog.get_model(connection, spec.model)
        dataset = catalog.get_dataset(connection, spec.dataset)
    train_split, split = dataset.training_split(spec.train_split), dataset.evaluation_split(spec.split)
    name = student_name(job, spec.save_as, model.name, "finetuned")
    preprocessing = model.preprocessing
    assert preprocessing is not None, "a runnable model has preprocessing"

    student = wrap(build(model, num_classes=dataset.n_classes), preprocessing)
    train_images = open_split(dataset, train_split, job.settings)
    canvas = Canvas(train_images, spec.subset.indices(train_images.labels), common_view((), preprocessing))
    params = spec.params
    if spec.tune == "head":
        params = params.model_copy(update={"probe_epochs": params.epochs})
    ranks = job.ranks or ALONE
    batches = TensorBatches(
        canvas,  # type: ignore[arg-type]
        canvas.labels,
        params,
        n_classes=dataset.n_classes,
        rank=ranks.rank,
        ranks=ranks.size,
    )
    objective = build_objective(params, Roles(student))
    training = Training(objective, student, batches, params, device=job.device, ranks=ranks)
    if (state := job.resume_state()) is not None:
        training.load_state_dict(state)
    job.checkpoint_with(training.state_dict)
    for progress in fit(training):
        job.record(progress)
    if ranks.rank:
        return {}

    images = open_split(dataset, split, job.settings)
    held_out = Canvas(images, Subset().indices(images.labels), preprocessing)
    top1 = predict_top1(student, held_out, device=job.device)
    accuracy = float(np.mean(top1 == held_out.labels.numpy()))
    train_accuracy = float(np.mean(predict_top1(student, canvas, device=job.device) == canvas.labels.numpy()))
    lineage = Lineage(job_id=job.id, kind="finetune", student=model.name, dataset=dataset.name)
    entry = publish_student(job, student, model, dataset, lineage, name)
    return {
        "model": entry.name,
        "weights_hash": entry.weights_hash,
        "dataset": dataset.name,
        "train_split": train_split,
        "split": split,
        "accuracy": accuracy,
        "n_samples": len(top1),
        "train_accuracy": train_accuracy,
        "n_train_samples": len(canvas),
        "steps": training.step,
        "bad_samples": [*canvas.bad_samples, *held_out.bad_samples],
        "provenance": provenance(
            [model],
            dataset,
            {train_split, split},
            seed=params.seed,
            init_seed=model.init_seed,
            device=job.device,
            devices=ranks.size,
        ),
    }
