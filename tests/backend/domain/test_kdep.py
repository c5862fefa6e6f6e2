"""KDEP's records: the paper's defaults, bounds, and what does not go together."""

import math

import pytest
from pydantic import ValidationError

from backend.domain.errors import BadInput
from backend.domain.kdep import PTS_EXPONENT_GRID, PTS_TEMPERATURE_GRID, SCHEDULES, DownstreamParams, KdepParams
from backend.domain.specs import dump_spec, parse_spec


def test_the_defaults_are_the_papers() -> None:
    params = KdepParams()
    assert (params.method, params.align, params.transform) == ("features", "svd", "pts")
    assert (params.pts_temperature, params.pts_exponent, params.loss_weight) == (0.1, 3.0, 20.0)
    assert (params.lr, params.momentum, params.weight_decay, params.batch_size) == (0.3, 0.9, 5e-4, 512)
    assert (params.epochs, params.schedule, params.step_epochs, params.step_factor) == (90, "step", 30, 0.1)
    assert not params.labels_needed
    assert all(step * 3 == epochs for schedule in SCHEDULES.values() for epochs, step in schedule.items())
    assert set(SCHEDULES["10%"]) == {90, 180, 900}
    assert set(SCHEDULES["100%"]) == {9, 18, 90}
    assert (min(PTS_TEMPERATURE_GRID), max(PTS_TEMPERATURE_GRID)) == (0.01, 0.9)
    assert PTS_EXPONENT_GRID == (2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    "settings",
    [
        {"align": "pca"}, {"transform": "power"}, {"method": "kl"}, {"pts_temperature": 0}, {"pts_exponent": -1},
        {"loss_weight": 0}, {"loss_weight": math.nan}, {"layers": 0}, {"lr": "0.3"}, {"batch_size": 1.5}, {"typo": 1},
        {"align": "overhaul", "layers": 2}, {"align": "conv_before_relu", "transform": "sn"},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KdepParams.model_validate(settings)


@pytest.mark.parametrize("align", ["conv_before_relu", "conv_after_relu", "overhaul"])
def test_learnable_aligners_take_no_transform_and_survive_being_stored(align: str) -> None:
    params = KdepParams.model_validate({"align": align})
    assert params.learnable
    assert params.transform == "none"
    assert KdepParams.model_validate(params.model_dump(mode="json")) == params


def test_only_supervised_needs_labels() -> None:
    assert [KdepParams(method=m).labels_needed for m in ("features", "logits", "supervised")] == [False, False, True]


def test_a_spec_survives_being_stored() -> None:
    for spec in (
        {"teacher": "t", "student": "s", "dataset": "d"},
        {"teacher": "t", "student": "s", "dataset": "d", "params": {"align": "overhaul", "lr": 0.1}},
        {"student": "s", "dataset": "d", "params": {"method": "supervised"}, "subset": {"share": 0.1}},
    ):
        parsed = parse_spec("kdep", spec)
        assert parse_spec("kdep", dump_spec(parsed)) == parsed


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "needs one"),
        ({"teacher": "s"}, "own teacher"),
        ({"teacher": "t", "params": {"method": "supervised"}}, "takes none"),
        ({"teacher": "t", "device": "tpu"}, "device"),
        ({"teacher": "../t"}, "teacher"),
    ],
)
def test_bad_specs_name_the_field(spec: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_spec("kdep", {"student": "s", "dataset": "d", **spec})


def test_downstream_needs_three_seeds_and_different_rates() -> None:
    assert len(DownstreamParams().seeds) == 3
    for settings in ({"seeds": (0, 1)}, {"seeds": (0, 1, 1)}, {"lrs": (0.1, 0.1)}, {"lrs": (0.0,)}, {"lrs": ()}):
        with pytest.raises(ValidationError):
            DownstreamParams.model_validate(settings)
