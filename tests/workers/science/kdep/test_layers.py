"""The multi-layer variant: which stages, before which activation, one forward pass, one weighted sum."""

import pytest
import timm
import torch
from torch import nn

from backend.domain.errors import BadInput
from workers.science.batch import Batch
from workers.science.kdep.features import find_feature_point, pooled_features, pre_activation_features
from workers.science.kdep.layers import LayersObjective, find_layer_points, layer_features, layer_weights
from workers.science.kdep.targets import TARGET
from workers.science.preprocessed import Preprocessed

SIZE = (3, 64, 64)


def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": 64} if "vit" in name else {}
    model = timm.create_model(name, num_classes=3, **size).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def test_one_layer_is_plain_kdep() -> None:
    model = _model("resnet18")
    x = torch.randn(2, *SIZE)
    points = find_layer_points(model, 1, SIZE)
    assert points.last == find_feature_point(model, SIZE)
    assert points.widths == (512,)
    with torch.no_grad():
        assert torch.equal(layer_features(model, x, points)[0], pre_activation_features(model, x, points.last))


@torch.no_grad()
def test_stages_are_counted_from_the_end_and_read_before_their_activation() -> None:
    model = _model("resnet18")
    x = torch.randn(2, *SIZE)
    points = find_layer_points(model, 3, SIZE)
    assert points.widths == (512, 256, 128)
    assert [stage.activation for stage in points.earlier] == ["layer3.1.act2", "layer2.1.act2"]
    stock = pooled_features(model, x)
    features = layer_features(model, x, points)
    assert torch.equal(features[0], pre_activation_features(model, x, points.last))
    assert torch.equal(pooled_features(model, x), stock)
    seen: list[torch.Tensor] = []
    model.layer3[1].act2 = nn.Identity()
    model.layer3[1].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    model.forward_features(x)
    torch.testing.assert_close(features[1], seen[0].mean(dim=(2, 3)))
    assert features[1].min() < 0
    assert features[2].min() < 0


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
@torch.no_grad()
def test_stages_without_an_activation_are_read_as_they_are(name: str) -> None:
    model = _model(name)
    x = torch.randn(2, *SIZE)
    points = find_layer_points(model, 2, SIZE)
    assert points.earlier[0].activation is None
    maps = model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")
    last, earlier = layer_features(model, x, points)
    torch.testing.assert_close(earlier, maps[-2].mean(dim=(2, 3)))
    torch.testing.assert_close(last, pre_activation_features(model, x, points.last))


def test_a_body_is_run_once_even_with_batch_norm() -> None:
    model = _model("resnet18").train()
    points = find_layer_points(model, 4, SIZE)
    assert model.training
    before = int(model.bn1.num_batches_tracked)
    layer_features(model, torch.randn(2, *SIZE), points)
    assert int(model.bn1.num_batches_tracked) == before + 1


def test_too_many_layers_are_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"at most \d, the stages of resnet18"):
        find_layer_points(_model("resnet18"), 12, SIZE)


def test_the_loss_is_the_weighted_sum_and_reaches_every_stage() -> None:
    student = Preprocessed(_model("resnet18"), SIZE, [0.5] * 3, [0.5] * 3)
    points = find_layer_points(student.model, 2, SIZE)
    view = torch.rand(2, *SIZE)
    targets = torch.randn(2, 512 + 256)
    objective = LayersObjective(points, layer_weights(2, 20.0, 0.5))
    terms = objective.loss(student, Batch(view, None, torch.arange(2), {TARGET: targets}))
    features = layer_features(student.model, student.prepare(view), points)
    expected = (
        20 * (features[0] - targets[:, :512]).square().mean(),
        10 * (features[1] - targets[:, 512:]).square().mean(),
    )
    torch.testing.assert_close(terms["layer_1"], expected[0])
    torch.testing.assert_close(terms["layer_2"], expected[1])
    torch.testing.assert_close(terms["loss"], expected[0] + expected[1])
    terms["layer_2"].backward()
    assert student.model.layer3[1].conv2.weight.grad.abs().sum() > 0
    assert student.model.layer4[0].conv1.weight.grad is None
    with pytest.raises(BadInput, match="768 channels in all"):
        objective.loss(student, Batch(view, None, torch.arange(2), {TARGET: targets[:, :700]}))
    with pytest.raises(BadInput, match="one for each layer"):
        LayersObjective(points, (1.0,))
