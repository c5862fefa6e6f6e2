"""Running statistics: held still, and measured anew."""

import timm
import torch
from torch import nn

from workers.science.batchnorm import batchnorm_layers, frozen_statistics, reestimate_statistics


def test_timm_layers_are_found():
    assert batchnorm_layers(timm.create_model("test_efficientnet"))
    assert not batchnorm_layers(timm.create_model("test_vit"))


def test_frozen_statistics_change_nothing_but_normalise_with_the_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    view = torch.rand(5, 3, 4, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with frozen_statistics(model):
        held = model(view)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(held, model(view))
    assert model[1].num_batches_tracked == 1


def test_reestimating_measures_the_mean_over_batches_and_restores_modes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    views = [torch.randn(6, 2) + i for i in range(3)]
    reestimate_statistics(model, views)
    torch.testing.assert_close(model[0].running_mean, torch.stack([view.mean(0) for view in views]).mean(0))
    assert model[0].momentum == 0.1
    assert model.training
    assert model[1].training
    model.eval()
    reestimate_statistics(model, views)
    assert not model[0].training


def test_a_model_without_batchnorm_reads_no_data():
    def unread():
        raise AssertionError("read")
        yield

    reestimate_statistics(nn.Linear(2, 2), unread())
