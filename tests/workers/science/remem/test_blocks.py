"""Blocks are known by what they compute; other architectures get an error that names them."""

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

from backend.domain.errors import BadInput
from tests.workers.science.remem.families import FOLDABLE, TINY, VIT, build
from workers.science.remem.blocks import evaluating, image_size, scale_parameter, transformer_blocks
from workers.science.remem.reweighting import reweight


def test_looking_at_a_model_changes_nothing_about_it():
    model = build("deit").train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    assert len(transformer_blocks(model)) == 3
    with evaluating(model):
        assert not model.training
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("family", FOLDABLE)
def test_layer_scale_is_found_by_any_of_its_names(family):
    scaled = {"vit_layer_scale", "vit_registers", "deit3", "beit", "beitv2", "cait", "relpos"}
    gammas = [scale_parameter(block, which) for block in build(family).blocks for which in (1, 2)]
    assert all((gamma is not None) == (family in scaled) for gamma in gammas)


def test_image_size_is_the_model_s_own():
    assert image_size(build("vit")) == (3, 32, 32)
    assert image_size(timm.create_model("resnet10t")) == (3, 176, 176)


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
