"""PTS, SN and SM: golden values and laws."""

import numpy as np
import pytest
import torch

from backend.domain.errors import BadInput
from workers.science.kdep.svd import FeatureMoments, svd_basis
from workers.science.kdep.transform import match_std, pts, standardise, std_ratio


def test_golden_pts() -> None:
    values = torch.tensor([-0.8, -0.1, 0, 0.1, 0.8, 2.7], dtype=torch.float64)
    np.testing.assert_allclose(pts(values, temperature=0.1, exponent=3), [-2, -1, 0, 1, 2, 3], atol=1e-12)


def test_golden_std_ratio_before_and_after_pts() -> None:
    rows = torch.tensor([[3, 1, 0], [1, 3, 0], [-3, -1, 0], [-1, -3, 0], [0, 0, 1], [0, 0, -1.0]]).double()
    rows = rows + torch.tensor([10, 20, 30.0])
    moments = FeatureMoments.empty(3)
    moments.update(rows)
    projected = svd_basis(moments, 3).project(rows)
    assert std_ratio(projected.std(0)) == pytest.approx(4.0)
    assert std_ratio(pts(projected).std(0)) == pytest.approx(2.0)


def test_pts_is_odd_monotone_and_the_identity_at_one() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert torch.equal(pts(-x), -pts(x))
    assert (pts(x).diff() > 0).all()
    torch.testing.assert_close(pts(x, temperature=1, exponent=1), x)


@pytest.mark.parametrize(("temperature", "exponent"), [(0, 3), (-1, 3), (0.1, 0)])
def test_pts_refuses_what_has_no_root(temperature: float, exponent: float) -> None:
    with pytest.raises(BadInput, match="temperature > 0"):
        pts(torch.ones(1), temperature=temperature, exponent=exponent)


def test_sn_gives_every_varying_channel_the_same_std() -> None:
    features = torch.randn(500, 4, dtype=torch.float64) * torch.tensor([100.0, 1.0, 0.01, 0.0])
    std = features.std(0)
    after = standardise(features, std).std(0)
    np.testing.assert_allclose(after, [1, 1, 1, 0], atol=1e-12)
    assert std_ratio(after[:3]) == pytest.approx(1.0)
    assert std_ratio(after) == float("inf")


def test_sm_gives_the_ith_largest_original_std_to_the_ith_channel() -> None:
    features = torch.randn(400, 3, dtype=torch.float64) * torch.tensor([9.0, 0.5, 2.0])
    original = torch.tensor([1.0, 4.0, 3.0, 2.0], dtype=torch.float64)
    after = match_std(features, features.std(0), original).std(0)
    np.testing.assert_allclose(after, [4, 2, 3], atol=1e-12)


def test_sm_needs_as_many_original_channels() -> None:
    with pytest.raises(BadInput, match="at least 3"):
        match_std(torch.randn(5, 3), torch.ones(3), torch.ones(2))
