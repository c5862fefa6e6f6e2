"""The teacher's side of KDEP, whole: pre-activation feature → alignment → transform → what the student learns.

He et al., CVPR 2022, §3. N samples, B batch, D_t teacher channels, D_s student channels, K = min(D_t, D_s) aligned
channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backend.domain.errors import BadInput
from backend.domain.kdep import AlignmentReport, KdepParams
from workers.science.kdep.align import FIXED_ALIGNERS, FixedAlign, isometric_expansion
from workers.science.kdep.svd import FeatureMoments, svd_basis
from workers.science.kdep.transform import match_std, pts, standardise, std_ratio

TARGET = "kdep_target"
"""Name of the cached targets in `Batch.outputs`."""


@dataclass(frozen=True)
class TargetMap:
    """From the teacher's feature to the student's target; a function of the teacher's moments, the params and the
    width.

    Shape:
        std: [K], of the aligned channels; original_std: [D_t]; expansion: [K, D_s] or None.
    """

    align: FixedAlign
    transform: str
    std: Tensor
    original_std: Tensor
    expansion: Tensor | None
    pts_temperature: float
    pts_exponent: float

    def transformed(self, features: Tensor) -> Tensor:
        """Aligned and transformed, before any expansion: [N, D_t] → [N, K]."""
        aligned = self.align(features)
        if self.transform == "pts":
            return pts(aligned, temperature=self.pts_temperature, exponent=self.pts_exponent)
        if self.transform == "sn":
            return standardise(aligned, self.std)
        if self.transform == "sm":
            return match_std(aligned, self.std, self.original_std)
        return aligned

    def __call__(self, features: Tensor) -> Tensor:
        """[N, D_t] → [N, D_s], in the features' dtype."""
        target = self.transformed(features)
        return target if self.expansion is None else target @ self.expansion.to(target.device, target.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for `from_state`."""
        return {
            "offset": self.align.offset, "weight": self.align.weight, "transform": self.transform, "std": self.std,
            "original_std": self.original_std, "expansion": self.expansion,
            "pts_temperature": self.pts_temperature, "pts_exponent": self.pts_exponent,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TargetMap:
        """The map that `state_dict` described."""
        rest = {name: value for name, value in state.items() if name not in ("offset", "weight")}
        return cls(FixedAlign(state["offset"], state["weight"]), **rest)


def build_target_map(moments: FeatureMoments, student_width: int, params: KdepParams) -> TargetMap:
    """Fit alignment and transform to the teacher's moments.

    A teacher narrower than the student: interpolation widens by itself; SVD and the choice of channels keep all D_t
    channels, transform them, and spread them over the D_s student channels by a seeded isometry
    (`isometric_expansion`).

    Raises:
        BadInput: the teacher is narrower and `params.narrow_teacher` is "refuse"; an aligner that is learnt, not
        fitted.
    """
    if params.align not in FIXED_ALIGNERS:
        raise BadInput("align", params.align, f"one of: {', '.join(FIXED_ALIGNERS)}")
    narrower = moments.width < student_width
    if narrower and params.narrow_teacher == "refuse" and not params.align.startswith("interpolate"):
        expected = (
            f"the teacher has {moments.width} channels, the student {student_width}: "
            "choose narrow_teacher=expand, align=interpolate_linear, or a wider teacher"
        )
        raise BadInput("narrow_teacher", params.narrow_teacher, expected)
    align = FIXED_ALIGNERS[params.align](moments, student_width, params.seed)
    kept = int(align.weight.shape[1])
    expansion = isometric_expansion(kept, student_width, params.seed) if kept < student_width else None
    transform = params.transform
    if transform == "sm" and kept > moments.width:
        raise BadInput("transform", "sm", f"std matching needs at least {kept} teacher channels, not {moments.width}")
    return TargetMap(
        align, transform, align.std(moments), moments.std(), expansion, params.pts_temperature, params.pts_exponent
    )


def alignment_report(
    target_map: TargetMap, moments: FeatureMoments, params: KdepParams, targets: Iterable[Tensor] | None = None
) -> AlignmentReport:
    """Widths and std ratios; the ratio after a transform needs `targets`, batches [B, D_s] of what the map returned.

    `variance_share` is the part of the teacher's variance that an SVD keeps.
    """
    kept = int(target_map.align.weight.shape[1])
    after: float | None = std_ratio(target_map.std)
    if target_map.transform != "none":
        after = None
        if targets is not None:
            deviations = FeatureDeviations.empty(kept)
            for batch in targets:
                # The expansion has orthonormal rows, so its transpose takes it back exactly.
                known = batch.double()
                deviations.update(known if target_map.expansion is None else known @ target_map.expansion.T)
            after = std_ratio(deviations.std())
    share = svd_basis(moments, kept).variance_share if params.align == "svd" else None
    return AlignmentReport(
        teacher_width=moments.width,
        student_width=kept if target_map.expansion is None else int(target_map.expansion.shape[1]),
        aligned_width=kept,
        expanded=target_map.expansion is not None,
        variance_share=None if share is None else min(share, 1.0),
        teacher_std_ratio=_finite(std_ratio(moments.std())),
        std_ratio_before=_finite(std_ratio(target_map.std)),
        std_ratio_after=None if after is None else _finite(after),
    )


def _finite(value: float) -> float | None:
    return value if value != float("inf") else None


@dataclass
class FeatureDeviations:
    """Running mean and variance of each channel, without the covariances."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, width: int) -> FeatureDeviations:
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    def update(self, features: Tensor) -> None:
        """Add a batch [B, D]."""
        batch = features.detach().to("cpu", torch.float64)
        n, mean = batch.shape[0], batch.mean(0)
        shift, total = mean - self.mean, self.count + batch.shape[0]
        self.squares += (batch - mean).square().sum(0) + shift.square() * (self.count * n / total)
        self.mean += shift * (n / total)
        self.count = total

    def std(self) -> Tensor:
        """[D], with N − 1."""
        if self.count < 2:
            raise BadInput("features", self.count, "expected at least 2 samples")
        return (self.squares / (self.count - 1)).sqrt()
