"""The class a model names for each image, batch by batch."""

import numpy as np
import pytest
import torch
from torch import nn

from backend.domain.errors import BadInput
from workers.science.preprocessed import Preprocessed
from workers.science.top1 import predict_top1

PIXELS = torch.randint(0, 256, (11, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def model():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Dropout(0.5), nn.Linear(216, 4))
    return Preprocessed(inner, 8, (0.5,) * 3, (0.5,) * 3)


def test_batches_change_nothing_and_the_model_gets_its_mode_back():
    student = model().train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    whole = predict_top1(student, PIXELS)
    assert np.array_equal(whole, predict_top1(student, PIXELS, batch_size=3))
    with torch.no_grad():
        expected = student.eval()(PIXELS.float() / 255).argmax(dim=1)
    assert whole.tolist() == expected.tolist()
    student.train()
    predict_top1(student, PIXELS)
    assert all(module.training for module in student.modules())
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_nan_has_no_largest():
    student = model()
    with torch.no_grad():
        student.model[-1].bias[2] = float("nan")
    with pytest.raises(BadInput, match="finite logits"):
        predict_top1(student, PIXELS)
