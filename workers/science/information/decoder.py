"""The decoder that restores an image from a feature map: ReMem, arXiv:2506.23041, appendix A.5.

Four stages to H/8, H/4, H/2, H (28, 56, 112, 224): bilinear upsampling with aligned corners, then a convolution:
1×1 to 128, 3×3 to 32, 3×3 to 12 (each with batch norm and ReLU), 3×3 to 3 and a sigmoid. D width, h × w feature grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (128, 32, 12)


class Decoder(nn.Module):
    """Features [B, D, h, w] → image [B, 3, H, W] in [0, 1]. 139,467 parameters at D = 768.

    The first convolution is 1×1 and runs before its upsampling: bilinear weights sum to one, so the two commute, and a
    quarter of the work and memory is enough.

    Args:
        feature_width: D.
        image_size: H, W of the images; any size, any feature grid.
    """

    def __init__(self, feature_width: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.feature_width, self.image_size = feature_width, image_size
        self.squeeze = nn.Conv2d(feature_width, _WIDTHS[0], 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in _WIDTHS)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in zip(_WIDTHS, (*_WIDTHS[1:], 3), strict=True)
        )

    def logits(self, features: Tensor) -> Tensor:
        """The image before the sigmoid, [B, 3, H, W]."""
        x = self._upsampled(self.squeeze(features), 8)
        for norm, conv, divisor in zip(self.norms, self.convs, (4, 2, 1), strict=True):
            x = conv(self._upsampled(F.relu(norm(x)), divisor))
        return x

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(features))

    def _upsampled(self, x: Tensor, divisor: int) -> Tensor:
        height, width = (max(1, side // divisor) for side in self.image_size)
        return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
