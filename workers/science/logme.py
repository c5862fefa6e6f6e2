"""LogME, the evidence of the labels given frozen features: You et al., ICML 2021, arXiv:2102.11005.

For every class a Bayesian linear regression of the indicator y on the features, w ~ N(0, α⁻¹), y ~ N(f w, β⁻¹); α and β
maximise the evidence by a fixed point iteration. N samples, D channels, r the rank of F.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.domain.errors import BadInput

# As in the published code, so that values can be compared with published ones: at most eleven steps, until α/β moves
# by less than 1 %. Iterating on changes the evidence in the eighth digit.
_ITERATIONS = 11
_TOLERANCE = 1e-2


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """Log maximum evidence per sample in nats, mean over the classes; higher promises better fine-tuning.

    Shape:
        features: [N, D]; labels: [N] class indices (those that occur count).

    Raises:
        BadInput: shapes that do not fit, features that are not finite or all zero, or fewer than two classes.
    """
    f = np.asarray(features, dtype=np.float64)
    y = np.asarray(labels)
    if f.ndim != 2 or y.shape != (f.shape[0],):
        raise BadInput("features", f.shape, f"expected [N, D] features with [N] labels, not {y.shape}")
    if not np.isfinite(f).all():
        raise BadInput("features", "NaN or infinity", "expected finite features")
    classes = np.unique(y)
    if len(classes) < 2:
        raise BadInput("labels", len(classes), "expected at least two classes")
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    if not s[0] > 0:
        raise BadInput("features", "all zero", "expected features that vary")
    keep = s > s[0] * max(f.shape) * np.finfo(np.float64).eps
    u, squares = u[:, keep], np.square(s[keep])
    targets = (y[:, None] == classes[None, :]).astype(np.float64)
    projected = np.square(u.T @ targets)
    outside = np.maximum(np.square(targets).sum(axis=0) - projected.sum(axis=0), 0.0)
    return float(np.mean([_evidence(squares, projected[:, c], outside[c], *f.shape) for c in range(len(classes))]))


def _evidence(squares: NDArray[np.float64], projected: NDArray[np.float64], outside: float, n: int, d: int) -> float:
    """Evidence per sample of one indicator y: `squares` σ² [r], `projected` (uᵀy)² [r], `outside` ‖y‖² beyond F."""
    alpha = beta = 1.0
    tiny = np.finfo(np.float64).tiny
    residual = norm = gamma = 0.0
    for _ in range(_ITERATIONS):
        shrunk = alpha + beta * squares
        gamma = float((beta * squares / shrunk).sum())
        norm = float((beta**2 * squares * projected / np.square(shrunk)).sum())
        residual = float((alpha**2 * projected / np.square(shrunk)).sum() + outside)
        old = alpha / beta
        alpha = gamma / max(norm, tiny)
        beta = (n - gamma) / max(residual, tiny)
        if abs(alpha / beta - old) < _TOLERANCE * old:
            break
    shrunk = alpha + beta * squares
    log_determinant = float(np.log(shrunk).sum()) + (d - len(squares)) * math.log(alpha)
    evidence = d / 2 * math.log(alpha) + n / 2 * math.log(beta) - log_determinant / 2
    evidence -= beta / 2 * residual + alpha / 2 * norm + n / 2 * math.log(2 * math.pi)
    return evidence / n
