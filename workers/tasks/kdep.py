"""A KDEP job: measure the teacher, cache its targets, pre-train the student, fine-tune it elsewhere, publish it.

The moments and the targets lie in the cache of frozen outputs, whole or not at all, and a checkpoint holds the
training: a killed job ends in the same bits as an undisturbed one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import torch
from sqlalchemy import Connection

from backend.domain.catalog import Lineage, Model, Preprocessing
from backend.domain.datasets import Dataset
from backend.domain.kdep import KdepResult, KdepSpec
from backend.domain.records import content_hash
from backend.store import catalog
from workers.inputs.canvas import MEMORY_BYTES, Canvas, common_view
from workers.inputs.datasets import open_split
from workers.inputs.models import build, count_parameters, hash_weights, save_student, wrap
from workers.lifecycle import RunningJob
from workers.science.kdep.downstream import DownstreamRun, Scores
from workers.science.kdep.pretrain import Cache, Prepared, prepare
from workers.science.preprocessed import Preprocessed
from workers.science.tensor_batches import TensorBatches
from workers.science.training import Training, fit
from workers.tasks.downstream import downstream_tasks, yield_downstream
from workers.tasks.provenance import provenance
from workers.tasks.students import student_name
from workers.tasks.transfer import yield_through


def run(job: RunningJob) -> dict[str, Any]:
    """Pre-train the student as the spec says; returns a `KdepResult` with its provenance."""
    spec: KdepSpec = job.spec
    params = spec.params
    with job.store.read() as connection:
        entry = catalog.get_model(connection, spec.student)
        teacher_entry = None if spec.teacher is None else catalog.get_model(connection, spec.teacher)
        dataset = catalog.get_dataset(connection, spec.dataset)
    name = student_name(job, spec.save_as, entry.name, "kdep" if params.method == "features" else params.method)
    train_split = dataset.training_split(spec.train_split)

    entry = _with_head(entry, teacher_entry, dataset, params.method)
    student = wrap(build(entry, num_classes=entry.num_classes), _preprocessing(entry))
    teacher = None if teacher_entry is None else wrap(build(teacher_entry), _preprocessing(teacher_entry))

    images = open_split(dataset, train_split, job.settings)
    others = () if teacher_entry is None else (_preprocessing(teacher_entry),)
    view = common_view(others, _preprocessing(entry))
    if params.augment == "rrc":
        view = view.model_copy(update={"crop_pct": 1.0})
    indices = spec.subset.indices(images.labels)
    # Method none looks at no image: nothing is decoded for it.
    canvas = Canvas(images, indices, view, memory_bytes=0 if params.method == "none" else MEMORY_BYTES)
    size = None if params.augment == "none" else view.input_size[1]

    def batches(prepared: Prepared | None = None) -> TensorBatches:
        labels = canvas.labels if params.labels_needed else None
        cached = None if prepared is None else prepared.cached
        return TensorBatches(canvas, labels, params, cached=cached, size=size, n_classes=dataset.n_classes)  # type: ignore[arg-type]

    cache = None
    if teacher is not None:
        cache = Cache(
            job.settings.data_dir / "cache" / "outputs",
            n_samples=len(canvas),
            teacher_key=content_hash(hash_weights(teacher.model), _preprocessing(teacher_entry).key),
            data_key=content_hash(dataset.splits[train_split].fingerprint, canvas.indices.tolist()),
            view_key=content_hash(params.augment, params.seed, view.key, size, params.batch_size, job.device),
        )
        job.log(f"measuring {spec.teacher} on {len(canvas)} images")
    prepared: Prepared = yield_through(job, prepare(teacher, student, batches().view, params, cache, device=job.device))
    for layer, report in enumerate(prepared.alignments, start=1):
        shown = {key: value for key, value in report.model_dump().items() if value is not None}
        job.log(f"layer {layer} from the end: " + ", ".join(f"{key} {value}" for key, value in shown.items()))

    state = job.resume_state() or {}
    losses = [float(loss) for loss in state.get("losses", ())]
    known = {(str(task), float(lr), int(seed)): Scores(*scores) for task, lr, seed, *scores in state.get("known", ())}
    training = None
    if params.method != "none":
        training = Training(prepared.objective, student, batches(prepared), params, device=job.device)
        if "training" in state:
            training.load_state_dict(state["training"])
    tasks = downstream_tasks(job, spec, student) if spec.downstream else []
    n_steps = 0 if training is None else training.total_steps
    total = n_steps + len(tasks) * (len(spec.downstream_params.lrs) + len(spec.downstream_params.seeds) - 1)

    def keep() -> dict[str, Any]:
        scores = [[*key, one.validation, one.test, dict(one.others)] for key, one in known.items()]
        kept: dict[str, Any] = {"losses": losses, "known": scores}
        return kept if training is None else {**kept, "training": training.state_dict()}

    job.checkpoint_with(keep)
    for progress in fit(training) if training is not None else ():
        if "loss" in progress.metrics:
            losses[1:] = [progress.metrics["loss"]]  # the first reported and the last are kept
        job.record(progress.model_copy(update={"total": total}))
    student.to("cpu").eval()
    measured = None
    if tasks:
        steps = DownstreamRun(name, tasks, spec.downstream_params, known).steps()
        measured = yield_downstream(job, steps, n_steps, total)

    module = student.to("cpu")
    lineage = Lineage(
        job_id=job.id,
        kind="kdep",
        method=params.method if params.method != "features" else params.align,
        student=spec.student,
        teachers=() if spec.teacher is None else (spec.teacher,),
        dataset=dataset.name,
    )
    weights_hash = _publish(job, module, entry, dataset, lineage, name)
    result = KdepResult(
        model=name,
        weights_hash=weights_hash,
        teacher=spec.teacher,
        student=spec.student,
        architecture=str(entry.architecture),
        dataset=dataset.name,
        train_split=train_split,
        n_samples=len(canvas),
        params=params,
        alignments=prepared.alignments,
        teacher_passes_through=None if prepared.teacher_point is None else prepared.teacher_point.passes_through,
        student_passes_through=prepared.student_point.passes_through,
        steps=n_steps,
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        bad_samples=canvas.bad_samples,
        downstream=measured,
    )
    used = [entry, *([] if teacher_entry is None else [teacher_entry])]
    return {
        **result.model_dump(mode="json"),
        "provenance": provenance(
            used,
            dataset,
            {train_split},
            seed=params.seed,
            init_seed=entry.init_seed,
            device=job.device,
            threads=torch.get_num_threads(),
        ),
    }


def _with_head(entry: Model, teacher: Model | None, dataset: Dataset, method: str) -> Model:
    """The student's entry with the outputs its method trains: the teacher's classes, the data set's, or its own.

    Only `supervised` and `logits` train a head, so only then do its outputs mean the classes of a label space.
    """
    classes, space = entry.num_classes, None
    if method == "supervised":
        classes, space = dataset.n_classes, dataset.label_space
    elif method == "logits":
        assert teacher is not None
        classes, space = teacher.num_classes, teacher.label_space
    # A head of another size is drawn by `build`, after the entry's own weights were loaded into its own head.
    return entry.model_copy(update={"num_classes": classes, "label_space": space})


def _publish(
    job: RunningJob, student: Preprocessed, entry: Model, dataset: Dataset, lineage: Lineage, name: str
) -> str:
    """Attach the folder that plain timm opens, and add the entry when the job succeeds; returns the weights' hash."""
    kwargs = {**entry.kwargs, "num_classes": entry.num_classes} if entry.source == "timm" else entry.kwargs
    described = entry.model_copy(update={"kwargs": kwargs})
    class_names = dataset.class_names if lineage.method == "supervised" else None
    weights, config = save_student(job.scratch / "student", student.model, described, class_names=class_names)
    uri = job.attach("student/model.safetensors", weights, "application/octet-stream")
    job.attach("student/config.json", config, "application/json")
    weights_hash = hash_weights(student.model)
    model = described.model_copy(
        update={
            "id": uuid4(),
            "name": name,
            "pretrained": False,
            "checkpoint": uri,
            "weights_hash": weights_hash,
            "param_count": count_parameters(student.model),
            "reported_accuracy": {},
            "lineage": lineage,
            "created_at": datetime.now(UTC),
        }
    )

    def add(connection: Connection) -> None:
        catalog.add_model(connection, model)

    job.on_publish(add)
    return weights_hash


def _preprocessing(model: Model | None) -> Preprocessing:
    assert model is not None
    assert model.preprocessing is not None, "a runnable model has preprocessing"
    return model.preprocessing
