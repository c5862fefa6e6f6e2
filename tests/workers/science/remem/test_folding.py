"""Folding into a stock timm checkpoint: exact without ε, close with it, refused where it cannot be."""

import copy

import pytest
import timm
import torch

from backend.domain.errors import BadInput
from backend.domain.remem import LoraParams
from tests.workers.science.remem.families import FOLDABLE, VIT, build, images, without_epsilon
from workers.science.remem.folding import fold, fold_factors
from workers.science.remem.lora import add_lora
from workers.science.remem.reweighting import prune, restore, reweight


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


def test_xcit_is_reweighted_but_not_exported():
    model = reweight(build("xcit"), mlp_weight=0.8)
    with pytest.raises(BadInput, match=r"Xcit.*class attention"):
        fold(model)


def test_a_model_without_a_final_norm_is_not_exported():
    model = timm.create_model("vit_tiny_patch16_224", **VIT, final_norm=False)
    with pytest.raises(BadInput, match="no final norm"):
        fold(reweight(model, mlp_weight=0.8))


def test_lora_is_merged_before_folding():
    with pytest.raises(BadInput, match="merge"):
        fold(add_lora(build(), LoraParams(rank=2)))
