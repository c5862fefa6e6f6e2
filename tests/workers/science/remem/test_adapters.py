"""Adapters: start as the model, keep stock names, and are never exported."""

import copy

import pytest
import torch

from backend.domain.errors import BadInput
from tests.workers.science.remem.families import build, images, trained
from workers.science.expertness import mlp_layers
from workers.science.remem.adapters import add_adapters
from workers.science.remem.folding import fold
from workers.science.remem.recipe import stock_checkpoint

FAMILIES = ["vit", "deit_distilled", "beit", "eva", "eva02_large", "cait", "xcit"]


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
