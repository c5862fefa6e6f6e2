"""Feature maps of transformers and CNNs, and the cache that changes nothing but the time."""

import pytest
import timm
import torch
from torch import nn

from backend.domain.errors import BadInput
from workers.science.information.features import ModelFeatures, cache_bytes, feature_map
from workers.science.information.reconstruction import kept_when_they_fit
from workers.science.preprocessed import Preprocessed

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "options", "size", "shape"),
    [
        ("vit_tiny_patch16_224", VIT, (32, 32), (32, 4, 4)),
        ("vit_tiny_patch16_224", {**VIT, "img_size": (32, 64)}, (32, 64), (32, 4, 8)),
        ("vit_small_patch14_reg4_dinov2", VIT, (32, 32), (32, 4, 4)),
        ("deit_tiny_distilled_patch16_224", VIT, (32, 32), (32, 4, 4)),
        ("beit_base_patch16_224", VIT, (32, 32), (32, 4, 4)),
        ("eva02_tiny_patch14_224", VIT, (32, 32), (32, 4, 4)),
        ("cait_xxs24_224", VIT, (32, 32), (32, 4, 4)),
        (
            "xcit_nano_12_p16_224",
            {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5},
            (32, 32),
            (32, 2, 2),
        ),
        ("resnet10t", {"num_classes": 5}, (64, 64), (512, 2, 2)),
        (
            "swin_tiny_patch4_window7_224",
            {
                "img_size": 64,
                "embed_dim": 24,
                "window_size": 2,
                "depths": (1, 1),
                "num_heads": (2, 2),
                "num_classes": 5,
            },
            (64, 64),
            (48, 8, 8),
        ),
    ],
)
def test_grid_and_width(name, options, size, shape):
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        assert feature_map(model, torch.randn(2, 3, *size)).shape == (2, *shape)


def test_tokens_land_on_their_patches():
    model = timm.create_model("vit_tiny_patch16_224", **VIT, final_norm=False).eval()
    x = torch.randn(1, 3, 32, 32)
    model.blocks = nn.Sequential()
    with torch.no_grad():
        expected = model._pos_embed(model.patch_embed(x))[:, 1:]
        assert torch.equal(feature_map(model, x)[0, :, 1, 2], expected[0, 1 * 4 + 2])


def views(positions):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 3, 40, 40, generator=generator)[positions]


def source():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **VIT)
    return ModelFeatures(Preprocessed(model, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), views, 6)


def drained(generator):
    steps = []
    while True:
        try:
            steps.append(next(generator).step)
        except StopIteration as end:
            return steps, end.value


def test_images_are_what_the_model_saw_without_its_normalisation():
    features = source()
    _, images = features.batch(torch.tensor([1, 4]))
    smooth = torch.nn.functional.interpolate(views(torch.tensor([1, 4])), (32, 32), mode="bicubic", antialias=True)
    assert images.shape == (2, 3, 32, 32)
    assert (images - smooth.clamp(0, 1)).abs().max() < 0.5 / 255 + 1e-5
    assert torch.equal(images * 255, (images * 255).round())


def test_the_cache_holds_the_same():
    features = source()
    steps, kept = drained(kept_when_they_fit(features, 10**9, batch_size=4))
    assert steps == [4, 6]
    assert (kept.n_images, kept.width, kept.grid, kept.image_size) == (6, 32, (4, 4), (32, 32))
    positions = torch.tensor([5, 0, 2])
    for left, right in zip(kept.batch(positions), features.batch(positions), strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_features_that_do_not_fit_are_computed_when_asked_for():
    features = source()
    assert cache_bytes(features) == 6 * (4 * 32 * 16 + 3 * 32 * 32)
    steps, kept = drained(kept_when_they_fit(features, cache_bytes(features) - 1))
    assert steps == []
    assert kept is features


def test_a_model_without_features_is_refused():
    with pytest.raises(BadInput, match="forward_features"):
        feature_map(nn.Linear(3, 3), torch.zeros(1, 3))
