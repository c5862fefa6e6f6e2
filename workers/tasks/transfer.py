"""A transfer job: prepare the models, train stage by stage, report on the evaluation split, publish the student.

Stages: the no-teacher control where asked for, then one per turn of teachers (one turn for a single teacher and for
`parallel`, one per teacher for `sequential` and `soup`). A checkpoint holds the finished stages' students and the
training in progress, so a killed job redoes no finished stage and ends in the same bits.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from backend.domain.catalog import Lineage
from backend.domain.errors import BadInput
from backend.domain.methods import CeParams, Transfer, check_teachers, control_of
from backend.domain.specs import TransferSpec
from backend.domain.transfers import EpochResult
from workers.inputs.models import build, hash_weights, wrap
from workers.lifecycle import RunningJob
from workers.science.augment import as_images
from workers.science.preprocessed import Preprocessed
from workers.science.ranks import ALONE
from workers.science.top1 import predict_top1
from workers.science.training import Training, fit
from workers.science.transfer import Roles, build_objective
from workers.science.transfer.report import report_epoch, report_transfer
from workers.science.transfer.sequence import sequence_order
from workers.science.transfer.soup import make_soup
from workers.tasks.provenance import provenance
from workers.tasks.students import publish_student, student_name
from workers.tasks.transfer_bench import (
    Bench,
    Top1,
    accuracy_of,
    count_steps,
    expressed,
    fill_cache,
    inner_of,
    make_batches,
    prepare,
    preprocessing_of,
)

MAX_EVALUATIONS = 100


@dataclass
class Stage:
    """One training: who teaches, with what settings, from which weights."""

    name: str
    teachers: tuple[str, ...]
    params: Transfer
    from_student: bool = False
    """Start from the student as given, and not from where the stage before ended."""


def run(job: RunningJob) -> dict[str, Any]:
    """Train the student as the spec says; returns the transfer's report."""
    spec: TransferSpec = job.spec
    check_teachers(spec.method, spec.teachers)
    if spec.method.labels_needed and not spec.labelled:
        raise BadInput("labelled", False, "a labelled transfer set, or kl_dp with partition=unsupervised (or kl)")
    bench = prepare(job, spec)
    name = student_name(job, spec.save_as, spec.student, spec.method.method) if spec.save else None
    ranks = job.ranks or ALONE
    # Rank 0 alone has asked the models; the order of the teachers follows from what they said.
    stages = plan(
        spec, ranks.share({teacher: accuracy_of(top1, bench) for teacher, top1 in bench.teacher_top1.items()})
    )

    state = job.resume_state() or {"finished": [], "epochs": [], "diagnostics": {}}
    finished: list[dict[str, Any]] = list(state["finished"])
    epochs = [EpochResult.model_validate(epoch) for epoch in state["epochs"]]
    diagnostics: dict[str, float] = dict(state["diagnostics"])
    module = build(bench.student_entry)
    initial = {key: value.clone() for key, value in module.state_dict().items()}
    done = 0
    total = sum(count_steps(bench, stage.params) for stage in stages)

    for number, stage in enumerate(stages):
        if number < len(finished):
            done += int(finished[number]["steps"])
            continue
        module = build(bench.student_entry, weights=False)
        begins_fresh = stage.from_student or number == 0 or stages[number - 1].name == "control"
        module.load_state_dict(initial if begins_fresh else finished[number - 1]["student"])
        student = wrap(module, preprocessing_of(bench.student_entry))
        training = _training(job, bench, stage, student)
        if "training" in state:
            training.load_state_dict(state.pop("training"))

        # Asked to stop between two stages, this one still holds: the stages before it, and its own training at its end.
        def keep(training: Training = training, before: tuple[Any, ...] = tuple(finished)) -> dict[str, Any]:
            return {
                "finished": list(before),
                "epochs": [epoch.model_dump(mode="json") for epoch in epochs],
                "diagnostics": dict(diagnostics),
                "training": training.state_dict(),
            }

        job.checkpoint_with(keep)
        every = max(1, math.ceil(stage.params.epochs / MAX_EVALUATIONS))
        metrics: dict[str, float] = {}
        for progress in fit(training):
            metrics |= progress.metrics
            shown = {f"{stage.name}/{key}": value for key, value in progress.metrics.items()}
            if stage.name != "control" and training.epoch_ended:
                diagnostics.update(_partition_shares(metrics))
                due = progress.epoch % every == 0 or training.step == training.total_steps
                if due and ranks.rank == 0:
                    top1 = predict_top1(training.objective.evaluated(student), bench.held_out, device=job.device)
                    epoch = report_epoch(
                        len(epochs) + 1,
                        bench.before,
                        top1,
                        bench.teacher_top1,
                        bench.held_out.labels.numpy(),
                        bench.dataset.n_classes,
                        metrics,
                    )
                    epochs.append(epoch)
                    shown |= {
                        key: value
                        for key, value in epoch.model_dump(exclude={"epoch", "metrics"}).items()
                        if isinstance(value, float) and not key.endswith(("_low", "_high"))
                    }
            job.record(progress.model_copy(update={"step": done + progress.step, "total": total, "metrics": shown}))
        done += training.step
        result = training.objective.evaluated(student)
        state_dict = inner_of(result).state_dict()
        finished.append(
            {"student": {k: v.detach().cpu().clone() for k, v in state_dict.items()}, "steps": training.step}
        )

    if ranks.rank:
        return {}
    return _publish(job, bench, stages, finished, epochs, diagnostics, module, name)


