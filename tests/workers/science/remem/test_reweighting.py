"""Reweighting: α = 1 is the stock model, the paper's effective weights, pruning that can be undone."""

import copy

import pytest
import timm
import torch
from torch import nn

from backend.domain.errors import BadInput
from tests.workers.science.remem.families import FOLDABLE, build, images
from workers.science.remem.reweighting import effective_weights, prune, reweight, reweighted, weights_of


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


@pytest.mark.parametrize("weight", [0.0, 2.0, -1.0])
def test_weights_outside_the_range_are_refused(weight):
    with pytest.raises(BadInput, match="mlp_weight"):
        reweight(build("vit"), mlp_weight=weight)
