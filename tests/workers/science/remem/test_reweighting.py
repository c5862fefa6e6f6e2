"""Reweighting: α = 1 is the stock model, the paper's effective weights, folding to a stock checkpoint, pruning."""

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn

from backend.domain.errors import BadInput
from workers.science.remem.folding import fold, fold_factors
from workers.science.remem.reweighting import effective_weights, prune, restore, reweight, reweighted, weights_of

TINY = {"img_size": 32, "num_classes": 5}
VIT = {**TINY, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
FOLDABLE = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit_layer_scale": ("vit_small_patch14_dinov2", {**VIT, "init_values": 0.3}),
    "vit_average_pool": ("vit_base_patch16_224", {**VIT, "global_pool": "avg"}),
    "vit_registers": ("vit_small_patch14_reg4_dinov2", VIT),
    "vit_map_pool": ("vit_base_patch16_siglip_224", VIT),
    "deit": ("deit_tiny_patch16_224", VIT),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "deit3": ("deit3_small_patch16_224", VIT),
    "beit": ("beit_base_patch16_224", {**VIT, "init_values": 0.3}),
    "beit_no_scale": ("beit_base_patch16_224", {**VIT, "init_values": None}),
    "beitv2": ("beitv2_base_patch16_224", {**VIT, "init_values": 0.3}),
    "eva": ("eva_giant_patch14_224", {**VIT, "mlp_ratio": 2.0}),
    "eva02": ("eva02_tiny_patch14_224", {**VIT, "mlp_ratio": 2.0}),
    "eva02_large": ("eva02_base_patch14_448", {**VIT, "mlp_ratio": 2.0}),
    "cait": ("cait_xxs24_224", {**VIT, "init_values": 0.3}),
    "relpos": ("vit_relpos_small_patch16_224", VIT),
}
XCIT = ("xcit_nano_12_p16_224", {**TINY, "embed_dim": 32, "depth": 3, "num_heads": 2, "cls_attn_layers": 1, "eta": 0.5})


def build(family):
    name, options = XCIT if family == "xcit" else FOLDABLE[family]
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():  # zero-initialised biases and tokens would hide what folding must scale
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(n=2, dtype=torch.float32):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=dtype)


def without_epsilon(model):
    for module in model.modules():
        if isinstance(getattr(module, "eps", None), float):
            module.eps = 0.0
    return model


@pytest.mark.parametrize("family", [*FOLDABLE, "xcit"])
def test_weight_one_is_the_stock_model_to_the_bit(family):
    model, x = build(family), images()
    with torch.no_grad():
        stock = model(x)
        reweight(model, mlp_weight=0.8)
        assert not torch.allclose(model(x), stock)
        assert torch.equal(reweight(model, mlp_weight=1.0)(x), stock)
        with reweighted(model, mlp_weight=1 - 1e-7):  # the reweighted code path, with weights that are all but one
            assert torch.allclose(model(x), stock, atol=1e-4)
        assert torch.equal(model(x), stock)


@pytest.mark.parametrize("family", FOLDABLE)
@pytest.mark.parametrize(("mlp", "attention"), [(0.8, 1.0), (0.9, 0.8)])
def test_fold_is_exact_without_epsilon(family, mlp, attention):
    model = without_epsilon(build(family).double())
    stock = copy.deepcopy(model)
    reweight(model, mlp_weight=mlp, attention_weight=attention)
    stock.load_state_dict(fold(model).state)
    x = images(dtype=torch.float64)
    with torch.no_grad():
        assert (model(x) - stock(x)).abs().max() < 1e-10
        assert not torch.allclose(model(x), restore(model)(x))


@pytest.mark.parametrize("family", FOLDABLE)
def test_folded_checkpoint_opens_in_plain_timm(family):
    name, options = FOLDABLE[family]
    model = reweight(build(family), mlp_weight=0.8)
    folded = fold(model)
    stock = timm.create_model(name, **options).eval()
    stock.load_state_dict(folded.state)
    x = images(4)
    with torch.no_grad():
        logits = model(x)
        assert (logits - stock(x)).abs().max() <= 1e-3 * logits.abs().max()
    assert folded.max_difference <= 1e-3 * folded.max_logit


def test_fold_of_the_stock_model_is_its_own_state():
    model = build("vit")
    for name, value in fold(model).state.items():
        assert torch.equal(value, model.state_dict()[name])


def test_fold_factors_are_the_papers():
    model = reweight(build("vit"), mlp_weight=0.8)
    for i, (attention, mlp) in enumerate(fold_factors(model)):
        assert attention == pytest.approx(1 / 1.2**i)
        assert mlp == pytest.approx(0.8 / 1.2 ** (i + 1))


