"""Label smoothing smooths the target, not the prediction."""

import pytest
import torch
import torch.nn.functional as F

from backend.domain.methods import CeParams, LabelSmoothingParams
from workers.science.batch import Batch
from workers.science.transfer.cross_entropy import CrossEntropy, LabelSmoothing, label_smoothed_cross_entropy
from workers.science.transfer.roles import Roles

ZS = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [1, 1, 1, 1]])
Y = torch.tensor([0, 1, 2, 3])


def test_label_smoothing_is_cross_entropy_to_a_smoothed_target():
    target = 0.9 * F.one_hot(Y, 4) + 0.1 / 4
    by_hand = -(target * ZS.log_softmax(1)).sum(1).mean()
    assert label_smoothed_cross_entropy(ZS, Y, smoothing=0.1).item() == pytest.approx(by_hand.item(), abs=1e-6)
    smoothed_prediction = -(0.9 * ZS.softmax(1) + 0.1 / 4).log().gather(1, Y[:, None]).mean()
    assert abs(smoothed_prediction.item() - by_hand.item()) > 1e-3


def test_no_smoothing_is_cross_entropy():
    assert label_smoothed_cross_entropy(ZS, Y, smoothing=0.0).item() == pytest.approx(1.091861, abs=1e-6)


@pytest.mark.parametrize(
    "objective, value",
    [
        (CrossEntropy(CeParams(), Roles(torch.nn.Identity())), 1.091861),
        (LabelSmoothing(LabelSmoothingParams(smoothing=0.0), Roles(torch.nn.Identity())), 1.091861),
    ],
)
def test_objectives_take_logits(objective, value):
    batch = Batch(ZS, Y, torch.arange(4))
    assert objective.loss(torch.nn.Identity(), batch)["loss"].item() == pytest.approx(value, abs=1e-6)
