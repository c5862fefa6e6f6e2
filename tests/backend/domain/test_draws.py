import numpy as np
import pytest

from backend.domain.correctness import correctness
from backend.domain.draws import draw_pairs, noise_floor
from backend.domain.errors import BadInput
from backend.domain.flips import count_flips

ZOO = [f"model_{i}" for i in range(301)]


def test_the_papers_draw():
    pairs = draw_pairs(ZOO, 466, seed=0)
    assert len(set(pairs)) == 466
    assert all(teacher != student for teacher, student in pairs)
    assert pairs == draw_pairs(reversed(ZOO), 466, seed=0)
    assert pairs != draw_pairs(ZOO, 466, seed=1)


def test_all_pairs_are_a_permutation():
    assert sorted(draw_pairs("abcd", 12, seed=7)) == [(a, b) for a in "abcd" for b in "abcd" if a != b]


def test_every_pair_is_equally_likely():
    counts: dict[tuple[str, str], int] = {}
    for seed in range(3000):
        (pair,) = draw_pairs("abc", 1, seed)
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 6
    assert min(counts.values()) > 400  # 500 expected, five standard deviations


@pytest.mark.parametrize(
    ("names", "n", "seed"), [("ab", 3, 0), ("a", 1, 0), ("ab", 0, 0), ("abc", -1, 0), ("ab", 1, -1)]
)
def test_impossible_draws(names, n, seed):
    with pytest.raises(BadInput):
        draw_pairs(names, n, seed)


def test_noise_floor_is_what_a_random_teacher_reaches():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 200_000)
    student = np.where(rng.random(len(labels)) < 0.7, labels, (labels + 1) % 10)
    random_teacher = rng.integers(0, 10, len(labels))
    flips = count_flips(correctness(np.stack([random_teacher, student]), labels))
    floor = noise_floor(float((student == labels).mean()), 10)
    assert flips.positive[0, 1] / len(labels) == pytest.approx(floor, rel=0.05)
    with pytest.raises(BadInput):
        noise_floor(1.2, 10)
