"""From a teacher and a data set to what a student is trained on: features measured, aligned, transformed and cached.

    steps = prepare(teacher, student, batches.view, params, cache)      # a generator of Progress
    prepared = yield from steps                                          # objective, cached targets, reports
    batches = TensorBatches(images, labels, params, cached=prepared.cached)
    for progress in fit(Training(prepared.objective, student, batches, params)): ...

The moments that fix the alignment are those of view 0 of every sample. With `params.views` the targets of all views are
cached; without, the teacher runs beside the student on every fresh view. He et al., CVPR 2022.

N samples, B batch, D_t teacher channels, D_s student channels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.domain.errors import BadInput
from backend.domain.kdep import AlignmentReport, KdepParams
from backend.domain.progress import Progress
from workers.science.batch import Batch
from workers.science.cached_outputs import CachedOutputs
from workers.science.kdep.align import NegativeMeans
from workers.science.kdep.features import FeaturePoint, pooled_features, pre_activation_features
from workers.science.kdep.layers import LayerPoints, LayersObjective, find_layer_points, layer_features, layer_weights
from workers.science.kdep.objective import TargetOf, build_objective
from workers.science.kdep.svd import FeatureMoments, content_key
from workers.science.kdep.targets import TARGET, TargetMap, alignment_report, build_target_map
from workers.science.preprocessed import Preprocessed, frozen
from workers.science.training import Objective

ViewBatches = Callable[[int], Iterable[Batch]]
"""View number → batches that together have each sample once, in the same order each time (`TensorBatches.view`)."""


@dataclass(frozen=True)
class Cache:
    """Where frozen results lie and what they depend on; equal keys share files, across jobs too.

    Args:
        teacher_key: Hash of the teacher's weights and preprocessing.
        data_key: Fingerprint of the data set, split and subset, in this order of samples.
        view_key: What fixes the views: augmentation, seed, size.
    """

    folder: Path
    n_samples: int
    teacher_key: str
    data_key: str
    view_key: str


@dataclass(frozen=True)
class Prepared:
    """What a student is trained on."""

    objective: Objective
    cached: CachedOutputs | None
    alignments: tuple[AlignmentReport, ...]
    student_point: FeaturePoint
    teacher_point: FeaturePoint | None


def prepare(
    teacher: Preprocessed | None,
    student: Preprocessed,
    view_batches: ViewBatches,
    params: KdepParams,
    cache: Cache | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Generator[Progress, None, Prepared]:
    """Measure the teacher, fit the alignment and fill the cache of targets; returns what `fit` needs.

    Interrupted and called again it ends in the same bits: moments and targets are stored only when they are complete.

    Args:
        teacher: None with method supervised.
        cache: Needed where `params.views` is given; without either, the teacher runs online.

    Raises:
        BadInput: no teacher, an architecture whose feature cannot be read, a teacher that is too narrow.
    """
    student_size = (student.channels, student.height, student.width)
    student_points = find_layer_points(student.model, params.layers, student_size)
    if params.method in ("supervised", "none"):
        return Prepared(build_objective(params, student_points.last, 0), None, (), student_points.last, None)
    if teacher is None:
        raise BadInput("teacher", None, f"expected a teacher for method {params.method}")
    frozen(teacher).to(device)
    if params.method == "logits":
        cached = yield from _cached(teacher, "logits", view_batches, params, cache, device)
        logits = build_objective(params, student_points.last, 0, None if cached else teacher)
        return Prepared(logits, cached, (), student_points.last, None)

    teacher_points = find_layer_points(teacher.model, params.layers, (teacher.channels, teacher.height, teacher.width))
    if params.learnable:
        return (yield from _prepare_connector(
            teacher, teacher_points.last, student_points.last, view_batches, params, cache, device
        ))  # fmt: skip
    moments = yield from _moments(teacher, teacher_points, view_batches, cache, device)
    maps = [build_target_map(m, width, params) for m, width in zip(moments, student_points.widths, strict=True)]
    targets = _Targets(teacher, teacher_points, maps)
    reading = {"moments": [float(m.scatter.diagonal().sum()) for m in moments], "widths": student_points.widths}
    settings = params.model_dump(include={"align", "transform", "pts_temperature", "pts_exponent", "layers", "seed"})
    key = content_key(what="targets", **reading, **settings)
    cached = yield from _cached(targets, key, view_batches, params, cache, device)
    if params.layers > 1:
        weights = layer_weights(params.layers, params.loss_weight, params.layer_weight)
        objective: Objective = LayersObjective(student_points, weights, None if cached else targets)
    else:
        objective = build_objective(params, student_points.last, teacher_points.last.width, None if cached else targets)
    widths = list(student_points.widths)
    reports = tuple(
        alignment_report(one, m, params, None if cached is None else _column(cached, widths, k))
        for k, (one, m) in enumerate(zip(maps, moments, strict=True))
    )
    return Prepared(objective, cached, reports, student_points.last, teacher_points.last)


@dataclass(frozen=True)
class _Targets:
    """View → the targets of every layer side by side [B, Σ D_k]."""

    teacher: Preprocessed
    points: LayerPoints
    maps: list[TargetMap]

    @torch.no_grad()
    def __call__(self, view: Tensor) -> Tensor:
        features = _features(self.teacher, self.points, view)
        return torch.cat([one(f) for one, f in zip(self.maps, features, strict=True)], dim=1)


@torch.no_grad()
def _features(teacher: Preprocessed, points: LayerPoints, view: Tensor) -> tuple[Tensor, ...]:
    teacher.eval()
    return tuple(feature.float() for feature in layer_features(teacher.model, teacher.prepare(view), points))


def _moments(
    teacher: Preprocessed,
    points: LayerPoints,
    view_batches: ViewBatches,
    cache: Cache | None,
    device: torch.device | str,
) -> Generator[Progress, None, list[FeatureMoments]]:
    """Moments of each layer of the teacher on view 0, from the cache where they are complete."""
    paths = []
    if cache is not None:
        key = content_key(what="moments", teacher=cache.teacher_key, data=cache.data_key, view=cache.view_key)
        paths = [cache.folder / f"moments-{key}-{k}.safetensors" for k in range(len(points.widths))]
        if all(path.exists() for path in paths):
            return [FeatureMoments.load(path) for path in paths]
    moments = [FeatureMoments.empty(width, device) for width in points.widths]
    total = cache.n_samples if cache is not None else 0
    for batch in view_batches(0):
        for one, features in zip(moments, _features(teacher, points, batch.view.to(device)), strict=True):
            one.update(features)
        yield Progress(step=moments[0].count, total=max(total, moments[0].count), unit="samples")
    moments = [FeatureMoments(m.count, m.mean.cpu(), m.scatter.cpu()) for m in moments]
    if cache is not None:
        cache.folder.mkdir(parents=True, exist_ok=True)
        for path, one in zip(paths, moments, strict=True):
            one.save(path)
    return moments


def _prepare_connector(
    teacher: Preprocessed,
    teacher_point: FeaturePoint,
    student_point: FeaturePoint,
    view_batches: ViewBatches,
    params: KdepParams,
    cache: Cache | None,
    device: torch.device | str,
) -> Generator[Progress, None, Prepared]:
    """The learnable baselines: the teacher's own features are the target, and the overhaul's margins are measured."""

    @torch.no_grad()
    def target_of(view: Tensor) -> Tensor:
        teacher.eval()
        if params.align == "conv_after_relu":
            return pooled_features(teacher.model, teacher.prepare(view))
        return pre_activation_features(teacher.model, teacher.prepare(view), teacher_point)

    reading = "features" if params.align == "conv_after_relu" else "pre-activation features"
    cached = yield from _cached(target_of, reading, view_batches, params, cache, device)
    margin = None
    if params.align == "overhaul":
        negative = NegativeMeans.empty(teacher_point.width)
        for batch in view_batches(0):
            known = None if cached is None else cached.read(0, batch.indices)[TARGET]
            negative.update(target_of(batch.view.to(device)) if known is None else known)
        margin = negative.margin()
    objective = build_objective(params, student_point, teacher_point.width, None if cached else target_of, margin)
    return Prepared(objective, cached, (), student_point, teacher_point)


def _cached(
    target_of: TargetOf,
    reading: str,
    view_batches: ViewBatches,
    params: KdepParams,
    cache: Cache | None,
    device: torch.device | str,
) -> Generator[Progress, None, CachedOutputs | None]:
    """The targets of every view on disk; None where the teacher runs online."""
    if params.views is None:
        return None
    if cache is None:
        raise BadInput("views", params.views, "expected null, because there is no folder for cached targets")
    outputs = CachedOutputs(
        cache.folder,
        {TARGET: content_key(teacher=cache.teacher_key, reading=reading)},
        n_samples=cache.n_samples,
        views=params.views,
        data_key=cache.data_key,
        view_key=cache.view_key,
    )
    yield from outputs.fill({TARGET: target_of}, view_batches, device=device)
    return outputs


def _column(cached: CachedOutputs, widths: list[int], layer: int) -> Iterator[Tensor]:
    """Cached targets of one layer on view 0, a thousand samples at a time."""
    for start in range(0, cached.n_samples, 1024):
        indices = torch.arange(start, min(start + 1024, cached.n_samples))
        yield torch.split(cached.read(0, indices)[TARGET], widths, dim=1)[layer]
