"""What a transfer works with: models, transfer set and held-out images, and what the models say before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from backend.domain.catalog import Model
from backend.domain.datasets import Dataset, Subset
from backend.domain.methods import Transfer
from backend.domain.records import content_hash
from backend.domain.specs import TransferSpec
from backend.domain.transfers import precondition_warning
from backend.store import catalog
from workers.inputs.canvas import Canvas, common_view
from workers.inputs.datasets import open_split
from workers.inputs.models import build, hash_weights, wrap
from workers.lifecycle import RunningJob
from workers.science.cached_outputs import CachedOutputs
from workers.science.preprocessed import Preprocessed, frozen
from workers.science.ranks import ALONE, Ranks
from workers.science.tensor_batches import TensorBatches
from workers.science.top1 import predict_top1
from workers.science.transfer import FROZEN_STUDENT
from workers.science.transfer.report import positive_flip_rate
from workers.tasks.students import require_classes, require_same_classes, teacher_outputs

LARGE_SPLIT = 100_000
LARGE_SHARE = 0.1
Top1 = NDArray[np.int64]
NOBODY = np.zeros(0, dtype=np.int64)


@dataclass
class Bench:
    """Everything a transfer works with."""

    spec: TransferSpec
    student_entry: Model
    teacher_entries: dict[str, Model]
    dataset: Dataset
    train_split: str
    split: str
    teachers: dict[str, Preprocessed]
    transfer_set: Canvas
    view_size: int
    held_out: Canvas
    before: Top1
    teacher_top1: dict[str, Top1]
    precondition: float | None
    warnings: list[str] = field(default_factory=list)


def prepare(job: RunningJob, spec: TransferSpec) -> Bench:
    with job.store.read() as connection:
        entry = catalog.get_model(connection, spec.student)
        teachers = {model.name: model for model in catalog.get_models(connection, spec.teachers)}
        dataset = catalog.get_dataset(connection, spec.dataset)
        for field, model in (("student", entry), *(("teachers", teacher) for teacher in teachers.values())):
            require_same_classes(connection, model, dataset, field)
    require_classes(entry, dataset, "student")
    outputs = {name: teacher_outputs(teacher, dataset) for name, teacher in teachers.items()}
    train_split, split = dataset.training_split(spec.train_split), dataset.evaluation_split(spec.split)

    train_images = open_split(dataset, train_split, job.settings)
    subset = spec.subset or Subset(share=LARGE_SHARE if len(train_images) >= LARGE_SPLIT else None)
    view = common_view([preprocessing_of(one) for one in teachers.values()], preprocessing_of(entry))
    if spec.method.augment == "rrc":
        view = view.model_copy(update={"crop_pct": 1.0})
    transfer_set = Canvas(train_images, subset.indices(train_images.labels), view)
    images = open_split(dataset, split, job.settings)
    everything = Subset().indices(images.labels)

    student = wrap(build(entry), preprocessing_of(entry))
    modules = {
        name: frozen(wrap(build(model), preprocessing_of(model), outputs[name])) for name, model in teachers.items()
    }
    held_out = Canvas(images, everything, preprocessing_of(entry))
    job.check()
    if (job.ranks or ALONE).rank:  # of several processes the first asks the models
        size = view.input_size[1]
        return Bench(
            spec, entry, teachers, dataset, train_split, split, modules, transfer_set, size, held_out, NOBODY, {}, None
        )
    before = predict_top1(student, held_out, device=job.device)
    teacher_top1, on_transfer_set = {}, {}
    for name, module in modules.items():
        same_view = preprocessing_of(teachers[name]).model_copy(update={"mean": (0.5,), "std": (0.5,)})
        own = preprocessing_of(entry).model_copy(update={"mean": (0.5,), "std": (0.5,)})
        pixels = held_out if same_view == own else Canvas(images, everything, preprocessing_of(teachers[name]))
        teacher_top1[name] = predict_top1(module, pixels, device=job.device)
        if spec.labelled:
            on_transfer_set[name] = predict_top1(module, transfer_set, device=job.device)
        job.check()
    precondition = None
    warnings = []
    if teachers and spec.labelled:
        on_student = predict_top1(student, transfer_set, device=job.device)
        precondition = positive_flip_rate(on_transfer_set, on_student, transfer_set.labels.numpy())
        job.log(f"positive flips on the transfer set ({len(transfer_set)} images): {precondition:.2%}")
        if (warning := precondition_warning(precondition)) is not None:
            job.log(f"warning: {warning}")
    if train_split == split:
        warnings.append(f"transfer set and evaluation are both from the split {split!r}; Δ is not on held-out images")
    for name, teacher in teachers.items():
        if (known := expressed(modules[name], held_out)) is not None:
            n_classes, n_samples = known
            warnings.append(
                f"{name} speaks {teacher.label_space}: it expresses {n_classes} of the {dataset.n_classes} classes of "
                f"{dataset.label_space}, over which the softmaxes of its loss run, and counts as wrong on "
                f"{len(held_out) - n_samples} of {len(held_out)} samples whose class it cannot express"
            )
    for where, canvas in (("transfer set", transfer_set), ("evaluation", held_out)):
        if canvas.bad_samples:
            warnings.append(f"{len(canvas.bad_samples)} unreadable images were left out of the {where}")
    return Bench(
        spec,
        entry,
        teachers,
        dataset,
        train_split,
        split,
        modules,
        transfer_set,
        view.input_size[1],
        held_out,
        before,
        teacher_top1,
        precondition,
        warnings,
    )


def make_batches(
    bench: Bench, params: Transfer, cached: CachedOutputs | None = None, ranks: Ranks = ALONE
) -> TensorBatches:
    labels = bench.transfer_set.labels if bench.spec.labelled else None
    return TensorBatches(
        bench.transfer_set,  # type: ignore[arg-type]
        labels,
        params,
        cached=cached,
        size=None if params.augment == "none" else bench.view_size,
        n_classes=bench.dataset.n_classes,
        rank=ranks.rank,
        ranks=ranks.size,
    )


def count_steps(bench: Bench, params: Transfer) -> int:
    return params.steps or params.epochs * make_batches(bench, params).steps_per_epoch


def fill_cache(
    job: RunningJob, bench: Bench, params: Transfer, teachers: Sequence[str], student: Preprocessed
) -> Iterator[Any]:
    """Frozen outputs of the teachers (and of the student, where asked for) on every view, computed once and kept across
    jobs; returns the cache."""
    assert params.views is not None
    models: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for name in teachers:
        module, entry = bench.teachers[name], bench.teacher_entries[name]
        suffix = "/features" if params.teacher_output == "features" else ""
        models[name + suffix] = module.to(job.device).features if suffix else module.to(job.device)
        translated = [] if module.outputs is None else [module.outputs.tolist()]
        keys[name + suffix] = content_hash(
            hash_weights(inner_of(module)), preprocessing_of(entry).key, suffix, *translated
        )
    if params.reads_frozen_student:
        models[FROZEN_STUDENT] = student.to(job.device)
        keys[FROZEN_STUDENT] = content_hash(
            hash_weights(inner_of(student)), preprocessing_of(bench.student_entry).key, "logits"
        )
    split = bench.dataset.splits[bench.train_split]
    chosen = content_hash(split.fingerprint, bench.transfer_set.indices.tolist())
    view = content_hash(params.augment, params.seed, bench.view_size, preprocessing_of(bench.student_entry).key)
    cache = CachedOutputs(
        job.settings.data_dir / "cache" / "outputs",
        keys,
        n_samples=len(bench.transfer_set),
        views=params.views,
        data_key=chosen,
        view_key=view,
    )
    ranks = job.ranks or ALONE
    if ranks.rank == 0:
        yield from cache.fill(models, make_batches(bench, params).view, device=job.device)
    ranks.share("filled")
    return cache


def expressed(teacher: Preprocessed, samples: Canvas) -> tuple[int, int] | None:
    """Classes that a teacher of another label space expresses, and samples with such a class."""
    if teacher.outputs is None:
        return None
    known = (teacher.outputs >= 0).cpu()
    return int(known.sum()), int(known[samples.labels].sum())


def accuracy_of(top1: Top1, bench: Bench) -> float:
    return float(np.mean(top1 == bench.held_out.labels.numpy()))


def inner_of(module: nn.Module) -> nn.Module:
    return module.model if isinstance(module, Preprocessed) else module


def preprocessing_of(model: Model) -> Any:
    assert model.preprocessing is not None, "a runnable model has preprocessing"
    return model.preprocessing
