"""From the teacher's channels to the student's, or back: every aligner of KDEP, He et al., CVPR 2022, §3.2 and table 2.

Fixed aligners work on the teacher's side and have nothing to learn: SVD, a choice of channels, interpolation.
Learnable ones are the baselines and work on the student's side: a 1×1 convolution before the activation, after it, or
Heo et al.'s overhaul (ICCV 2019, arXiv:1904.01866). Pooling is linear, so a 1×1 convolution of the map followed by
pooling is a linear layer of the pooled feature; that is what is built here, and why a teacher's features can be
cached pooled.

B, N samples; D_t teacher channels; D_s student channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.domain.errors import BadInput
from workers.science.kdep.svd import FeatureMoments, svd_basis


@dataclass(frozen=True)
class FixedAlign:
    """An affine map of the teacher's feature: (f − offset) @ weight.

    Shape:
        offset: [D_t]; weight: [D_t, K], K ≤ D_s.
    """

    offset: Tensor
    weight: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """[N, D_t] → [N, K], in the features' dtype."""
        offset, weight = (t.to(features.device, features.dtype) for t in (self.offset, self.weight))
        return (features - offset) @ weight

    def std(self, moments: FeatureMoments) -> Tensor:
        """Standard deviation (N − 1) of each aligned channel, exactly, from the moments alone: [K]."""
        covariance = moments.scatter / (moments.count - 1)
        return ((covariance @ self.weight) * self.weight).sum(0).clamp_min(0).sqrt()


def align_by_svd(moments: FeatureMoments, width: int, seed: int = 0) -> FixedAlign:
    """Centre and project on the top singular vectors; `width` ≥ D_t keeps all D_t of them (a rotation)."""
    basis = svd_basis(moments, min(width, moments.width))
    return FixedAlign(basis.mean, basis.components)


def align_by_variance(moments: FeatureMoments, width: int, seed: int = 0) -> FixedAlign:
    """Keep the `width` channels that vary most, in their old order; a tie keeps the earlier channel."""
    chosen = moments.std().argsort(descending=True, stable=True)[:width].sort().values
    return _pick(moments, chosen)


def align_at_random(moments: FeatureMoments, width: int, seed: int = 0) -> FixedAlign:
    """Keep `width` channels drawn without replacement with the seed, in their old order."""
    order = torch.randperm(moments.width, generator=torch.Generator().manual_seed(seed))
    return _pick(moments, order[:width].sort().values)


def interpolate_linearly(moments: FeatureMoments, width: int, seed: int = 0) -> FixedAlign:
    """Read the channels as samples of a curve and resample it linearly; widens as well as it narrows."""
    weight = _resampled(torch.eye(moments.width, dtype=torch.float64), width)
    return FixedAlign(_no_offset(moments), weight.to(moments.scatter))


def _resampled(rows: Tensor, width: int) -> Tensor:
    return F.interpolate(rows[:, None], size=width, mode="linear", align_corners=False)[:, 0]


def interpolate_nearest(moments: FeatureMoments, width: int, seed: int = 0) -> FixedAlign:
    """Channel ⌊i · D_t / D_s⌋ for i = 0 … D_s − 1: a strided pick, repeating channels where the student is wider."""
    return _pick(moments, torch.arange(width) * moments.width // width)


def _pick(moments: FeatureMoments, channels: Tensor) -> FixedAlign:
    weight = torch.zeros(moments.width, len(channels), dtype=torch.float64)
    weight[channels, torch.arange(len(channels))] = 1.0
    return FixedAlign(_no_offset(moments), weight.to(moments.scatter.device))


def _no_offset(moments: FeatureMoments) -> Tensor:
    return torch.zeros_like(moments.mean)


FIXED_ALIGNERS: dict[str, Callable[[FeatureMoments, int, int], FixedAlign]] = {
    "svd": align_by_svd,
    "channel_variance": align_by_variance,
    "channel_random": align_at_random,
    "interpolate_linear": interpolate_linearly,
    "interpolate_nearest": interpolate_nearest,
}


class LinearConnector(nn.Module):
    """The learnable 1×1 convolution of the baselines, as a linear layer of the pooled feature: [B, D_s] → [B, D_t]."""

    def __init__(self, student_width: int, teacher_width: int, seed: int = 0) -> None:
        super().__init__()
        self.linear = _seeded_linear(student_width, teacher_width, seed)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.linear(features)
        return output


class OverhaulConnector(nn.Module):
    """Heo et al.'s connector: a 1×1 convolution and a batch norm on the student's pre-activation feature."""

    def __init__(self, student_width: int, teacher_width: int, seed: int = 0) -> None:
        super().__init__()
        self.linear = _seeded_linear(student_width, teacher_width, seed)
        self.norm = nn.BatchNorm1d(teacher_width)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.norm(self.linear(features))
        return output


def _seeded_linear(student_width: int, teacher_width: int, seed: int) -> nn.Linear:
    linear = nn.Linear(student_width, teacher_width, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.normal_(0.0, (1.0 / student_width) ** 0.5, generator=generator)
    return linear


def margin_relu(features: Tensor, margin: Tensor) -> Tensor:
    """Heo's margin ReLU, max(f, m): a teacher's negative responses are cut at m < 0, their mean in that channel.

    Shape:
        features: [N, D_t]; margin: [D_t], ≤ 0.
    """
    return torch.maximum(features, margin.to(features.device, features.dtype))


def partial_l2(student: Tensor, target: Tensor) -> Tensor:
    """Heo's partial L2, mean over elements: nothing where the target is not positive and the student is already below
    it.

    Reduces to the mean squared error when every target is positive.
    """
    squared = (student - target).pow(2)
    return torch.where((student <= target) & (target <= 0), torch.zeros_like(squared), squared).mean()


@dataclass
class NegativeMeans:
    """Running per-channel mean of the negative responses, from which the margins come; 0 where there is none."""

    total: Tensor
    count: Tensor

    @classmethod
    def empty(cls, width: int) -> NegativeMeans:
        return cls(torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    def update(self, features: Tensor) -> None:
        """Add a batch [B, D_t]."""
        batch = features.detach().to("cpu", torch.float64)
        self.total += batch.clamp_max(0).sum(0)
        self.count += (batch < 0).sum(0)

    def margin(self) -> Tensor:
        """[D_t], float64."""
        return torch.where(self.count > 0, self.total / self.count.clamp_min(1), torch.zeros_like(self.total))


def isometric_expansion(narrow: int, wide: int, seed: int = 0) -> Tensor:
    """A seeded matrix [narrow, wide] with orthonormal rows: it keeps every distance and angle between targets.

    This is the rule for a teacher narrower than its student: the D_t target channels are spread over all D_s student
    channels by this matrix. The L2 loss then equals the L2 loss of the student seen through the matrix, plus the
    square of what the student puts outside of its D_t-dimensional range. Zero padding has the same geometry but would
    leave D_s − D_t student channels dead behind the ReLU that fine-tuning sees.
    """
    if not 1 <= narrow <= wide:
        raise BadInput("expansion", (narrow, wide), "expected 1 ≤ teacher channels ≤ student channels")
    gaussian = torch.randn(wide, narrow, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(gaussian)
    expansion: Tensor = (q * r.diagonal().sign()).T.contiguous()
    return expansion
