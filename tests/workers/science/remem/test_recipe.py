"""The prepared teacher: what is trainable, what its stock checkpoint says, the paper's grid."""

import pytest
import torch
from torch import nn

from backend.domain.errors import BadInput
from backend.domain.remem import LoraParams, TeacherTuning
from tests.workers.science.remem.families import build, images, trained
from workers.science.preprocessed import Preprocessed
from workers.science.remem.recipe import prepare_teacher, stock_checkpoint, teacher_grid, zero_head
from workers.science.remem.reweighting import weights_of


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("family", ["vit", "beit", "deit_distilled", "eva02_large"])
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
    assert [weights_of(block).attention_pruned for block in model.blocks] == [False, False, True]
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
