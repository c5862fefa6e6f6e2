"""LogME: the golden value, and that it prefers features that explain the labels."""

import numpy as np
import pytest

from backend.domain.errors import BadInput
from workers.science.logme import logme

GOLDEN = [[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.8], [1.1, -0.1], [-0.1, 1.2]]


def test_golden() -> None:
    assert logme(GOLDEN, [0, 0, 1, 1, 0, 1]) == pytest.approx(-0.086063276, abs=1e-9)


def test_it_is_near_the_maximum_of_the_evidence_computed_directly() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 5))
    labels = (features[:, 0] + 0.3 * rng.normal(size=40) > 0).astype(int)

    def evidence(y: np.ndarray, alpha: float, beta: float) -> float:
        # y ~ N(0, F Fᵀ / α + I / β), without any of the algebra of the implementation.
        covariance = features @ features.T / alpha + np.eye(40) / beta
        _, logdet = np.linalg.slogdet(covariance)
        return -0.5 * (y @ np.linalg.solve(covariance, y) + logdet + 40 * np.log(2 * np.pi)) / 40

    grid = np.exp(np.linspace(-2, 6, 81))
    best = np.mean([max(evidence((labels == c) * 1.0, a, b) for a in grid for b in grid[::2]) for c in (0, 1)])
    assert logme(features, labels) == pytest.approx(best, abs=2e-3)


def test_separable_features_score_higher_than_noise_and_labels_are_only_names() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 25)
    good = np.eye(4)[labels] + 0.1 * rng.normal(size=(100, 4))
    noise = rng.normal(size=(100, 4))
    assert logme(good, labels) > logme(noise, labels) + 0.5
    assert logme(good, (3 - labels) * 5) == pytest.approx(logme(good, labels), abs=1e-12)


def test_more_channels_than_samples_and_dead_channels_are_fine() -> None:
    rng = np.random.default_rng(2)
    features = np.hstack([rng.normal(size=(20, 50)), np.zeros((20, 3))])
    assert np.isfinite(logme(features, np.arange(20) % 2))


@pytest.mark.parametrize(
    ("features", "labels"),
    [(np.zeros((4, 2)), [0, 0, 1, 1]), (GOLDEN, [0] * 6), (GOLDEN, [0, 1]), ([[np.inf], [1]], [0, 1])],
)
def test_bad_input(features: object, labels: list[int]) -> None:
    with pytest.raises(BadInput):
        logme(features, labels)
