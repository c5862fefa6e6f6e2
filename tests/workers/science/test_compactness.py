"""Scatter of classes: the golden value, and that the two parts are the whole."""

import numpy as np
import pytest

from backend.domain.errors import BadInput
from workers.science.compactness import class_scatter


def test_golden() -> None:
    scatter = class_scatter([[0, 0], [0, 2], [4, 0], [4, 2]], [0, 0, 1, 1])
    assert (scatter.between, scatter.within, scatter.compactness) == (16.0, 4.0, 4.0)
    assert (scatter.n_samples, scatter.n_classes) == (4, 2)


def test_between_and_within_add_up_and_labels_are_only_names() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 5)) + 30, rng.integers(0, 4, 60)
    scatter = class_scatter(features, labels)
    total = float(np.square(features - features.mean(0)).sum())
    assert scatter.between + scatter.within == pytest.approx(total, rel=1e-12)
    order = rng.permutation(60)
    renamed = class_scatter(features[order], (labels * 10 + 3)[order])
    assert renamed.compactness == pytest.approx(scatter.compactness, rel=1e-10)
    assert class_scatter(features * 7, labels).compactness == pytest.approx(scatter.compactness, rel=1e-10)


def test_diverse_features_are_less_compact() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(5), 40)
    centres = rng.normal(size=(5, 8))[labels]
    tight = class_scatter(centres + 0.1 * rng.normal(size=(200, 8)), labels).compactness
    diverse = class_scatter(centres + 2.0 * rng.normal(size=(200, 8)), labels).compactness
    assert tight is not None
    assert diverse is not None
    assert diverse < 0.1 * tight


def test_single_points_have_no_compactness() -> None:
    assert class_scatter([[0.0], [1.0]], [0, 1]).compactness is None


@pytest.mark.parametrize(
    ("features", "labels"),
    [([[1.0], [2.0]], [0, 0]), ([1.0, 2.0], [0, 1]), ([[1.0], [2.0]], [0]), ([[1.0], [np.nan]], [0, 1])],
)
def test_bad_input(features: list[list[float]], labels: list[int]) -> None:
    with pytest.raises(BadInput):
        class_scatter(features, labels)
