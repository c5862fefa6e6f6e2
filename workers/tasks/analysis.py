"""An analysis job: one measurement of each model named, one record a model; models that cannot be measured say why.

Finished models stand in the checkpoint, and so does the decoder that information trains: a killed job repeats neither.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from backend.domain.analyses import AnalysisSpec, EmbeddingParams, FeatureParams
from backend.domain.catalog import Model
from backend.domain.errors import BadInput
from backend.domain.kdep import CompactnessResult, EmbeddingResult, LogmeResult
from backend.domain.progress import Progress
from backend.domain.records import Record
from backend.domain.remem import CriticalityParams, ExpertnessParams, InformationParams
from backend.domain.remem_results import CriticalityResult
from backend.store import catalog
from workers.inputs.canvas import Canvas
from workers.inputs.datasets import open_split
from workers.inputs.models import build, wrap
from workers.lifecycle import RunningJob
from workers.science.augment import as_images
from workers.science.compactness import class_scatter
from workers.science.criticality import maximise_activations, measure_criticality
from workers.science.embedding import embed
from workers.science.expertness import measure_expertness
from workers.science.information.features import ModelFeatures
from workers.science.information.reconstruction import Reconstruction, kept_when_they_fit
from workers.science.logme import logme
from workers.science.preprocessed import Preprocessed
from workers.tasks.provenance import provenance

Steps = Generator[Progress, None, Record]


@dataclass
class Findings:
    """What is known so far; the checkpoint."""

    items: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    sample_ids: dict[str, str] = field(default_factory=dict)
    reconstruction: Reconstruction | None = None

    def state(self) -> dict[str, Any]:
        return {
            "items": self.items,
            "failures": self.failures,
            "sample_ids": self.sample_ids,
            "reconstruction": None if self.reconstruction is None else self.reconstruction.state_dict(),
        }


@dataclass
class Subject:
    """One model with the images it is measured on."""

    job: RunningJob
    entry: Model
    model: Preprocessed
    canvas: Canvas
    dataset: str
    n_classes: int
    data: str
    findings: Findings
    resume: dict[str, Any] | None = None

    def views(self, positions: Tensor) -> Tensor:
        return as_images(self.canvas[positions])


def run(job: RunningJob) -> dict[str, Any]:
    """Measure the models one after another; returns a record for each, and what failed."""
    spec: AnalysisSpec = job.spec
    with job.store.read() as connection:
        models = [model for model in catalog.find_models(connection, spec.models) if model.runnable]
        dataset = catalog.get_dataset(connection, spec.dataset)
    if not models:
        raise BadInput("models", list(spec.models), "models that can be run")
    split = dataset.evaluation_split(spec.split)
    images = open_split(dataset, split, job.settings)
    chosen = _chosen(spec, images.labels)
    data = f"{dataset.name}/{split} {dataset.splits[split].fingerprint[:12]}, {len(chosen)} images, {spec.subset.key}"

    state = job.resume_state() or Findings().state()
    findings = Findings(list(state["items"]), list(state["failures"]), dict(state["sample_ids"]))
    resume = state["reconstruction"]
    job.checkpoint_with(findings.state)
    for number in range(len(findings.items) + len(findings.failures), len(models)):
        entry = models[number]
        assert entry.preprocessing is not None, "a runnable model has preprocessing"
        try:
            model, canvas = wrap(build(entry), entry.preprocessing), Canvas(images, chosen, entry.preprocessing)
            subject = Subject(job, entry, model, canvas, dataset.name, dataset.n_classes, data, findings, resume)
            steps = MEASUREMENTS[spec.analysis](subject, spec.settings)
            result = _followed(job, steps, number, len(models))
        except BadInput as error:
            findings.failures.append({"model": entry.name, "cause": error.cause, "message": str(error)})
            job.log(f"{entry.name}: {error}")
        else:
            findings.items.append(result.model_dump(mode="json"))
        findings.reconstruction = resume = None
        job.record(Progress(step=(number + 1) * SCALE, total=len(models) * SCALE, unit="models"))
    if not findings.items:
        failed = findings.failures
        raise BadInput("models", [one["model"] for one in failed], failed[0]["message"])
    return {
        "analysis": spec.analysis,
        "dataset": dataset.name,
        "split": split,
        "n_images": len(chosen),
        "items": findings.items,
        "failures": findings.failures,
        "sample_ids": findings.sample_ids,
        "provenance": provenance(models, dataset, {split}, device=job.device, threads=torch.get_num_threads()),
    }


SCALE = 1_000
"""Steps a model counts for, so that progress runs evenly whatever is counted within."""


def _followed(job: RunningJob, steps: Steps, number: int, n_models: int) -> Record:
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            result: Record = end.value
            return result
        done = number * SCALE + min(SCALE - 1, SCALE * progress.step // max(1, progress.total))
        job.record(progress.model_copy(update={"step": done, "total": n_models * SCALE, "unit": "models"}))


def _chosen(spec: AnalysisSpec, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The subset, and of that no more images than the params allow, class-stratified."""
    subset, settings = spec.subset, spec.settings
    wanted = getattr(settings, "images", None)
    if isinstance(settings, InformationParams):
        wanted = settings.images + settings.heldout_images
    if wanted is not None:
        subset = subset.model_copy(update={"limit": min(wanted, subset.limit or wanted)})
    return subset.indices(labels)


