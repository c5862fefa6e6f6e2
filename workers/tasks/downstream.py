"""Downstream sets of a KDEP job: opened, decoded at the student's size, and made into fine-tunings.

Classification reads catalogued data sets; segmentation and detection read folders (`workers.inputs.mask_folders`,
`workers.inputs.coco`) and put a head on timm's `features_only` form of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.domain.catalog import Model, Preprocessing
from backend.domain.datasets import Dataset, Subset, choose_split
from backend.domain.downstream import DownstreamResult, DownstreamSource
from backend.domain.errors import BadInput
from backend.domain.kdep import KdepSpec
from backend.domain.methods import TrainingParams
from backend.domain.progress import Progress
from backend.store import catalog
from workers.inputs.canvas import Canvas
from workers.inputs.coco import read_coco
from workers.inputs.datasets import open_split
from workers.inputs.dense_canvas import BoxCanvas, MaskCanvas
from workers.inputs.mask_folders import read_mask_folder
from workers.inputs.roots import inside_roots
from workers.lifecycle import RunningJob
from workers.science.augment import as_images
from workers.science.kdep.dense import DenseBench, detection_task, segmentation_task
from workers.science.kdep.downstream import DownstreamTask, Evaluation, classification_task
from workers.science.kdep.segmentation import backbone_of
from workers.science.preprocessed import Preprocessed
from workers.science.tensor_batches import TensorBatches


def yield_downstream(
    job: RunningJob, steps: Generator[Progress, None, DownstreamResult], before: int, total: int
) -> DownstreamResult:
    """Record the fine-tunings behind the steps of the pre-training; gives their result."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            result: DownstreamResult = end.value
            return result
        shown = {f"downstream/{name}": value for name, value in progress.metrics.items()}
        moved = {"step": before + progress.step, "total": total, "unit": "steps", "metrics": shown}
        job.record(progress.model_copy(update=moved))


def downstream_tasks(job: RunningJob, spec: KdepSpec, student: Preprocessed) -> list[DownstreamTask]:
    """A fine-tuning task for each downstream set; `student` is copied when one of them begins, not before.

    Raises:
        BadInput: a split that is missing, splits that are one and the same, files that are wrong, a student that
            cannot be the backbone that a task needs.
        MissingExtra: detection without torchvision's compiled operators.
    """
    with job.store.read() as connection:
        entry = catalog.get_model(connection, spec.student)
        datasets = {
            source.dataset: catalog.get_dataset(connection, source.dataset)
            for source in spec.downstream
            if source.task == "classification"
        }
    tasks = []
    for source in spec.downstream:
        if source.task == "classification":
            tasks.append(_classification(job, spec, source, datasets[source.dataset], student, _preprocessing(entry)))
        elif source.task == "segmentation":
            tasks.append(_segmentation(job, spec, source, student, entry))
        else:
            tasks.append(_detection(job, spec, source, student, entry))
    return tasks


def _classification(
    job: RunningJob,
    spec: KdepSpec,
    source: DownstreamSource,
    dataset: Dataset,
    student: Preprocessed,
    preprocessing: Preprocessing,
) -> DownstreamTask:
    params = spec.downstream_params
    train_name, test_name = dataset.training_split(source.train_split), source.test_split
    if test_name is None:
        test_name = choose_split(dataset, None, ("test", "val", "validation"))
    _require_different(dataset.name, dataset.splits, train_name, source.validation_split, test_name)
    view = preprocessing.model_copy(update={"mean": (0.5,), "std": (0.5,)})

    def canvas(split: str, positions: NDArray[np.int64] | None = None) -> Canvas:
        images = open_split(dataset, split, job.settings)
        return Canvas(images, Subset().indices(images.labels) if positions is None else positions, view)

    test = canvas(test_name)
    if source.validation_split is not None:
        train, validation = canvas(train_name), canvas(source.validation_split)
    else:
        labels = open_split(dataset, train_name, job.settings).labels
        held_out = Subset(share=source.validation_share).indices(labels)
        train = canvas(train_name, np.setdiff1d(np.arange(len(labels)), held_out))
        validation = canvas(train_name, held_out)

    def batches_of(seed: int) -> TensorBatches:
        settings = TrainingParams(epochs=params.epochs, batch_size=params.batch_size, augment="flip", seed=seed)
        return TensorBatches(train, train.labels, settings, n_classes=dataset.n_classes)  # type: ignore[arg-type]

    def evaluation(pixels: Canvas) -> Evaluation:
        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(0, len(pixels), 256):
                part = slice(start, min(start + 256, len(pixels)))
                yield as_images(pixels[part]), pixels.labels[part]

        return batches

    return classification_task(
        dataset.name,
        student,
        dataset.n_classes,
        batches_of,
        evaluation(validation),
        evaluation(test),
        params,
        metric=source.metric,
        device=job.device,
    )


