"""In which order several teachers teach one after another: Roth et al., arXiv:2310.17653, §4.3.

The caller runs one transfer per teacher: the frozen student is the student so far, the optimizer's state is fresh.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backend.domain.methods import TeacherOrder


def sequence_order(accuracies: Mapping[str, float], order: TeacherOrder, seed: int = 0) -> list[str]:
    """Teachers' names in the order of their turns.

    ascending begins with the weakest, descending with the strongest, equal ones as given; random is a permutation fixed
    by `seed`; given keeps the order of `accuracies`.
    """
    names = list(accuracies)
    if order == "random":
        return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    if order == "given":
        return names
    return sorted(names, key=lambda name: accuracies[name], reverse=order == "descending")
