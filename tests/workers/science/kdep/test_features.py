"""Pre-activation features, family by family: negative where they must be, and the stock feature behind the activation."""

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from backend.domain.errors import BadInput
from workers.science.kdep.features import (
    find_feature_point,
    pooled_features,
    pre_activation_features,
    without_last_activation,
)

# One small member of each family whose feature is rectified (or otherwise activated) → path of its last activation.
ACTIVATED = {
    "resnet18": "layer4.1.act2",
    "resnet26": "layer4.1.act3",
    "test_resnet": "layer4.0.act2",
    "skresnet18": "layer4.1.act",
    "resnetv2_50": "norm.act",
    "mobilenetv2_035": "bn2.act",
    "efficientnet_lite0": "bn2.act",
    "tinynet_e": "bn2.act",
    "test_efficientnet": "bn2.act",
    "test_efficientnet_ln": "bn2.act",
    "mobilenetv3_small_050": "act2",
    "lcnet_035": "act2",
    "mobilenetv4_conv_small_035": "norm_head.act",
    "ghostnet_050": "act2",
    "regnetx_002": "s4.b7.act3",
    "regnety_002": "s4.b7.act3",
    "densenet121": "features.norm5.act",
    "vgg11": "pre_logits.act2",
    "test_byobnet": "stages.3.0.act",
    "repvgg_a0": "stages.3.0.act",
    "gernet_s": "final_conv.bn.act",
    "test_nfnet": "final_act",
    "dla46_c": "level5.root.relu",
    "legacy_xception": "act4",
    "res2net50_26w_4s": "layer4.2.relu",  # the same module five times in a block: only its last call counts
}
PASSES_THROUGH = [
    "test_convnext", "convnext_atto", "test_vit", "test_vit3", "test_maxvit", "mixer_s32_224", "resmlp_12_224",
    "gmixer_12_224", "poolformerv2_s12", "edgenext_xx_small",
]  # fmt: skip
SIZE = (3, 64, 64)


