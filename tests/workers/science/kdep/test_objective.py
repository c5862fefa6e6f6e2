"""Losses of KDEP and its baselines, their reductions, and that training them moves the student to the target."""

import pytest
import timm
import torch
import torch.nn.functional as F

from backend.domain.errors import BadInput
from backend.domain.kdep import KdepParams
from workers.science.batch import Batch
from workers.science.kdep.align import margin_relu
from workers.science.kdep.features import find_feature_point, pooled_features, pre_activation_features
from workers.science.kdep.objective import (
    ConnectorObjective,
    FeatureObjective,
    LogitsObjective,
    SupervisedObjective,
    build_objective,
    feature_loss,
)
from workers.science.kdep.targets import TARGET
from workers.science.preprocessed import Preprocessed
from workers.science.tensor_batches import TensorBatches
from workers.science.training import Training, fit

SIZE = (3, 32, 32)


@pytest.fixture
def student() -> Preprocessed:
    torch.manual_seed(0)
    return Preprocessed(timm.create_model("test_resnet", num_classes=5), SIZE, [0.5] * 3, [0.5] * 3)


def _batch(target: torch.Tensor | None, n: int = 6, labels: torch.Tensor | None = None) -> Batch:
    view = torch.rand(n, *SIZE, generator=torch.Generator().manual_seed(1))
    return Batch(view, labels, torch.arange(n), {} if target is None else {TARGET: target})


def test_the_loss_is_the_weighted_mean_over_elements() -> None:
    student, target = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    assert float(feature_loss(student, target, weight=3)) == pytest.approx(3 * (1 + 9) / 4)
    assert float(feature_loss(target, target)) == 0


def test_the_student_is_read_before_its_activation(student: Preprocessed) -> None:
    student.eval()
    point = find_feature_point(student.model, SIZE)
    batch = _batch(None)
    feature = pre_activation_features(student.model, student.prepare(batch.view), point).detach()
    batch = _batch(feature)
    assert FeatureObjective(point, weight=20).loss(student, batch)["loss"].item() == 0
    rectified = _batch(pooled_features(student.model, student.prepare(batch.view)).detach())
    assert FeatureObjective(point).loss(student, rectified)["loss"].item() > 0


def test_cached_and_computed_targets_are_one_loss(student: Preprocessed) -> None:
    student.eval()
    point = find_feature_point(student.model, SIZE)
    target = torch.randn(6, 96, generator=torch.Generator().manual_seed(2))
    cached = FeatureObjective(point).loss(student, _batch(target))["loss"]
    online = FeatureObjective(point, lambda view: target).loss(student, _batch(None))["loss"]
    assert torch.equal(cached, online)
    with pytest.raises(BadInput, match="kdep_target"):
        FeatureObjective(point).loss(student, _batch(None))
    with pytest.raises(BadInput, match=r"\(6, 96\)"):
        FeatureObjective(point).loss(student, _batch(target[:, :95]))


def test_connectors_read_before_after_or_through_the_margin(student: Preprocessed) -> None:
    student.eval()
    point = find_feature_point(student.model, SIZE)
    target = torch.randn(6, 12, generator=torch.Generator().manual_seed(3))
    batch = _batch(target)
    x = student.prepare(batch.view)
    before, after = pre_activation_features(student.model, x, point), pooled_features(student.model, x)
    for align, feature in (("conv_before_relu", before), ("conv_after_relu", after)):
        objective = ConnectorObjective(align, point, 12, weight=2.0)
        expected = 2 * F.mse_loss(objective.connector(feature), target)
        torch.testing.assert_close(objective.loss(student, batch)["loss"], expected)
        assert [tuple(parameter.shape) for parameter in objective.parameters()] == [(12, 96)]
    margin = torch.full((12,), -0.5)
    overhaul = ConnectorObjective("overhaul", point, 12, margin=margin)
    overhaul.connector.eval()
    connected, cut = overhaul.connector(before), margin_relu(target, margin)
    squared = (connected - cut).square() * ~((connected <= cut) & (cut <= 0))
    torch.testing.assert_close(overhaul.loss(student, batch)["loss"], squared.mean())


def test_a_connector_keeps_its_state() -> None:
    point = find_feature_point(timm.create_model("test_resnet"), SIZE)
    one = ConnectorObjective("overhaul", point, 7, margin=torch.zeros(7), seed=1)
    two = ConnectorObjective("overhaul", point, 7, margin=torch.zeros(7), seed=2)
    two.load_state_dict(one.state_dict())
    x = torch.randn(4, 96)
    assert torch.equal(one.connector(x), two.connector(x))
    with pytest.raises(BadInput, match="margins"):
        ConnectorObjective("overhaul", point, 7)
    with pytest.raises(BadInput, match="one of"):
        ConnectorObjective("svd", point, 7)


def test_logits_kd_is_kl_from_the_teacher_and_zero_when_learnt(student: Preprocessed) -> None:
    student.eval()
    batch = _batch(None)
    logits = student(batch.view).detach()
    assert LogitsObjective().loss(student, _batch(logits))["loss"].item() == pytest.approx(0, abs=1e-6)
    target = torch.randn(6, 5, generator=torch.Generator().manual_seed(4))
    p, q = (target / 4).softmax(1), (logits / 4).softmax(1)
    expected = 16 * (p * (p.log() - q.log())).sum(1).mean()
    loss = LogitsObjective(temperature=4).loss(student, _batch(target))["loss"]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="teacher's 7 classes"):
        LogitsObjective().loss(student, _batch(torch.randn(6, 7)))


def test_supervised_needs_labels(student: Preprocessed) -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    batch = _batch(None, labels=labels)
    student.eval()
    torch.testing.assert_close(
        SupervisedObjective().loss(student, batch)["loss"], F.cross_entropy(student(batch.view), labels)
    )
    with pytest.raises(BadInput, match="labelled"):
        SupervisedObjective().loss(student, _batch(None))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, FeatureObjective),
        ({"align": "conv_after_relu"}, ConnectorObjective),
        ({"method": "logits"}, LogitsObjective),
        ({"method": "supervised"}, SupervisedObjective),
    ],
)
def test_params_name_their_objective(settings: dict[str, str], kind: type) -> None:
    point = find_feature_point(timm.create_model("test_resnet"), SIZE)
    assert type(build_objective(KdepParams(**settings), point, 8, lambda view: view)) is kind


def test_training_moves_the_feature_to_the_target_without_labels(student: Preprocessed) -> None:
    images = torch.rand(24, *SIZE, generator=torch.Generator().manual_seed(5))
    directions = torch.randn(3, 96, generator=torch.Generator().manual_seed(6))
    point = find_feature_point(student.model, SIZE)
    # A target that can be read off the image: its mean colour, in 96 channels.
    params = KdepParams(epochs=25, batch_size=12, lr=0.05, loss_weight=1.0, augment="none", step_epochs=20)
    objective = FeatureObjective(point, lambda view: 20 * (view.mean(dim=(2, 3)) - 0.5) @ directions, weight=5.0)
    losses = [
        step.metrics["loss"]
        for step in fit(Training(objective, student, TensorBatches(images, None, params), params, log_every=1))
    ]
    assert losses[-1] < 0.5 * losses[0]
    timm.create_model("test_resnet", num_classes=5).load_state_dict(student.model.state_dict(), strict=True)
