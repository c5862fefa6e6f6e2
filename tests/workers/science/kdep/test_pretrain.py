"""A whole pre-training in memory: every method, cached and online, interrupted and resumed to the same bits."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from backend.domain.errors import BadInput
from backend.domain.kdep import KdepParams
from workers.science.kdep.pretrain import Cache, Prepared, prepare
from workers.science.kdep.targets import TARGET
from workers.science.preprocessed import Preprocessed
from workers.science.tensor_batches import TensorBatches
from workers.science.training import Training, fit

SIZE = (3, 32, 32)
IMAGES = torch.rand(30, *SIZE, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 4


def _model(name: str, classes: int = 4, seed: int = 0) -> Preprocessed:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=classes)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return Preprocessed(model, SIZE, [0.5] * 3, [0.5] * 3)


def _params(**settings: Any) -> KdepParams:
    quick = {"epochs": 2, "batch_size": 8, "lr": 0.01, "loss_weight": 1.0, "augment": "flip", "views": 2}
    return KdepParams(**{**quick, **settings})


def _cache(folder: Path) -> Cache:
    return Cache(folder, len(IMAGES), teacher_key="teacher", data_key="data", view_key="flip-0")


def _prepare(teacher: Preprocessed | None, student: Preprocessed, params: KdepParams, cache: Cache | None) -> Prepared:
    steps = prepare(teacher, student, TensorBatches(IMAGES, None, params).view, params, cache)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _train(student: Preprocessed, prepared: Prepared, params: KdepParams, labels: torch.Tensor | None = None) -> float:
    batches = TensorBatches(IMAGES, labels, params, cached=prepared.cached)
    loss = float("nan")
    for step in fit(Training(prepared.objective, student, batches, params)):
        loss = step.metrics.get("loss", loss)
    return loss


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"transform": "sn"}, {"transform": "sm"}, {"transform": "none"}, {"align": "channel_variance"},
        {"align": "channel_random"}, {"align": "interpolate_linear"}, {"align": "interpolate_nearest"},
        {"align": "conv_before_relu"}, {"align": "conv_after_relu"}, {"align": "overhaul"}, {"layers": 2},
        {"method": "logits"},
    ],
)  # fmt: skip
def test_cached_and_online_training_agree(settings: dict[str, Any], tmp_path: Path) -> None:
    teacher, student = _model("test_efficientnet", seed=1), _model("test_resnet")
    cached, online = _params(**settings), _params(**settings, epochs=2)
    other = copy.deepcopy(student)
    first = _prepare(teacher, student, cached, _cache(tmp_path))
    assert first.cached is not None
    loss = _train(student, first, cached)
    # Online: as many views as epochs, so the same pictures, but the teacher looks at each of them.
    online = online.model_copy(update={"views": None})
    second = _prepare(teacher, other, online, None)
    assert second.cached is None
    assert _train(other, second, online) == pytest.approx(loss, rel=1e-3)
    assert loss > 0
    for a, b in zip(student.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_supervised_needs_no_teacher_and_the_others_do(tmp_path: Path) -> None:
    student, params = _model("test_resnet"), _params(method="supervised")
    prepared = _prepare(None, student, params, None)
    assert _train(student, prepared, params, LABELS) > 0
    with pytest.raises(BadInput, match="expected a teacher for method features"):
        _prepare(None, student, _params(), None)
    with pytest.raises(BadInput, match="views"):
        _prepare(_model("test_efficientnet"), student, _params(), None)


def test_the_report_tells_what_was_aligned(tmp_path: Path) -> None:
    teacher, student = _model("test_efficientnet", seed=1), _model("test_resnet")
    prepared = _prepare(teacher, student, _params(), _cache(tmp_path))
    (report,) = prepared.alignments
    # 30 samples span 29 directions at most, so that the last SVD channels hardly vary at all.
    assert (report.teacher_width, report.student_width, report.expanded) == (256, 96, False)
    assert report.variance_share == pytest.approx(1.0)
    assert report.std_ratio_before is None or report.std_ratio_before > 1e4
    assert [last.path for last in prepared.teacher_point.activations] == ["bn2.act"]
    assert prepared.student_point.width == 96
    narrow = _prepare(_model("test_convnext", seed=2), student, _params(), _cache(tmp_path / "b"))
    assert (narrow.alignments[0].teacher_width, narrow.alignments[0].expanded) == (64, True)
    target = narrow.cached.read(1, torch.arange(30))[TARGET]
    assert target.shape == (30, 96)


def test_the_cache_is_filled_once_and_keyed_by_what_matters(tmp_path: Path) -> None:
    student = _model("test_resnet")
    teacher = _model("test_efficientnet", seed=1)
    _prepare(teacher, student, _params(), _cache(tmp_path))
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 3  # moments, and the targets of two views
    _prepare(teacher, student, _params(lr=0.5, epochs=7), _cache(tmp_path))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    _prepare(teacher, student, _params(pts_exponent=2.0), _cache(tmp_path))
    assert len(list(tmp_path.iterdir())) == 5, "other targets, same moments"


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_interrupted_anywhere_the_student_is_the_same_to_the_bit(stop: int, tmp_path: Path) -> None:
    params = _params(align="svd")
    teacher = _model("test_efficientnet", seed=1)
    whole = _model("test_resnet")
    _train(whole, _prepare(teacher, whole, params, _cache(tmp_path / "a")), params)

    part = _model("test_resnet")
    steps = prepare(teacher, part, TensorBatches(IMAGES, None, params).view, params, _cache(tmp_path / "b"))
    for _ in range(stop):
        next(steps)  # killed while the teacher was measured or its targets were cached
    steps.close()
    prepared = _prepare(teacher, part, params, _cache(tmp_path / "b"))
    training = Training(prepared.objective, part, TensorBatches(IMAGES, None, params, cached=prepared.cached), params)
    progress = fit(training)
    for _ in range(stop):
        next(progress)
    state = copy.deepcopy(training.state_dict())

    resumed = _model("test_resnet", seed=9)
    prepared = _prepare(teacher, resumed, params, _cache(tmp_path / "b"))
    training = Training(
        prepared.objective, resumed, TensorBatches(IMAGES, None, params, cached=prepared.cached), params
    )
    training.load_state_dict(state)
    for _ in fit(training):
        pass
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.model.state_dict().items())