def plan(spec: TransferSpec, accuracies: Mapping[str, float]) -> list[Stage]:
    """The trainings of a transfer, in order: the control first, so that it is known whatever happens later."""
    params = spec.method
    stages = []
    if spec.control and spec.labelled and not isinstance(params, CeParams):
        stages.append(Stage("control", (), control_of(params, len(spec.teachers)), from_student=True))
    multi = getattr(params, "multi", "sequential")
    if len(spec.teachers) < 2 or multi == "parallel":
        return [*stages, Stage(params.method, spec.teachers, params)]
    if multi == "soup":
        return [*stages, *(Stage(f"from {name}", (name,), params, from_student=True) for name in spec.teachers)]
    order = sequence_order({name: accuracies[name] for name in spec.teachers}, params.teacher_order, params.seed)
    return [*stages, *(Stage(f"from {name}", (name,), params) for name in order)]


def _training(job: RunningJob, bench: Bench, stage: Stage, student: Preprocessed) -> Training:
    params = stage.params
    teachers: dict[str, nn.Module | None] = {name: bench.teachers[name] for name in stage.teachers}
    labels = bench.transfer_set.labels if bench.spec.labelled else None
    cached = None
    if params.views is not None and (stage.teachers or params.reads_frozen_student):
        cached = yield_through(job, fill_cache(job, bench, params, stage.teachers, student))
    roles = Roles(student, teachers, labels)
    ranks = job.ranks or ALONE
    batches = make_batches(bench, params, cached, ranks)
    return Training(build_objective(params, roles), student, batches, params, device=job.device, ranks=ranks)


def yield_through(job: RunningJob, steps: Iterator[Any]) -> Any:
    """Run a preparing generator to its end, stopping where the job is asked to; gives what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        job.check()


def _publish(
    job: RunningJob,
    bench: Bench,
    stages: list[Stage],
    finished: list[dict[str, Any]],
    epochs: list[EpochResult],
    diagnostics: Mapping[str, float],
    module: nn.Module,
    name: str | None,
) -> dict[str, Any]:
    spec = bench.spec
    student = wrap(module, preprocessing_of(bench.student_entry))
    control_after = None
    if stages[0].name == "control":
        module.load_state_dict(finished[0]["student"])
        control_after = predict_top1(student, bench.held_out, device=job.device)
    taught = [one["student"] for stage, one in zip(stages, finished, strict=True) if stage.name != "control"]
    module.to("cpu").load_state_dict(taught[-1])
    if getattr(spec.method, "multi", None) == "soup" and len(taught) > 1:
        views = (as_images(bench.transfer_set[slice(i, i + 256)]) for i in range(0, len(bench.transfer_set), 256))
        make_soup(student.to("cpu"), [{f"model.{k}": v for k, v in one.items()} for one in taught], views)
    after = predict_top1(student, bench.held_out, device=job.device)
    labels = bench.held_out.labels.numpy()
    report = report_transfer(
        bench.before,
        after,
        bench.teacher_top1,
        labels,
        bench.dataset.n_classes,
        control_after=control_after,
        positive_flips_to_teacher=diagnostics.get("positive_flips_to_teacher"),
        negative_flips_to_teacher=diagnostics.get("negative_flips_to_teacher"),
        positive_flip_rate_on_transfer_set=bench.precondition,
        epochs=epochs,
    )
    compared = {}
    for teacher, one in report.teachers.items():
        n_classes, n_expressed = expressed(bench.teachers[teacher], bench.held_out) or (None, None)
        update = {"n_classes_expressed": n_classes, "n_samples_expressed": n_expressed}
        compared[teacher] = one.model_copy(update=update)
    report = report.model_copy(update={"warnings": (*report.warnings, *bench.warnings), "teachers": compared})
    job.attach("predictions.npz", _predictions(bench, after, control_after), "application/octet-stream")
    if name is not None:
        lineage = Lineage(
            job_id=job.id,
            kind="transfer",
            method=spec.method.method,
            student=spec.student,
            teachers=spec.teachers,
            dataset=bench.dataset.name,
        )
        publish_student(job, student.to("cpu"), bench.student_entry, bench.dataset, lineage, name)
    return {
        **report.model_dump(mode="json"),
        "model": name,
        "weights_hash": hash_weights(inner_of(student)),
        "method": spec.method.method,
        "student": spec.student,
        "teacher_names": list(spec.teachers),
        "dataset": bench.dataset.name,
        "train_split": bench.train_split,
        "split": bench.split,
        "n_transfer_samples": len(bench.transfer_set),
        "provenance": provenance(
            [bench.student_entry, *bench.teacher_entries.values()],
            bench.dataset,
            {bench.train_split, bench.split},
            seed=spec.method.seed,
            device=job.device,
            devices=(job.ranks or ALONE).size,
            threads=torch.get_num_threads(),
        ),
    }


def _predictions(bench: Bench, after: Top1, control_after: Top1 | None) -> bytes:
    """What the report was counted from, for counting it again: sample ids, labels and every model's top-1."""
    arrays: dict[str, Any] = {
        "sample_id": np.array(bench.held_out.sample_ids),
        "label": bench.held_out.labels.numpy(),
        "before": bench.before,
        "after": after,
        **{f"teacher:{name}": top1 for name, top1 in bench.teacher_top1.items()},
    }
    if control_after is not None:
        arrays["control"] = control_after
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _partition_shares(metrics: Mapping[str, float]) -> dict[str, float]:
    names = ("positive_flips_to_teacher", "negative_flips_to_teacher", "teacher_share")
    return {name: metrics[name] for name in names if name in metrics}
