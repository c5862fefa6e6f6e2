"""The decoder of A.5: its size, any image and grid, and the convolution that runs before its upsampling."""

import pytest
import torch
import torch.nn.functional as F

from workers.science.information.decoder import Decoder


def test_parameters_at_width_768():
    assert sum(p.numel() for p in Decoder(768, (224, 224)).parameters()) == 139_467


@pytest.mark.parametrize(
    ("grid", "size"), [((14, 14), (224, 224)), ((4, 4), (32, 32)), ((3, 5), (48, 80)), ((7, 7), (30, 30))]
)
def test_any_grid_to_any_size(grid, size):
    image = Decoder(8, size).eval()(torch.randn(2, 8, *grid))
    assert image.shape == (2, 3, *size)
    assert image.min() > 0
    assert image.max() < 1


def test_squeezing_before_upsampling_is_the_paper_s_order():
    decoder = Decoder(8, (32, 32)).double().eval()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    up = F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=True)
    first = F.relu(decoder.norms[0](decoder.squeeze(up)))
    second = decoder.convs[0](F.interpolate(first, size=(8, 8), mode="bilinear", align_corners=True))
    third = F.relu(decoder.norms[1](second))
    third = decoder.convs[1](F.interpolate(third, size=(16, 16), mode="bilinear", align_corners=True))
    last = F.relu(decoder.norms[2](third))
    last = decoder.convs[2](F.interpolate(last, size=(32, 32), mode="bilinear", align_corners=True))
    assert torch.allclose(decoder(x), torch.sigmoid(last), atol=1e-12)
