"""LoRA, adapters, zero head and the stock checkpoint of a prepared teacher."""

import copy

import pytest
import timm
import torch
from torch import nn

from backend.domain.errors import BadInput
from backend.domain.remem import LoraParams, TeacherTuning
from workers.science.expertness import mlp_layers
from workers.science.preprocessed import Preprocessed
from workers.science.remem.adapters import add_adapters
from workers.science.remem.folding import fold
from workers.science.remem.lora import SplitQkv, add_lora, has_lora, merge_lora, merged_copy
from workers.science.remem.recipe import prepare_teacher, stock_checkpoint, teacher_grid, zero_head
from workers.science.remem.reweighting import weights_of

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {}),
    "beit": ("beit_base_patch16_224", {"init_values": 0.3}),
    "eva_fused": ("eva_giant_patch14_224", {"mlp_ratio": 2.0}),
    "eva02_unfused": ("eva02_base_patch14_448", {"mlp_ratio": 2.0}),
    "cait": ("cait_xxs24_224", {"init_values": 0.3}),
    "xcit": ("xcit_nano_12_p16_224", {}),
}


def build(family="vit"):
    name, options = FAMILIES[family]
    options = {**VIT, **options}
    if family == "xcit":
        del options["patch_size"]
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(n=4):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def trained(model):
    """One step on whatever wants gradients, and noise on zero-initialised updates."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_" in name or "adapter" in name):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


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
        f"blocks.{i}.attn.qkv.{part}.lora_{ab}.default.weight" for i in range(2) for part in "qv" for ab in "AB"
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


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_as_the_model(family):
    model, x = build(family), images()
    names = set(model.state_dict())
    with torch.no_grad():
        stock = model(x)
        add_adapters(model, reduction=16)
        assert torch.equal(model(x), stock)
        assert not torch.equal(trained(model)(x), stock)
        copied = copy.deepcopy(model)
        before = copied(x)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copied(x), before)
    assert names < set(model.state_dict())
    assert model.blocks[0].mlp.adapter.down.out_features == 2
    assert all("adapter" in name for name, p in model.named_parameters() if p.requires_grad)
    assert len(mlp_layers(model)) >= 2


def test_adapters_are_not_exported():
    with pytest.raises(BadInput, match=r"VisionTransformer.*adapters"):
        stock_checkpoint(add_adapters(build()))
    with pytest.raises(BadInput, match="adapters"):
        fold(add_adapters(build()))


def test_lora_is_merged_before_folding():
    with pytest.raises(BadInput, match="merge"):
        fold(add_lora(build(), LoraParams(rank=2)))


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("family", ["vit", "beit", "deit_distilled", "eva02_unfused"])
def test_a_prepared_teacher_exports_as_a_stock_checkpoint(tune, family):
    stock, x = build(family), images()
    model = Preprocessed(build(family), 32, (0.5,) * 3, (0.5,) * 3)
    tuning = TeacherTuning(tune=tune, mlp_weight=0.8, zero_init_head=False, lora=LoraParams(rank=4))
    trained(prepare_teacher(model, tuning))
    stock.load_state_dict(stock_checkpoint(model).state)
    with torch.no_grad():
        logits = model.model(x)
        assert (stock(x) - logits).abs().max() <= 1e-3 * logits.abs().max()


def test_the_head_starts_at_zero_and_trains_under_lora():
    model = prepare_teacher(build("deit_distilled"), TeacherTuning(tune="lora"))
    assert model(images()).abs().max() == 0
    heads = [name for name, p in model.named_parameters() if p.requires_grad and name.startswith("head")]
    assert heads == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    with pytest.raises(BadInput, match="get_classifier"):
        zero_head(nn.Linear(2, 2))


def test_the_default_tuning_without_zero_head_is_the_stock_model():
    model, x = build(), images()
    with torch.no_grad():
        stock = model(x)
        prepare_teacher(model, TeacherTuning(zero_init_head=False))
        assert torch.equal(model(x), stock)
    assert all(p.requires_grad for p in model.parameters())


def test_a_pruned_teacher_is_pruned_from_the_top():
    model = prepare_teacher(build(), TeacherTuning(pruned_blocks=1, pruned_branch="attention", zero_init_head=False))
    assert [weights_of(block).attention_pruned for block in model.blocks] == [False, True]
    stock, x = build(), images()
    stock.load_state_dict(stock_checkpoint(model).state)
    with torch.no_grad():
        assert torch.allclose(stock(x), model(x), atol=1e-5)


def test_grid():
    cells = list(teacher_grid(TeacherTuning()))
    assert len(cells) == len(set(cells)) == 5 * (1 + 3 + 2 + 6)
    assert [sum(cell.setting == s for cell in cells) for s in ("baseline", "sam", "reweight", "both")] == [
        5,
        15,
        10,
        30,
    ]
