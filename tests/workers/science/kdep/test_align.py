"""Aligners: what each keeps of the teacher's channels, and how the learnable ones compare."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backend.domain.errors import BadInput
from workers.science.kdep.align import (
    FIXED_ALIGNERS,
    LinearConnector,
    NegativeMeans,
    OverhaulConnector,
    isometric_expansion,
    margin_relu,
    partial_l2,
)
from workers.science.kdep.svd import FeatureMoments


@pytest.fixture
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 5.0, 0.1, 3.0, 2.0, 4.0]).double()
    return torch.randn(200, 6, generator=generator, dtype=torch.float64) * scale + 7


@pytest.fixture
def moments(features: torch.Tensor) -> FeatureMoments:
    moments = FeatureMoments.empty(6)
    moments.update(features)
    return moments


def test_svd_is_centred_and_keeps_the_most_variance(features: torch.Tensor, moments: FeatureMoments) -> None:
    aligned = FIXED_ALIGNERS["svd"](moments, 3, 0)(features)
    assert aligned.shape == (200, 3)
    np.testing.assert_allclose(aligned.mean(0), 0, atol=1e-10)
    kept = float(aligned.var(0).sum())
    for other in FIXED_ALIGNERS.values():
        assert float(other(moments, 3, 0)(features).var(0).sum()) <= kept + 1e-9


def test_svd_to_the_same_width_is_a_rotation(features: torch.Tensor, moments: FeatureMoments) -> None:
    aligned = FIXED_ALIGNERS["svd"](moments, 6, 0)(features)
    torch.testing.assert_close(torch.cdist(aligned, aligned), torch.cdist(features, features), rtol=1e-6, atol=1e-6)


def test_channels_are_chosen_by_variance(features: torch.Tensor, moments: FeatureMoments) -> None:
    assert torch.equal(FIXED_ALIGNERS["channel_variance"](moments, 3, 0)(features), features[:, [1, 3, 5]])


def test_random_channels_are_distinct_and_seeded(features: torch.Tensor, moments: FeatureMoments) -> None:
    choose = FIXED_ALIGNERS["channel_random"]
    picks = {seed: choose(moments, 3, seed).weight.argmax(0).tolist() for seed in range(8)}
    assert all(sorted(set(pick)) == pick and len(pick) == 3 for pick in picks.values())
    assert len({tuple(pick) for pick in picks.values()}) > 1
    assert choose(moments, 3, 5).weight.argmax(0).tolist() == picks[5]


def test_interpolation_is_torchs(features: torch.Tensor, moments: FeatureMoments) -> None:
    for width in (3, 4, 9):
        linear = F.interpolate(features[:, None], size=width, mode="linear", align_corners=False)[:, 0]
        nearest = F.interpolate(features[:, None], size=width, mode="nearest")[:, 0]
        torch.testing.assert_close(FIXED_ALIGNERS["interpolate_linear"](moments, width, 0)(features), linear)
        torch.testing.assert_close(FIXED_ALIGNERS["interpolate_nearest"](moments, width, 0)(features), nearest)


@pytest.mark.parametrize("name", FIXED_ALIGNERS)
def test_the_std_from_the_moments_is_the_std_of_the_aligned(
    name: str, features: torch.Tensor, moments: FeatureMoments
) -> None:
    align = FIXED_ALIGNERS[name](moments, 4, 0)
    torch.testing.assert_close(align.std(moments), align(features).std(0), rtol=1e-9, atol=1e-9)
    assert align(features.float()).dtype == torch.float32


def test_a_linear_connector_is_a_1x1_convolution_of_the_map_and_then_pooling() -> None:
    connector = LinearConnector(5, 8, seed=1)
    feature_map = torch.randn(2, 5, 3, 4)
    convolved = F.conv2d(feature_map, connector.linear.weight[:, :, None, None]).mean(dim=(2, 3))
    torch.testing.assert_close(connector(feature_map.mean(dim=(2, 3))), convolved)
    assert torch.equal(LinearConnector(5, 8, seed=1).linear.weight, connector.linear.weight)
    assert not torch.equal(LinearConnector(5, 8, seed=2).linear.weight, connector.linear.weight)


def test_a_connector_to_a_wider_teacher_learns_the_directions_of_the_svd() -> None:
    """P. Baldi and K. Hornik, Neural Networks 2 (1989): a linear bottleneck fitted by L2 spans the top singular vectors.

    So a narrower student's convolution can hold nothing of the teacher that the student's feature does not hold too.
    """
    spread = torch.tensor([9.0, 6.0, 4.0, 3.0, 1.0, 0.8, 0.6, 0.4])
    features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) * spread
    features = features @ torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    student = torch.nn.Linear(8, 4)
    connector = LinearConnector(4, 8, seed=0)
    weights = [*student.parameters(), *connector.parameters()]
    optimizer = torch.optim.LBFGS(weights, max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(connector(student(features)), features)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    learnt = torch.linalg.qr(connector.linear.weight.detach()).Q
    moments = FeatureMoments.empty(8)
    moments.update(features)
    components = FIXED_ALIGNERS["svd"](moments, 4, 0).weight.float()
    assert torch.linalg.svdvals(learnt.T @ components).min() > 0.999


def test_the_overhaul_connector_normalises() -> None:
    output = OverhaulConnector(5, 3)(torch.randn(64, 5) * 10 + 4)
    torch.testing.assert_close(output.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.var(0, correction=0), torch.ones(3), atol=1e-2, rtol=0)


def test_the_margin_is_the_mean_of_the_negative_responses() -> None:
    negative = NegativeMeans.empty(3)
    negative.update(torch.tensor([[-1.0, 2.0, -4.0], [3.0, 1.0, -2.0]]))
    negative.update(torch.tensor([[-3.0, 5.0, 6.0]]))
    assert negative.margin().tolist() == [-2.0, 0.0, -3.0]
    cut = margin_relu(torch.tensor([[-5.0, -5.0, -2.5], [4.0, 1.0, -9.0]]), negative.margin())
    assert cut.tolist() == [[-2.0, 0.0, -2.5], [4.0, 1.0, -3.0]]


def test_partial_l2_forgives_only_what_is_below_a_target_that_is_not_positive() -> None:
    student = torch.tensor([-3.0, -1.0, 0.5, 1.0])
    target = torch.tensor([-2.0, -2.0, 0.0, 2.0])
    assert float(partial_l2(student, target)) == pytest.approx((0 + 1 + 0.25 + 1) / 4)
    positive = target.abs() + 1
    torch.testing.assert_close(partial_l2(student, positive), F.mse_loss(student, positive))


def test_an_expansion_keeps_distances_and_uses_every_channel() -> None:
    expansion = isometric_expansion(4, 9, seed=3)
    torch.testing.assert_close(expansion @ expansion.T, torch.eye(4).double(), rtol=0, atol=1e-12)
    targets = torch.randn(20, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.cdist(targets @ expansion, targets @ expansion), torch.cdist(targets, targets))
    assert ((targets @ expansion).std(0) > 0.05).all()
    assert torch.equal(expansion, isometric_expansion(4, 9, seed=3))
    with pytest.raises(BadInput, match="student channels"):
        isometric_expansion(5, 4)