def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    # 64 pixels, not the model's own size, wherever the architecture does not fix it.
    fixed = name.startswith(("test_vit", "test_maxvit", "mixer", "resmlp", "gmixer"))
    model = timm.create_model(name, num_classes=3, **({"img_size": 64} if fixed else {}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
            # A fresh ResNet ends its blocks with γ = 0, which hides everything in front of the activation.
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


class _Recorder(nn.Module):
    """The activation itself, keeping a copy of what went into it last."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation, self.seen = activation, torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.clone()
        return self.activation(x.clone())


@pytest.mark.parametrize("name", ACTIVATED)
@torch.no_grad()
def test_an_activated_family_is_read_in_front_of_its_last_activation(name: str) -> None:
    model = _model(name)
    x = torch.randn(3, *SIZE)
    point = find_feature_point(model, SIZE)
    assert [last.path for last in point.activations] == [ACTIVATED[name]]
    assert point.activations[0].call == point.activations[0].calls - 1
    stock = pooled_features(model, x)
    pre = pre_activation_features(model, x, point)
    assert pre.shape == stock.shape == (3, point.width)
    assert pre.min() < 0
    assert not torch.equal(pre, stock)
    assert torch.equal(pooled_features(model, x), stock), "the model must be as it was"

    # Independent of our own walk: record what really enters that activation, and put the activation back behind it.
    parent, _, attribute = ACTIVATED[name].rpartition(".")
    recorder = _Recorder(model.get_submodule(ACTIVATED[name]))
    setattr(model.get_submodule(parent), attribute, recorder)
    pooled_features(model, x)
    entered = recorder.seen.reshape(*recorder.seen.shape, *[1] * (4 - recorder.seen.ndim))
    torch.testing.assert_close(pre, entered.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stock, recorder.activation(entered.clone()).mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PASSES_THROUGH)
@torch.no_grad()
def test_a_family_that_ends_without_activation_passes_through(name: str) -> None:
    model = _model(name)
    x = torch.randn(3, *SIZE)
    point = find_feature_point(model, SIZE)
    assert point.passes_through
    stock = pooled_features(model, x)
    assert stock.min() < 0
    assert torch.equal(pre_activation_features(model, x, point), stock)


@torch.no_grad()
def test_concatenated_branches_lose_all_their_last_activations() -> None:
    model = _model("inception_v3")
    x = torch.randn(2, 3, 96, 96)
    point = find_feature_point(model, (3, 96, 96))
    assert len(point.activations) == 6
    assert all(last.path.startswith("Mixed_7c.") for last in point.activations)
    stock, pre = pooled_features(model, x), pre_activation_features(model, x, point)
    assert stock.min() >= 0
    assert (pre.min(dim=0).values < 0).float().mean() > 0.2
    with without_last_activation(model, point):
        feature_map = model.forward_features(x)
    torch.testing.assert_close(feature_map.relu().mean(dim=(2, 3)), stock)


def test_hooking_the_norm_in_front_of_an_in_place_activation_sees_a_rectified_tensor() -> None:
    """The trap: this is why the activation is taken away and not looked behind."""
    model = _model("densenet121")
    norm = model.features.norm5
    kept: list[torch.Tensor] = []
    norm.act.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        pooled_features(model, x)
        assert norm.act.inplace
        assert kept[0].min() >= 0
        assert pre_activation_features(model, x, find_feature_point(model, SIZE)).min() < 0


def test_finding_the_point_changes_nothing() -> None:
    model = _model("mobilenetv2_035").train()
    frozen_block = model.blocks[0].eval()
    before = copy.deepcopy(model.state_dict())
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    rng = torch.random.get_rng_state()
    find_feature_point(model, SIZE)
    assert [(name, id(module), module.training) for name, module in model.named_modules()] == modules
    assert not frozen_block.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(module.inplace for module in model.modules() if isinstance(module, nn.ReLU6))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_context_gives_the_activation_back_after_an_error() -> None:
    model = _model("resnet18")
    point = find_feature_point(model, SIZE)
    activation = model.layer4[1].act2
    within = without_last_activation(model, point)
    within.__enter__()
    assert isinstance(model.layer4[1].act2, nn.Identity)
    error = RuntimeError("boom")
    assert not within.__exit__(RuntimeError, error, None)
    assert model.layer4[1].act2 is activation


def test_a_student_trained_through_it_is_a_stock_checkpoint() -> None:
    model = _model("resnet18").train()
    point = find_feature_point(model, SIZE)
    pre_activation_features(model, torch.randn(2, *SIZE), point).square().mean().backward()
    assert model.layer4[1].conv2.weight.grad.abs().sum() > 0
    stock = timm.create_model("resnet18", num_classes=3)
    stock.load_state_dict(model.state_dict(), strict=True)


class _CifarBlock(nn.Module):
    """As in many hand-written networks, activations are calls, not modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class _CifarNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3), nn.Sequential(_CifarBlock(), _CifarBlock())
        self.linear = nn.Linear(8, 5)

    def map(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(torch.relu(self.stem(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(F.avg_pool2d(self.map(x), 30).flatten(1))


@torch.no_grad()
def test_a_network_outside_timm_with_functional_activations_is_read_too() -> None:
    torch.manual_seed(0)
    model, x = _CifarNet(), torch.randn(3, 3, 32, 32)
    point = find_feature_point(model, (3, 32, 32))
    assert (point.width, point.functions, point.function_calls, point.passes_through) == (8, (4,), 5, False)
    pre = pre_activation_features(model, x, point)
    torch.testing.assert_close(pooled_features(model, x), model.map(x).mean(dim=(2, 3)))
    assert pre.min() < 0
    first = model.blocks[0](torch.relu(model.stem(x)))
    block = model.blocks[1]
    torch.testing.assert_close(pre, (first + block.conv2(block.conv1(first).relu())).mean(dim=(2, 3)))
    with without_last_activation(model, point):
        assert torch.equal(pooled_features(model, x), pre)
        assert torch.equal(pooled_features(model, x), pre), "the count starts again with every pass"
    assert not any(module._forward_hooks for module in model.modules())


def test_the_shared_cifar_resnet_is_a_teacher(shared_data: Path) -> None:
    from examples.cifar_resnet import resnet20

    model = resnet20()
    state = torch.load(shared_data / "cifar10-weights" / "resnet20-12fca82f.th", weights_only=True, map_location="cpu")
    model.load_state_dict({key.removeprefix("module."): value for key, value in state["state_dict"].items()})
    model.eval()
    x = torch.randn(2, 3, 32, 32)
    point = find_feature_point(model, (3, 32, 32))
    assert (point.width, len(point.functions), point.function_calls) == (64, 1, 19)
    with torch.no_grad():
        assert torch.equal(model.linear(pooled_features(model, x)), model(x))
        assert pre_activation_features(model, x, point).min() < 0 <= pooled_features(model, x).min()


class _Shifted(nn.Module):
    """A last activation that is a clamp, or one with an affine behind it."""

    def __init__(self, shift: float | None = None) -> None:
        super().__init__()
        self.conv, self.act, self.shift = nn.Conv2d(3, 8, 3), nn.ReLU(), shift

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        if self.shift is None:
            return self.conv(x).clamp(min=0)
        return self.act(self.conv(x)) * 2 + self.shift

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x.mean(dim=(2, 3))


class _HalfReLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.5 * x)


def test_a_custom_activation_module_is_recognised() -> None:
    model = _Shifted(0.0)
    model.forward_features = lambda x: model.custom(model.conv(x))
    model.custom = _HalfReLU()
    assert [last.path for last in find_feature_point(model, SIZE).activations] == ["custom"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Shifted(), "_Shifted.*last activation.*Clamp"),
        (_Shifted(0.5), "_Shifted.*rectified"),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), "Sequential.*linear layer"),
    ],
)
def test_an_unsupported_architecture_is_named(model: nn.Module, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        find_feature_point(model, SIZE)


@pytest.mark.parametrize("name", ["test_efficientnet_evos", "hgnetv2_b0"])
def test_timm_models_with_a_fused_or_rescaled_activation_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=name):
        find_feature_point(timm.create_model(name, num_classes=3), SIZE)
