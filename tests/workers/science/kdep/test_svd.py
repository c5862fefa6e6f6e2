"""Streaming moments against numpy and torch.linalg.svd: any chunks, any shards, a large mean, a wide spectrum."""

from pathlib import Path

import numpy as np
import pytest
import torch

from backend.domain.errors import BadInput
from workers.science.kdep.svd import FeatureMoments, cached_moments, content_key, svd_basis

GOLDEN = torch.tensor([[3, 1, 0], [1, 3, 0], [-3, -1, 0], [-1, -3, 0], [0, 0, 1], [0, 0, -1.0]]).double()
GOLDEN_MEAN = torch.tensor([10, 20, 30.0]).double()


def _features(n: int, width: int, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, width).double()
    return torch.randn(n, width, generator=generator, dtype=torch.float64) @ mixing.T + mean


def _moments(features: torch.Tensor, chunk: int) -> FeatureMoments:
    moments = FeatureMoments.empty(features.shape[1])
    for part in features.split(chunk):
        moments.update(part)
    return moments


def test_golden_projection_has_these_standard_deviations() -> None:
    moments = _moments(GOLDEN + GOLDEN_MEAN, 4)
    projected = svd_basis(moments, 3).project(GOLDEN + GOLDEN_MEAN)
    np.testing.assert_allclose(projected.std(0), [2.529822, 1.264911, 0.632456], atol=5e-7)
    np.testing.assert_allclose(moments.mean, GOLDEN_MEAN, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_it_agrees_with_torch_svd_whatever_the_chunks(chunk: int) -> None:
    features = _features(1000, 24, mean=100.0)
    basis = svd_basis(_moments(features, chunk), 24)
    centred = features - features.mean(0)
    _, singular_values, vh = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(basis.singular_values, singular_values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((basis.components * vh.T).sum(0).abs(), torch.ones(24).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(basis.project(features).abs(), (centred @ vh.T).abs(), rtol=1e-5, atol=1e-5)
    assert basis.variance_share == pytest.approx(1.0)


def test_float32_features_far_from_zero_do_not_cancel() -> None:
    features = (_features(4096, 8) + 1e4).float()
    moments = _moments(features, 256)
    np.testing.assert_allclose(moments.std(), features.double().std(0), rtol=1e-9)


def test_merging_shards_is_seeing_all_samples_in_either_order() -> None:
    features = _features(300, 12, mean=5.0)
    a, b = _moments(features[:90], 50), _moments(features[90:], 64)
    whole = _moments(features, 300)
    for merged in (a.merge(b), b.merge(a), a.merge(FeatureMoments.empty(12)).merge(b)):
        assert merged.count == 300
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-10)
    assert a.count == 90, "merging leaves the shards alone"


def test_moments_are_the_covariance_of_numpy() -> None:
    features = _features(200, 9)
    covariance = _moments(features, 33).scatter / 199
    np.testing.assert_allclose(covariance, np.cov(features.numpy().T), atol=1e-12)


def test_a_basis_is_orthonormal_sorted_and_has_a_fixed_sign() -> None:
    basis = svd_basis(_moments(_features(500, 16), 100), 5)
    assert basis.components.shape == (16, 5)
    torch.testing.assert_close(basis.components.T @ basis.components, torch.eye(5).double(), rtol=0, atol=1e-12)
    assert (basis.singular_values.diff() <= 0).all()
    largest = basis.components.gather(0, basis.components.abs().argmax(0)[None])
    assert (largest > 0).all()
    assert 0 < basis.variance_share < 1


def test_fewer_samples_than_channels_still_give_a_basis() -> None:
    basis = svd_basis(_moments(_features(4, 10), 4), 10)
    assert (basis.singular_values[3:] < 1e-6).all()
    assert torch.isfinite(basis.components).all()


def test_a_saved_state_is_the_same_to_the_bit(tmp_path: Path) -> None:
    moments = _moments(_features(50, 6), 10)
    moments.save(tmp_path / "moments.safetensors")
    loaded = FeatureMoments.load(tmp_path / "moments.safetensors")
    assert (loaded.count, loaded.width) == (50, 6)
    assert torch.equal(loaded.mean, moments.mean)
    assert torch.equal(loaded.scatter, moments.scatter)
    assert [path.name for path in tmp_path.iterdir()] == ["moments.safetensors"]
    loaded.update(_features(5, 6))
    moments.update(_features(5, 6))
    assert torch.equal(loaded.scatter, moments.scatter), "and goes on alike"


def test_cached_moments_are_computed_once_per_content(tmp_path: Path) -> None:
    calls = 0

    def features() -> list[torch.Tensor]:
        nonlocal calls
        calls += 1
        return list(_features(20, 4).split(8))

    key = content_key(teacher="a", data="x")
    first = cached_moments(tmp_path, key, 4, features)
    second = cached_moments(tmp_path, key, 4, features)
    assert calls == 1
    assert torch.equal(first.scatter, second.scatter)
    cached_moments(tmp_path, content_key(teacher="b", data="x"), 4, features)
    assert calls == 2


def test_a_content_key_depends_on_values_and_not_on_order() -> None:
    assert content_key(a=1, b="x") == content_key(b="x", a=1)
    assert len({content_key(a=1), content_key(a=2), content_key(b=1)}) == 3


def test_bad_features_are_refused() -> None:
    moments = FeatureMoments.empty(4)
    with pytest.raises(BadInput, match=r"\[batch, 4\]"):
        moments.update(torch.zeros(2, 5))
    with pytest.raises(BadInput, match="finite"):
        moments.update(torch.tensor([[0.0, 1.0, float("nan"), 0.0]]))
    assert moments.count == 0
    with pytest.raises(BadInput, match="2 samples"):
        svd_basis(moments, 2)
    moments.update(torch.randn(3, 4))
    with pytest.raises(BadInput, match="1 to 4"):
        svd_basis(moments, 5)
    with pytest.raises(BadInput, match="4 channels"):
        moments.merge(FeatureMoments.empty(3))
