"""A ReMem job: tune the teacher in every way asked for, measure it, distil students, choose and publish a pair.

The science (`workers.science.remem.protocol`) is one resumable computation, and its state is the checkpoint: a killed
job redoes no finished part and ends in the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from backend.domain.catalog import Lineage, Model, Preprocessing
from backend.domain.datasets import Dataset, Subset
from backend.domain.errors import BadInput
from backend.domain.paper_datasets import paper_metric
from backend.domain.remem import RememSpec
from backend.domain.remem_protocol import best_teacher, carve_validation, information_plane, setting_table
from backend.domain.remem_results import RememResult
from backend.store import catalog
from workers.inputs.canvas import Canvas, common_view
from workers.inputs.datasets import open_split
from workers.inputs.models import build, wrap
from workers.lifecycle import RunningJob
from workers.science.preprocessed import Preprocessed
from workers.science.remem.protocol import Bench, RememRun
from workers.science.remem.recipe import stock_checkpoint
from workers.tasks.provenance import provenance
from workers.tasks.students import publish_student, student_name

LARGE_DIFFERENCE = 1e-3
"""Share of the largest logit above which a folded checkpoint is worth a warning."""


@dataclass(frozen=True)
class Prepared:
    """The catalog's side of a run."""

    spec: RememSpec
    model: Model
    student: Model | None
    dataset: Dataset
    train_split: str
    split: str
    bench: Bench
    bad_samples: tuple[str, ...]


def run(job: RunningJob) -> dict[str, Any]:
    """Run the protocol; returns a `RememResult` with its provenance and the names of what was published."""
    spec: RememSpec = job.spec
    prepared = _prepare(job, spec)
    suffix = "remem" if prepared.student is not None else "prepared"
    name = student_name(job, spec.save_as, spec.student or spec.model, suffix)
    if prepared.student is not None:
        student_name(job, f"{name}-teacher", spec.model, suffix)
    remem = RememRun(prepared.bench, spec.params, device=job.device)
    if (state := job.resume_state()) is not None:
        remem.load_state_dict(state)
    job.checkpoint_with(remem.state_dict)
    for progress in remem.run():
        job.record(progress)

    bench, teachers = prepared.bench, tuple(remem.teachers)
    result = RememResult(
        model=spec.model,
        student=spec.student,
        dataset=spec.dataset,
        metric=bench.metric,
        n_train=len(bench.train),
        n_validation=len(bench.validation["teacher"]),
        n_test=len(bench.test["teacher"]),
        failures=tuple(remem.failures),
        teachers=teachers,
        table=setting_table(teachers),
        plane=information_plane(teachers),
        best=best_teacher(teachers),
    )
    published = _publish(job, prepared, remem, result, name)
    return {
        **result.model_dump(mode="json"),
        **published,
        "train_split": prepared.train_split,
        "split": prepared.split,
        "bad_samples": list(prepared.bad_samples),
        "provenance": provenance(
            [prepared.model, *([] if prepared.student is None else [prepared.student])],
            prepared.dataset,
            {prepared.train_split, prepared.split},
            seeds=sorted({tuning.seed for tuning in spec.params.tunings}),
            device=job.device,
            threads=torch.get_num_threads(),
        ),
    }


def _prepare(job: RunningJob, spec: RememSpec) -> Prepared:
    with job.store.read() as connection:
        model = catalog.get_model(connection, spec.model)
        student = None if spec.student is None else catalog.get_model(connection, spec.student)
        dataset = catalog.get_dataset(connection, spec.dataset)
    train_split, split = dataset.training_split(spec.train_split), dataset.evaluation_split(spec.split)
    if train_split == split:
        raise BadInput("split", split, f"another split than the training split {train_split!r}")

    images = open_split(dataset, train_split, job.settings)
    chosen = spec.subset.indices(images.labels)
    seed = spec.params.tunings[0].seed
    train, validation = carve_validation(images.labels[chosen], spec.params.validation_share, seed)
    test_images = open_split(dataset, split, job.settings)
    everything = Subset().indices(test_images.labels)
    preparations = {"teacher": _preprocessing(model), "student": _preprocessing(student or model)}
    view = common_view([preparations["teacher"]], preparations["student"])
    transfer_set = Canvas(images, chosen[train], view)
    held = {who: Canvas(images, chosen[validation], how) for who, how in preparations.items()}
    test = {who: Canvas(test_images, everything, how) for who, how in preparations.items()}
    job.log(f"{len(transfer_set)} images to learn from, {len(held['teacher'])} to choose by, {len(everything)} to test")

    def fresh_teacher() -> Preprocessed:
        return wrap(build(model, num_classes=dataset.n_classes), preparations["teacher"])

    def fresh_student(seed: int) -> Preprocessed:
        assert student is not None, "no distillation without a student"
        drawn = student.model_copy(update={"init_seed": (student.init_seed + seed) % 2**31})
        return wrap(build(drawn, num_classes=dataset.n_classes), preparations["student"])

    bench = Bench(
        teacher=fresh_teacher,
        student=fresh_student,
        train=transfer_set,
        validation=held,
        test=test,
        n_classes=dataset.n_classes,
        view_size=view.input_size[1],
        teacher_name=model.name,
        data=f"{dataset.name}/{train_split} {dataset.splits[train_split].fingerprint[:12]}, seed {seed}",
        metric=spec.params.metric or paper_metric(dataset.name),
    )
    bad = {*transfer_set.bad_samples, *held["teacher"].bad_samples, *test["teacher"].bad_samples}
    return Prepared(spec, model, student, dataset, train_split, split, bench, tuple(sorted(bad)))


def _publish(
    job: RunningJob, prepared: Prepared, remem: RememRun, result: RememResult, name: str
) -> dict[str, str | float | None]:
    """The chosen student and its teacher, catalogued; a teacher that no stock checkpoint can hold is left out."""
    best = result.teachers[result.best]
    teacher = remem.tuned(best.tuning)
    assert remem.best_teacher is not None
    teacher.load_state_dict(remem.best_teacher)
    teacher_name: str | None = name if prepared.student is None else f"{name}-teacher"
    assert teacher_name is not None
    lineage = Lineage(
        job_id=job.id, kind="remem", method=best.setting, student=prepared.model.name, dataset=prepared.dataset.name
    )
    fold_difference: float | None = None
    try:
        folded = stock_checkpoint(teacher)
    except BadInput as error:
        job.log(f"the teacher is not exported: {error}")
        teacher_name = None
    else:
        stock = prepared.bench.teacher()
        stock.model.load_state_dict(folded.state)
        fold_difference = folded.max_difference / folded.max_logit if folded.max_logit else 0.0
        if fold_difference > LARGE_DIFFERENCE:
            job.log(f"warning: the folded teacher's logits differ by {fold_difference:.2%} of the largest one")
        publish_student(job, stock, prepared.model, prepared.dataset, lineage, teacher_name, folder="teacher")
    student_name: str | None = None
    if prepared.student is not None and remem.best_student is not None:
        student, student_name = prepared.bench.student(0), name
        student.load_state_dict(remem.best_student)
        taught = lineage.model_copy(
            update={"method": best.best_distillation.method if best.best_distillation else None}
            | {"student": prepared.student.name, "teachers": (prepared.model.name,)}
        )
        publish_student(job, student, prepared.student, prepared.dataset, taught, student_name)
    return {
        "published_teacher": teacher_name,
        "published_student": student_name,
        "fold_difference": fold_difference,
    }


def _preprocessing(model: Model) -> Preprocessing:
    assert model.preprocessing is not None, "a runnable model has preprocessing"
    return model.preprocessing
