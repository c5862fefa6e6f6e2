"""LoRA: starts as the model, trains q and v alone, merges into a stock checkpoint."""

import copy

import pytest
import torch

from backend.domain.remem import LoraParams
from tests.workers.science.remem.families import build, images, trained
from workers.science.remem.lora import SplitQkv, add_lora, has_lora, merge_lora, merged_copy

FAMILIES = ["vit", "deit_distilled", "beit", "eva", "eva02_large", "cait", "xcit"]


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_starts_as_the_model_and_merges_into_it(family):
    model, x = build(family), images()
    stock = copy.deepcopy(model)
    add_lora(model, LoraParams(rank=4, scale=8))
    with torch.no_grad():
        assert torch.allclose(model(x), stock(x), atol=1e-5)
        trained(model)
        adapted = model(x)
        assert not torch.allclose(adapted, stock(x), atol=1e-3)
        merged = merged_copy(model)
        assert merged.state_dict().keys() == stock.state_dict().keys()
        stock.load_state_dict(merged.state_dict())
        assert torch.allclose(stock(x), adapted, atol=1e-5)
        assert has_lora(model)
        assert torch.equal(model(x), adapted)


def test_only_the_updates_train_and_only_of_q_and_v():
    model = add_lora(build(), LoraParams(rank=4))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        f"blocks.{i}.attn.qkv.{part}.lora_{ab}.default.weight" for i in range(3) for part in "qv" for ab in "AB"
    }
    assert isinstance(model.blocks[0].attn.qkv, SplitQkv)


def test_lora_is_seeded_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = build(), build()
    torch.set_rng_state(before)
    add_lora(a, LoraParams(rank=4), seed=1)
    assert torch.equal(before, torch.get_rng_state())
    add_lora(b, LoraParams(rank=4), seed=1)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_scale_is_divided_by_the_rank():
    model = add_lora(build(), LoraParams(rank=4, scale=8))
    assert model.blocks[0].attn.qkv.q.scaling["default"] == 2.0
    assert add_lora(build(), LoraParams()).blocks[0].attn.qkv.v.scaling["default"] == 1.0


def test_merging_twice_is_merging_once():
    model, x = trained(add_lora(build(), LoraParams(rank=4))), images()
    with torch.no_grad():
        once = merge_lora(model)(x)
        assert torch.equal(merge_lora(model)(x), once)
    assert all(p.requires_grad for p in model.parameters())
