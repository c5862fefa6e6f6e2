"""How alike are the classes a teacher could help with? Roth et al., arXiv:2310.17653, §3.2, Fig. 2b.

C classes, E numbers of an embedding of a class's name. The paper embeds label strings with CLIP's text encoder; any
table [C, E] does. A class without a vector is a row of NaN: it is left out, and the coverage says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.domain.errors import BadInput
from backend.domain.flips import top_classes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClassSimilarity:
    """Mean cosine over the unordered pairs of the chosen classes that have a vector.

    `relative` is mean_cosine / mean_cosine_all − 1: above 0 the chosen classes are more alike than classes are on
    average. None where fewer than two classes have a vector, or the average is 0.
    """

    n_classes: int
    n_covered: int
    n_covered_all: int
    mean_cosine: float | None
    mean_cosine_all: float
    relative: float | None

    @property
    def coverage(self) -> float:
        """Share of the chosen classes that have a vector."""
        return self.n_covered / self.n_classes if self.n_classes else 0.0


def embedding_table(vectors: Mapping[int, ArrayLike], n_classes: int) -> Floats:
    """Vectors by class index as a table [C, E], NaN where a class has none."""
    if not vectors:
        raise BadInput("vectors", {}, "at least one class needs a vector")
    widths = {np.asarray(vector).shape for vector in vectors.values()}
    if len(widths) > 1 or len(next(iter(widths))) != 1:
        raise BadInput("vectors", sorted(widths), "all vectors need the same length")
    outside = [c for c in vectors if not 0 <= c < n_classes]
    if outside:
        raise BadInput("vectors", outside[0], f"class indices lie between 0 and {n_classes - 1}")
    table = np.full((n_classes, next(iter(widths))[0]), np.nan)
    for c, vector in vectors.items():
        table[c] = vector
    return table


def class_similarity(embeddings: ArrayLike, classes: ArrayLike) -> ClassSimilarity:
    """Similarity of the chosen classes, and of all classes for comparison.

    With all classes chosen `relative` is 0. Scaling a vector changes nothing.

    Args:
        embeddings: One vector per class, [C, E]; a row with NaN means: none.
        classes: Different class indices.
    """
    table = np.asarray(embeddings, dtype=np.float64)
    if table.ndim != 2:
        raise BadInput("embeddings", table.shape, "one vector per class, [C, E], is needed")
    chosen = np.asarray(classes, dtype=np.int64)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= len(table) or len(np.unique(chosen)) != len(chosen)):
        raise BadInput("classes", chosen.tolist(), f"different class indices below {len(table)} are needed")
    length = np.linalg.norm(table, axis=1)
    covered = np.isfinite(length) & (length > 0)
    unit = np.where(covered[:, None], table / np.where(covered, length, 1.0)[:, None], 0.0)
    average = _mean_cosine(unit[covered])
    if average is None:
        raise BadInput("embeddings", int(covered.sum()), "at least two classes need a vector")
    mean = _mean_cosine(unit[chosen[covered[chosen]]])
    return ClassSimilarity(
        n_classes=len(chosen),
        n_covered=int(covered[chosen].sum()),
        n_covered_all=int(covered.sum()),
        mean_cosine=mean,
        mean_cosine_all=average,
        relative=None if mean is None or average == 0 else mean / average - 1,
    )


def top_class_similarity(embeddings: ArrayLike, positive_per_class: ArrayLike, p: float) -> ClassSimilarity:
    """Similarity of the classes that hold p % of a pair's positive flips (Fig. 2b); p as in `top_classes`."""
    return class_similarity(embeddings, top_classes(positive_per_class, p))


def _mean_cosine(unit: Floats) -> float | None:
    """Mean of u_i · u_j over i < j: Σ_{i<j} u_i · u_j = (‖Σ u‖² − k) / 2, without the k² products."""
    k = len(unit)
    if k < 2:
        return None
    total = unit.sum(axis=0)
    return float((total @ total - np.einsum("ij,ij->", unit, unit)) / (k * (k - 1)))
