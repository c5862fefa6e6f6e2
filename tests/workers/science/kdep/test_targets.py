"""The teacher's side as a whole: alignment then transform, narrow teachers, the report."""

import pytest
import torch

from backend.domain.errors import BadInput
from backend.domain.kdep import KdepParams
from workers.science.kdep.svd import FeatureMoments
from workers.science.kdep.targets import FeatureDeviations, TargetMap, alignment_report, build_target_map
from workers.science.kdep.transform import pts

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(300, 8, generator=GENERATOR, dtype=torch.float64) * torch.logspace(1, -1, 8).double() + 3


def _moments(features: torch.Tensor = FEATURES) -> FeatureMoments:
    moments = FeatureMoments.empty(features.shape[1])
    moments.update(features)
    return moments


def test_svd_and_pts_is_pts_of_the_projection() -> None:
    target_map = build_target_map(_moments(), 5, KdepParams())
    centred = FEATURES - FEATURES.mean(0)
    _, _, vh = torch.linalg.svd(centred, full_matrices=False)
    expected = pts(centred @ vh[:5].T, temperature=0.1, exponent=3)
    torch.testing.assert_close(target_map(FEATURES).abs(), expected.abs(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transform", ["none", "pts", "sn", "sm"])
def test_the_report_has_the_ratios_of_the_targets_themselves(transform: str) -> None:
    params = KdepParams(transform=transform)
    target_map = build_target_map(_moments(), 5, params)
    targets = target_map(FEATURES)
    report = alignment_report(target_map, _moments(), params, targets.split(64))
    assert (report.teacher_width, report.student_width, report.aligned_width, report.expanded) == (8, 5, 5, False)
    aligned = target_map.align(FEATURES).std(0)
    assert report.std_ratio_before == pytest.approx(float(aligned.max() / aligned.min()))
    assert report.std_ratio_after == pytest.approx(float(targets.std(0).max() / targets.std(0).min()), rel=1e-9)
    assert report.variance_share == pytest.approx(
        float(aligned.var() * 0 + aligned.square().sum() / FEATURES.var(0).sum())
    )
    if transform == "pts":
        assert report.std_ratio_after < report.std_ratio_before
        assert alignment_report(target_map, _moments(), params).std_ratio_after is None, "unknown without the targets"
    if transform == "sn":
        assert report.std_ratio_after == pytest.approx(1.0)


@pytest.mark.parametrize("align", ["svd", "channel_variance", "channel_random"])
def test_a_narrow_teacher_is_spread_without_changing_its_geometry(align: str) -> None:
    params = KdepParams(align=align)
    target_map = build_target_map(_moments(), 20, params)
    targets = target_map(FEATURES)
    assert targets.shape == (300, 20)
    transformed = target_map.transformed(FEATURES)
    assert transformed.shape == (300, 8)
    torch.testing.assert_close(torch.cdist(targets, targets), torch.cdist(transformed, transformed), atol=1e-6, rtol=0)
    report = alignment_report(target_map, _moments(), params, [targets])
    assert (report.aligned_width, report.student_width, report.expanded) == (8, 20, True)
    deviations = transformed.std(0)
    assert report.std_ratio_after == pytest.approx(float(deviations.max() / deviations.min()), rel=1e-6)


def test_a_narrow_teacher_may_be_refused_or_interpolated() -> None:
    with pytest.raises(BadInput, match=r"teacher has 8 channels, the student 20.*interpolate_linear"):
        build_target_map(_moments(), 20, KdepParams(narrow_teacher="refuse"))
    params = KdepParams(narrow_teacher="refuse", align="interpolate_linear")
    assert build_target_map(_moments(), 20, params)(FEATURES).shape == (300, 20)


def test_std_matching_cannot_invent_channels() -> None:
    with pytest.raises(BadInput, match="teacher channels, not 8"):
        build_target_map(_moments(), 20, KdepParams(align="interpolate_linear", transform="sm"))


def test_a_learnable_aligner_is_not_fitted() -> None:
    with pytest.raises(BadInput, match="align"):
        build_target_map(_moments(), 4, KdepParams(align="overhaul"))


def test_a_map_comes_back_from_its_state_to_the_bit() -> None:
    target_map = build_target_map(_moments(), 20, KdepParams())
    again = TargetMap.from_state(target_map.state_dict())
    assert torch.equal(again(FEATURES), target_map(FEATURES))


def test_deviations_are_those_of_all_samples_whatever_the_batches() -> None:
    deviations = FeatureDeviations.empty(8)
    for part in FEATURES.split(37):
        deviations.update(part)
    torch.testing.assert_close(deviations.std(), FEATURES.std(0), rtol=1e-12, atol=0)
    with pytest.raises(BadInput, match="2 samples"):
        FeatureDeviations.empty(2).std()
