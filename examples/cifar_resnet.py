"""ResNets for CIFAR-10 as a factory for your own models: He et al., arXiv:1512.03385, §4.2, shortcuts of option A.

The parameter names are those of akamaster/pytorch_resnet_cifar10, whose weights fit:

    zoograft models add resnet20 --arch examples.cifar_resnet:resnet20 --checkpoint resnet20-12fca82f.th \\
        --input-size 3,32,32 --crop-pct 1.0 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut that pads the missing channels with zeros."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.padding = stride, (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """`depth` = 6 n + 2 layers: a stem, three stages of n blocks with 16, 32 and 64 channels, a linear classifier."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if rest or n < 1:
            raise ValueError(f"depth must be 6 n + 2, not {depth}")
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, n, 1)
        self.layer2 = self._stage(16, 32, n, 2)
        self.layer3 = self._stage(32, 64, n, 2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, n: int, stride: int) -> nn.Sequential:
        rest = [Block(channels, channels, 1) for _ in range(n - 1)]
        return nn.Sequential(Block(channels_in, channels, stride), *rest)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, 32, 32] → the last stage's features [B, 64, 8, 8]."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features → logits [B, num_classes], or the pooled features [B, 64] before the classifier."""
        pooled = x.mean(dim=(2, 3))
        return pooled if pre_logits else self.linear(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.linear

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.linear = nn.Linear(64, num_classes)


def resnet20(num_classes: int = 10) -> CifarResNet:
    return CifarResNet(20, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    return CifarResNet(56, num_classes)
