"""Random pairs of a zoo for a study; the paper drew 466 over 301 models (Roth et al., arXiv:2310.17653, §3)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from backend.domain.errors import BadInput


def draw_pairs(names: Iterable[str], n: int, seed: int) -> list[tuple[str, str]]:
    """`n` different ordered pairs (teacher, student), teacher ≠ student, drawn at random.

    The same zoo, n and seed give the same pairs in the same order, however the names were listed. With n = M (M − 1) it
    is a permutation of all pairs.

    Raises:
        BadInput: when there are fewer than n pairs.
    """
    zoo = sorted(set(names))
    available = len(zoo) * (len(zoo) - 1)
    if not 1 <= n <= available:
        raise BadInput("n", n, f"{len(zoo)} models have {available} ordered pairs, from 1 to {available} can be drawn")
    if seed < 0:
        raise BadInput("seed", seed, "a seed is 0 or more")
    drawn = np.random.default_rng(seed).choice(available, size=n, replace=False)
    teachers, others = np.divmod(drawn, len(zoo) - 1)
    students = others + (others >= teachers)
    return [(zoo[t], zoo[s]) for t, s in zip(teachers.tolist(), students.tolist(), strict=True)]


def noise_floor(student_accuracy: float, n_classes: int) -> float:
    """Positive flip rate that a teacher with random weights has by luck: about (1 − student accuracy) / C.

    A pair's rate means something above it. `student_accuracy` and the result are fractions of the samples.
    """
    if not 0 <= student_accuracy <= 1 or n_classes < 1:
        raise BadInput("student_accuracy, n_classes", (student_accuracy, n_classes), "a fraction, and at least 1 class")
    return (1 - student_accuracy) / n_classes
