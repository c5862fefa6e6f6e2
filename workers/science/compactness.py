"""Compactness of a teacher's features: how far classes lie apart against how wide each one is (KDEP, CVPR 2022, §4.4,
fig. 4).

A low value means diverse features, which teach better than tight clusters. N samples, D channels, C classes present.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.domain.errors import BadInput


@dataclass(frozen=True)
class Scatter:
    """Traces of the between-class and within-class scatter matrices, and how much was counted."""

    between: float
    within: float
    n_samples: int
    n_classes: int

    @property
    def compactness(self) -> float | None:
        """tr S_B / tr S_W; None when every class is a single point."""
        return self.between / self.within if self.within > 0 else None


def class_scatter(features: ArrayLike, labels: ArrayLike) -> Scatter:
    """tr S_B = Σ_c n_c ‖μ_c − μ‖² and tr S_W = Σ_c Σ_{i in c} ‖f_i − μ_c‖²; they add up to the total scatter.

    Shape:
        features: [N, D]; labels: [N] class indices.

    Raises:
        BadInput: shapes that do not fit, features that are not finite, or fewer than two classes.
    """
    f = np.asarray(features, dtype=np.float64)
    y = np.asarray(labels)
    if f.ndim != 2 or y.shape != (f.shape[0],):
        raise BadInput("features", f.shape, f"expected [N, D] features with [N] labels, not {y.shape}")
    if not np.isfinite(f).all():
        raise BadInput("features", "NaN or infinity", "expected finite features")
    classes, index = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise BadInput("labels", len(classes), "expected at least two classes")
    sizes = np.bincount(index).astype(np.float64)
    f = f - f.mean(axis=0)
    means = _class_sums(f, index, len(classes)) / sizes[:, None]
    between = float((sizes * np.square(means).sum(axis=1)).sum())
    within = float(np.square(f - means[index]).sum())
    return Scatter(between, within, len(y), len(classes))


def _class_sums(features: NDArray[np.float64], index: NDArray[np.intp], n_classes: int) -> NDArray[np.float64]:
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(n_classes))
    return np.add.reduceat(features[order], starts, axis=0)