def _expertness(subject: Subject, params: Any) -> Steps:
    assert isinstance(params, ExpertnessParams)
    return measure_expertness(  # type: ignore[return-value]
        subject.model,
        subject.views,
        len(subject.canvas),
        params.clusters or subject.n_classes,
        name=subject.entry.name,
        data=subject.data,
        batch_size=params.batch_size,
        seed=params.seed,
        bits=params.activation_bits,
        device=subject.job.device,
    )


def _information(subject: Subject, params: Any) -> Steps:
    assert isinstance(params, InformationParams)
    n = len(subject.canvas)
    n_heldout = min(params.heldout_images, max(1, n // 5))
    order = torch.from_numpy(np.random.default_rng(params.seed).permutation(n))
    train, heldout = order[n_heldout:], order[:n_heldout]
    device = subject.job.device

    def source(part: Tensor) -> ModelFeatures:
        return ModelFeatures(subject.model, lambda positions: subject.views(part[positions]), len(part), device)

    kept = yield from kept_when_they_fit(source(train), params.cache_bytes)
    reconstruction = Reconstruction(kept, params, device)
    if subject.resume is not None:
        reconstruction.load_state_dict(subject.resume)
    subject.findings.reconstruction = reconstruction
    yield from reconstruction.fit()
    return reconstruction.result(source(heldout), model=subject.entry.name, data=subject.data)


def _criticality(subject: Subject, params: Any) -> Steps:
    assert isinstance(params, CriticalityParams)
    model, canvas, job = subject.model, subject.canvas, subject.job
    result: CriticalityResult = yield from measure_criticality(
        model, subject.views, len(canvas), params, name=subject.entry.name, data=subject.data, device=job.device
    )
    for block in result.blocks:
        for neuron in block.neurons:
            subject.findings.sample_ids |= {str(image.index): canvas.sample_ids[image.index] for image in neuron.images}
        drawn = [neuron.neuron for neuron in block.neurons[: params.pictures]]
        if drawn:
            pictures = maximise_activations(model, block.block, drawn, steps=params.picture_steps, seed=params.seed)
            for neuron_index, picture in zip(drawn, pictures, strict=True):
                name = f"pictures/{subject.entry.name}/block-{block.block}-neuron-{neuron_index}.png"
                job.attach(name, _png(picture), "image/png")
            yield Progress(step=1, total=1, message=f"pictures of block {block.block}")
    return result


def _pooled(subject: Subject, params: Any) -> Generator[Progress, None, tuple[NDArray[Any], NDArray[np.int64]]]:
    assert isinstance(params, (FeatureParams, EmbeddingParams))
    model, device, n = subject.model.eval().to(subject.job.device), subject.job.device, len(subject.canvas)
    parts = []
    for start in range(0, n, params.batch_size):
        with torch.no_grad():
            positions = torch.arange(start, min(start + params.batch_size, n))
            parts.append(model.features(subject.views(positions).to(device)).float().cpu().numpy())
        yield Progress(step=start + len(positions), total=n, unit="images")
    return np.concatenate(parts), subject.canvas.labels.numpy()


def _compactness(subject: Subject, params: Any) -> Steps:
    features, labels = yield from _pooled(subject, params)
    scatter = class_scatter(features, labels)
    return CompactnessResult(
        model=subject.entry.name,
        dataset=subject.dataset,
        n_samples=scatter.n_samples,
        n_classes=scatter.n_classes,
        between_scatter=scatter.between,
        within_scatter=scatter.within,
        compactness=scatter.compactness,
    )


def _logme(subject: Subject, params: Any) -> Steps:
    features, labels = yield from _pooled(subject, params)
    return LogmeResult(
        model=subject.entry.name,
        dataset=subject.dataset,
        n_samples=len(labels),
        n_classes=len(np.unique(labels)),
        logme=logme(features, labels),
    )


def _embedding(subject: Subject, params: Any) -> Steps:
    assert isinstance(params, EmbeddingParams)
    features, labels = yield from _pooled(subject, params)
    points = embed(features, perplexity=params.perplexity, seed=params.seed)
    return EmbeddingResult(
        model=subject.entry.name,
        dataset=subject.dataset,
        n_samples=len(labels),
        points=tuple((round(float(x), 4), round(float(y), 4)) for x, y in points),
        labels=tuple(labels.tolist()),
    )


def _png(picture: Tensor) -> bytes:
    pixels = picture.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


MEASUREMENTS = {
    "expertness": _expertness,
    "information": _information,
    "criticality": _criticality,
    "compactness": _compactness,
    "logme": _logme,
    "embedding": _embedding,
}