def test_effective_weights():
    weights = effective_weights(12, 0.8)
    assert [weights[0], weights[5], weights[11]] == pytest.approx([5.944067, 2.388787, 0.8], abs=1e-6)
    assert effective_weights(3, 1.0) == [1, 1, 1]


class Constant(nn.Module):
    """A branch whose output does not depend on its input."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, attn_mask=None, is_causal=False):
        return torch.full_like(x, self.value)


def test_scalar_golden():
    model = build("vit")
    for block, value in zip(model.blocks, (0.5, 0.25, 0.125), strict=True):
        block.attn, block.mlp = Constant(0.0), Constant(value)
    reweight(model, mlp_weight=0.8)
    x = torch.ones(1, 17, 32)
    for block in model.blocks:
        x = block(x)
    assert x.flatten()[0].item() == pytest.approx(2.644, abs=1e-6)


@pytest.mark.parametrize("branch", ["mlp", "attention"])
@pytest.mark.parametrize("mlp_weight", [1.0, 0.8])
def test_pruned_branches_fold_to_zero(branch, mlp_weight):
    model = without_epsilon(build("deit").double())
    stock = copy.deepcopy(model)
    prune(reweight(model, mlp_weight=mlp_weight), branch, 2)
    calls = []
    part = "mlp" if branch == "mlp" else "attn"
    for i, block in enumerate(model.blocks):
        getattr(block, part).register_forward_hook(lambda *_, i=i: calls.append(i))
    x = images(dtype=torch.float64)
    with torch.no_grad():
        pruned = model(x)
        assert calls == [0]
        stock.load_state_dict(fold(model).state)
        assert (pruned - stock(x)).abs().max() < 1e-10


def test_pruning_keeps_weights_and_is_undone():
    model, x = build("vit"), images()
    with torch.no_grad():
        stock = model(x)
        reweight(prune(model, "mlp", 3), mlp_weight=0.9)
        assert weights_of(model.blocks[2]).mlp_pruned
        assert weights_of(model.blocks[2]).mlp == 0.9
        reweight(prune(model, "mlp", 0), mlp_weight=1.0)
        assert torch.equal(model(x), stock)


def test_a_copy_is_independent():
    model, x = reweight(build("vit"), mlp_weight=0.8), images()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        before = copied(x)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copied(x), before)


def test_training_mode_and_gradients_reach_every_parameter():
    name, options = FOLDABLE["beit"]
    model = reweight(timm.create_model(name, **options, drop_path_rate=0.1).train(), mlp_weight=0.8)
    model(images(8)).square().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "q_bias" not in n)
    assert model.blocks[1].drop_path1.training


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {"num_classes": 5}),
        ("swinv2_cr_tiny_224", {**TINY, "img_size": 64, "window_size": 2, "embed_dim": 24}),
        ("swin_tiny_patch4_window7_224", {**TINY, "embed_dim": 24, "window_size": 4, "depths": (1, 1, 1, 1)}),
        ("vit_base_patch16_rpn_224", VIT),
        ("vit_relpos_base_patch16_rpn_224", VIT),
        ("mobilevitv2_050", {"num_classes": 5}),
        ("pvt_v2_b0", {"num_classes": 5}),
    ],
)
def test_other_architectures_get_a_clear_error(name, options):
    assert_refused(timm.create_model(name, **options))


def test_parallel_blocks_get_a_clear_error():
    assert_refused(VisionTransformer(**VIT, block_fn=ParallelScalingBlock))


def assert_refused(model):
    with pytest.raises(BadInput) as error:
        reweight(model, mlp_weight=0.8)
    assert type(model).__name__ in str(error.value)
    assert "pre-norm" in str(error.value)


def test_xcit_is_reweighted_but_not_exported():
    model = reweight(build("xcit"), mlp_weight=0.8)
    with pytest.raises(BadInput, match=r"Xcit.*class attention"):
        fold(model)


def test_a_model_without_a_final_norm_is_not_exported():
    model = timm.create_model("vit_tiny_patch16_224", **VIT, final_norm=False)
    with pytest.raises(BadInput, match="no final norm"):
        fold(reweight(model, mlp_weight=0.8))


@pytest.mark.parametrize("weight", [0.0, 2.0, -1.0])
def test_weights_outside_the_range_are_refused(weight):
    with pytest.raises(BadInput, match="mlp_weight"):
        reweight(build("vit"), mlp_weight=weight)
