"""Making the channels of a projected feature equally hard to learn: PTS, SN and SM of KDEP, He et al., CVPR 2022, §3.3.

After SVD the first channels vary many times more than the last ones, and an L2 loss would learn those alone. N samples,
D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backend.domain.errors import BadInput

# A channel that varies less than this share of the most varying one is rounding noise: it is scaled by nothing.
_NEGLIGIBLE = 1e-7


def pts(features: Tensor, *, temperature: float = 0.1, exponent: float = 3.0) -> Tensor:
    """Power temperature scaling: sign(f) · |f / T|^(1/n), elementwise; n = 1 and T = 1 is the identity."""
    if not (temperature > 0 and exponent > 0):
        raise BadInput("pts", (temperature, exponent), "expected temperature > 0 and exponent > 0")
    return features.sign() * (features.abs() / temperature).pow(1.0 / exponent)


def standardise(features: Tensor, std: Tensor) -> Tensor:
    """Scale normalisation (SN): each channel divided by its own standard deviation [D]."""
    return features / _usable(std).to(features.device, features.dtype)


def match_std(features: Tensor, std: Tensor, original_std: Tensor) -> Tensor:
    """Std matching (SM): channel i, by falling `std`, gets the i-th largest standard deviation of the original
    channels.

    Shape:
        features: [N, D]; std: [D]; original_std: [D'] with D' ≥ D.
    """
    if original_std.shape[0] < std.shape[0]:
        expected = f"expected at least {std.shape[0]} original channels"
        raise BadInput("original_std", int(original_std.shape[0]), expected)
    wanted = torch.empty_like(std)
    wanted[std.argsort(descending=True, stable=True)] = (
        original_std.sort(descending=True).values[: std.shape[0]].to(std)
    )
    return features * (wanted / _usable(std)).to(features.device, features.dtype)


def std_ratio(std: Tensor) -> float:
    """Largest over smallest channel standard deviation; infinite when a channel is constant."""
    lowest = float(std.min())
    return float(std.max()) / lowest if lowest > 0 else float("inf")


def _usable(std: Tensor) -> Tensor:
    """The standard deviations, with 1 in the place of those of constant channels."""
    return torch.where(std > _NEGLIGIBLE * std.max(), std, torch.ones_like(std))
