"""The front on which nothing is beaten."""

import math
import random

from backend.domain.pareto import pareto_front


def test_front():
    assert pareto_front([(1, 5), (2, 3), (3, 4), (4, 1), (0.5, 9)]) == [4, 0, 1, 3]
    assert pareto_front([]) == []


def test_ties_keep_the_first():
    assert pareto_front([(1, 2), (1, 2), (1, 3), (2, 2)]) == [0]


def test_points_that_are_not_finite_are_left_out():
    assert pareto_front([(math.nan, 0), (1, math.inf), (2, 2)]) == [2]


def test_front_is_what_no_other_point_beats():
    rng = random.Random(0)
    points = [(rng.randint(0, 20), rng.randint(0, 20)) for _ in range(60)]
    beaten = {p for p in points for q in points if q[0] <= p[0] and q[1] <= p[1] and q != p}
    assert {points[i] for i in pareto_front(points)} == set(points) - beaten
