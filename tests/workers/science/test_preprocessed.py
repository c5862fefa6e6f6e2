"""One view, and each model its own size and normalisation."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from backend.domain.errors import BadInput
from workers.science.preprocessed import Preprocessed, classifier_parameters, frozen_copy


def test_each_model_normalises_for_itself():
    view = torch.rand(2, 3, 4, 4)
    for mean, std in (((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)), ((0.5,) * 3, (0.5,) * 3)):
        seen = Preprocessed(nn.Identity(), 4, mean, std)(view)
        for channel in range(3):
            torch.testing.assert_close(seen[:, channel], (view[:, channel] - mean[channel]) / std[channel])


def test_a_view_of_the_right_size_is_not_resampled():
    view = torch.rand(2, 3, 4, 6)
    seen = Preprocessed(nn.Identity(), (4, 6), (0.0,) * 3, (1.0,) * 3, "bicubic")(view)
    assert torch.equal(seen, view)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_other_sizes_are_resampled(interpolation):
    view = torch.rand(2, 3, 32, 32)
    seen = Preprocessed(nn.Identity(), (3, 8, 12), (0.0,) * 3, (1.0,) * 3, interpolation)(view)
    assert seen.shape == (2, 3, 8, 12)
    assert 0 <= seen.min() <= seen.max() <= 1
    if interpolation == "bilinear":
        expected = F.interpolate(view, (8, 12), mode="bilinear", antialias=True)
        torch.testing.assert_close(seen, expected)


def test_bicubic_overshoot_is_clamped():
    view = torch.zeros(1, 3, 8, 8)
    view[..., 4:] = 1
    seen = Preprocessed(nn.Identity(), 16, (0.0,) * 3, (1.0,) * 3, "bicubic")(view)
    assert (seen.min(), seen.max()) == (0, 1)


def test_grey_models_see_the_mean_of_the_channels():
    view = torch.rand(2, 3, 4, 4)
    one = Preprocessed(nn.Identity(), 4, (0.5,), (0.25,))(view)
    torch.testing.assert_close(one, (view.mean(1, keepdim=True) - 0.5) / 0.25)
    three = Preprocessed(nn.Identity(), (1, 4, 4), (0.4, 0.5, 0.6), (0.25,) * 3)(view)
    torch.testing.assert_close(three, one)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_features_go_into_the_classifier(name):
    model = Preprocessed(timm.create_model(name, num_classes=7), 32, (0.5,) * 3, (0.5,) * 3).eval()
    if name == "test_vit":
        model = Preprocessed(timm.create_model(name, num_classes=7, img_size=32), 32, (0.5,) * 3, (0.5,) * 3).eval()
    view = torch.rand(2, 3, 32, 32)
    features, logits = model.features_and_logits(view)
    torch.testing.assert_close(model(view), logits)
    torch.testing.assert_close(model.features(view), features)
    torch.testing.assert_close(model.model.get_classifier()(features), logits)
    model.train()
    assert model.feature_dim() == features.shape[1] == model.model.num_features
    assert model.training


def test_a_plain_torch_model_says_what_is_missing():
    model = Preprocessed(nn.Flatten(), 4, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(BadInput, match=r"Flatten.*forward_features"):
        model.features(torch.rand(1, 3, 4, 4))
    with pytest.raises(BadInput, match="get_classifier"):
        classifier_parameters(model)


def test_the_classifier_is_not_found_by_name():
    """ViT's `mlp.fc1` contains `fc`; only the head is the classifier."""
    model = timm.create_model("test_vit", num_classes=7)
    found = {id(parameter) for parameter in classifier_parameters(model)}
    assert {name for name, p in model.named_parameters() if id(p) in found} == {"head.weight", "head.bias"}
    assert any("fc" in name for name, _ in model.named_parameters())
    with pytest.raises(BadInput, match="num_classes above 0"):
        classifier_parameters(timm.create_model("test_vit", num_classes=0))


def test_a_frozen_copy_shares_nothing():
    model = Preprocessed(timm.create_model("test_resnet"), 32, (0.5,) * 3, (0.5,) * 3).train()
    copy = frozen_copy(model)
    assert not copy.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    memory = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert memory.isdisjoint(tensor.data_ptr() for tensor in copy.state_dict().values())


@pytest.mark.parametrize(
    "options, field",
    [
        ({"input_size": (2, 4, 4)}, "input_size"),
        ({"input_size": 0}, "input_size"),
        ({"mean": (0.5, 0.5)}, "mean, std"),
        ({"std": (0.5, 0.5, 0.0)}, "mean, std"),
        ({"interpolation": "lanczos"}, "interpolation"),
    ],
)
def test_bad_preprocessing_is_named(options, field):
    usual = {"input_size": 4, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    with pytest.raises(BadInput) as caught:
        Preprocessed(nn.Identity(), **usual | options)
    assert caught.value.field == field