def _segmentation(
    job: RunningJob, spec: KdepSpec, source: DownstreamSource, student: Preprocessed, entry: Model
) -> DownstreamTask:
    params, bench_of = spec.downstream_params, _bench(job, spec, student, entry)
    splits = read_mask_folder(
        _located(job, source), zero_ignored=source.zero_ignored, max_pixels=job.settings.max_image_pixels
    )
    names, parts = _divided(source, {name: len(images) for name, images in splits.items()})
    bench = bench_of(len(splits[names[0]].class_names))
    train, validation, test = (
        MaskCanvas(splits[name], indices, bench.size) for name, indices in zip(names, parts, strict=True)
    )
    return segmentation_task(source.dataset, bench, train, validation, test, params)


def _detection(
    job: RunningJob, spec: KdepSpec, source: DownstreamSource, student: Preprocessed, entry: Model
) -> DownstreamTask:
    bench_of = _bench(job, spec, student, entry)
    splits = read_coco(_located(job, source), max_pixels=job.settings.max_image_pixels)
    names, parts = _divided(source, {name: len(images) for name, images in splits.items()})
    bench = bench_of(len(splits[names[0]].class_names))
    train, validation, test = (BoxCanvas(splits[name], indices) for name, indices in zip(names, parts, strict=True))
    return detection_task(source.dataset, bench, train, validation, test, spec.downstream_params, source.metric)


def _bench(job: RunningJob, spec: KdepSpec, student: Preprocessed, entry: Model) -> Callable[[int], DenseBench]:
    """For a number of classes: how copies of the student become backbones."""
    if entry.source != "timm" or student.channels != 3:
        expected = "a timm model of colour images, for segmentation and detection"
        raise BadInput("student", entry.name, expected)
    preprocessing = _preprocessing(entry)
    kwargs = {name: value for name, value in entry.kwargs.items() if name not in ("num_classes", "global_pool")}

    def backbone() -> nn.Module:
        return backbone_of(str(entry.architecture), student.model.state_dict(), **kwargs)

    return lambda n_classes: DenseBench(
        backbone,
        n_classes,
        size=spec.downstream_params.size or max(preprocessing.input_size[1:]),
        mean=_three(preprocessing.mean),
        std=_three(preprocessing.std),
        device=job.device,
    )


def _three(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


def _located(job: RunningJob, source: DownstreamSource) -> Path:
    assert source.location is not None
    root = inside_roots(Path(source.location), job.settings.data_roots, "downstream")
    if not root.is_dir():
        raise BadInput("downstream", str(root), "a folder")
    return root


def _divided(
    source: DownstreamSource, sizes: Mapping[str, int]
) -> tuple[tuple[str, str, str], list[NDArray[np.int64]]]:
    """The splits to train, choose and test on, and the samples of each; without a validation split a seeded share of
    the training images is held out."""
    train = _chosen(source.dataset, sizes, source.train_split, ("train", "training"))
    test = _chosen(source.dataset, sizes, source.test_split, ("test", "testing", "val", "valid", "validation"))
    held = source.validation_split
    if held is not None:
        held = _chosen(source.dataset, sizes, held, ())
    _require_different(source.dataset, sizes, train, held, test)
    everything = np.arange(sizes[train])
    if held is not None:
        return (train, held, test), [everything, np.arange(sizes[held]), np.arange(sizes[test])]
    out = Subset(share=source.validation_share).indices(np.zeros(sizes[train], dtype=np.int64))
    kept = np.setdiff1d(everything, out)
    if not len(kept):
        raise BadInput("downstream", sizes[train], "more training images, because some are held out to choose on")
    return (train, train, test), [kept, out, np.arange(sizes[test])]


def _chosen(dataset: str, known: Mapping[str, int], wanted: str | None, preferred: tuple[str, ...]) -> str:
    """The split named, else the first of the preferred ones, with or without a year behind (train2017)."""
    if wanted is not None and wanted in known:
        return wanted
    by_kind = {name.rstrip("0123456789"): name for name in sorted(known, reverse=True)}
    found = [by_kind[kind] for kind in preferred if kind in by_kind]
    if wanted is not None or not found:
        named = wanted if wanted is not None else " or ".join(preferred[:1])
        raise BadInput("downstream", named, f"a split of {dataset!r}, which has {', '.join(sorted(known))}")
    return found[0]


def _require_different(dataset: str, known: Mapping[str, object], train: str, held: str | None, test: str) -> None:
    if test == train or held in (train, test):
        expected = f"different splits to train, choose and test on; of {dataset!r}: {sorted(known)}"
        raise BadInput("downstream", [train, held, test], expected)


def _preprocessing(model: Model) -> Preprocessing:
    assert model.preprocessing is not None, "a runnable model has preprocessing"
    return model.preprocessing
