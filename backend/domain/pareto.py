"""The Pareto front of a plane on which both coordinates are better when smaller (ReMem, Figures 1, 2 and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other point beats, by ascending x.

    A point is beaten by one that is at least as small in both coordinates and smaller in one. Of equal points the first
    stays. Along the front x rises and y falls strictly. Points with a coordinate that is not finite are never on it.
    An axis on which more is better enters with its sign turned.
    """
    front: list[int] = []
    lowest = float("inf")
    finite = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    for i in sorted(finite, key=lambda i: (points[i][0], points[i][1], i)):
        if points[i][1] < lowest:
            front.append(i)
            lowest = points[i][1]
    return front
