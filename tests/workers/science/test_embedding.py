"""t-SNE pictures: clusters stay clusters, the seed decides, small sets work."""

import numpy as np
import pytest

from backend.domain.errors import BadInput
from workers.science.embedding import embed


def test_clusters_stay_apart_and_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    features = 20 * np.eye(3, 64)[labels] + rng.normal(size=(60, 64))
    points = embed(features, perplexity=10, seed=3)
    assert points.shape == (60, 2)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-6)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(60, np.inf))
    assert (labels[distances.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(points, embed(features, perplexity=10, seed=3))


def test_a_handful_of_samples_lowers_the_perplexity() -> None:
    assert embed(np.random.default_rng(0).normal(size=(5, 3))).shape == (5, 2)


@pytest.mark.parametrize("features", [np.zeros((3, 2)), np.zeros(9), np.full((8, 2), np.nan)])
def test_bad_input(features: np.ndarray) -> None:
    with pytest.raises(BadInput):
        embed(features)
    with pytest.raises(BadInput, match="perplexity"):
        embed(np.zeros((8, 2)), perplexity=0)
