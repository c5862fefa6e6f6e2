"""Bounds and meanings of ReMem's parameter records."""

import pytest
from pydantic import ValidationError

from backend.domain.remem import STOP_POINTS, RememParams, RememSpec, StudentDistillation, TeacherTuning


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({}, "baseline"),
        ({"rho": 0.05}, "sam"),
        ({"mlp_weight": 0.8}, "reweight"),
        ({"attention_weight": 0.9}, "reweight"),
        ({"rho": 0.5, "mlp_weight": 0.9}, "both"),
    ],
)
def test_setting(changes, setting):
    assert TeacherTuning(**changes).setting == setting


@pytest.mark.parametrize(
    "changes",
    [
        {"rho": -0.1},
        {"mlp_weight": 2.0},
        {"mlp_weight": 0.0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"stop_points": (700, 500)},
        {"stop_points": (500, 500)},
        {"stop_points": (10_001,)},
        {"stop_points": ()},
        {"steps": 400, "stop_points": (400,)},
        {"momentum": 1.0},
        {"typo": 1},
    ],
)
def test_bounds(changes):
    with pytest.raises(ValidationError):
        TeacherTuning(**changes)


def test_training_is_the_papers():
    training = TeacherTuning(lr=0.05).training
    assert (training.steps, training.batch_size, training.momentum, training.weight_decay) == (10_000, 512, 0.9, 0.0)
    assert (training.schedule, training.warmup_steps, training.grad_clip) == ("cosine", 500, 1.0)
    student = StudentDistillation().training
    assert (student.steps, student.weight_decay, student.warmup_steps, student.grad_clip) == (20_000, 1e-4, 500, None)


def test_nothing_is_listed_twice():
    with pytest.raises(ValidationError, match="listed twice"):
        RememParams(tunings=(TeacherTuning(), TeacherTuning()))


def test_json_round_trip():
    params = RememParams(tunings=(TeacherTuning(), TeacherTuning(rho=0.05)))
    assert RememParams.model_validate_json(params.model_dump_json()) == params


def test_short_forms():
    params = RememParams.model_validate(
        {"rho": 0.5, "steps": 3000, "settings": "all", "seeds": 2, "student_lr": 0.5, "student_method": "dist"}
    )
    assert [t.setting for t in params.tunings] == ["baseline", "sam", "reweight", "both"] * 2
    assert [t.seed for t in params.tunings] == [0] * 4 + [1] * 4
    assert {t.rho for t in params.tunings} == {0.0, 0.5}
    assert {t.mlp_weight for t in params.tunings} == {1.0, 0.8}
    assert params.tunings[0].stop_points == (500, 700, 1000, 3000)
    assert [(d.method, d.lr) for d in params.distillations] == [("dist", 0.5)]
    more = RememParams.model_validate({"information": False, "expertness": True, "expertness_clusters": 4})
    assert more.information is None
    assert more.expertness.clusters == 4
    assert RememParams.model_validate({"information_updates": 7}).information.updates == 7
    assert RememParams.model_validate({"settings": "sam,both", "mlp_weight": 0.9}).tunings[1].mlp_weight == 0.9


def test_numbers_joined_by_commas_make_a_grid():
    params = RememParams.model_validate(
        {"settings": "baseline,sam", "lr": "0.01,0.05", "rho": "0.5,0.05", "seeds": "3,5", "steps": 600,
         "stop_points": "200,600", "student_temperature": "1,2,4", "student_lr": 0.5}
    )  # fmt: skip
    assert [(t.lr, t.rho, t.seed) for t in params.tunings[:6]] == [
        (0.01, 0.0, 3), (0.01, 0.5, 3), (0.01, 0.05, 3), (0.05, 0.0, 3), (0.05, 0.5, 3), (0.05, 0.05, 3)
    ]  # fmt: skip
    assert [t.seed for t in params.tunings] == [3] * 6 + [5] * 6
    assert params.tunings[0].stop_points == (200, 600)
    assert [(d.lr, d.temperature) for d in params.distillations] == [(0.5, 1.0), (0.5, 2.0), (0.5, 4.0)]


def test_one_spec_holds_the_whole_protocol():
    """lr × stop points × (baseline, SAM ρ, reweight α, both) × student hyperparameters, and the pruning curves."""
    params = RememParams.model_validate(
        {"settings": "all", "lr": "0.005,0.01", "rho": "0.5,0.05,0.005", "mlp_weight": "0.8,0.9", "steps": 10000,
         "seeds": 3, "student_method": "kd,dist", "student_lr": "0.05,0.1", "student_temperature": "1,2,4",
         "student_kd_weight": "0.1,0.5,0.9"}
    )  # fmt: skip
    cells = {(t.setting, t.lr, t.rho, t.mlp_weight) for t in params.tunings}
    per_rate = {"baseline": 1, "sam": 3, "reweight": 2, "both": 6}
    for setting, count in per_rate.items():
        assert sum(cell[0] == setting for cell in cells) == 2 * count, setting
    assert len(params.tunings) == 3 * len(cells) == 3 * 24
    assert all(t.stop_points == STOP_POINTS for t in params.tunings)
    assert len(params.distillations) == 2 * 2 * 3 * 3
    curves = RememParams.model_validate(
        {"pruned_branch": "mlp,attention", "pruned_blocks": "0,1,2", "tune": "full,lora"}
    )
    assert len(curves.tunings) == 2 * (1 + 2 * 2), "both curves begin with one whole model"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pruned_branch": "mlp,moe", "pruned_blocks": 1}, "pruned_branch"),
        ({"lr": "a,b"}, "joined by commas"),
        ({"settings": "sam,dam"}, "dam"),
        ({"rho": 0.1, "tunings": [{}]}, "short forms"),
        ({"student_lr": 0.1, "distillations": [{}]}, "short forms"),
        ({"student_lr": -1}, "lr"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_short_forms_are_checked(given, message):
    with pytest.raises(ValidationError, match=message):
        RememParams.model_validate(given)


def test_a_spec_without_student_distils_nothing():
    spec = RememSpec(model="vit", dataset="digits")
    assert spec.params.distillations == ()
    assert RememSpec.model_validate(spec.model_dump(mode="json")) == spec
    with pytest.raises(ValidationError, match="distillations need one"):
        RememSpec(model="vit", dataset="digits", params={"student_lr": 0.1})
    with pytest.raises(ValidationError, match="another model"):
        RememSpec(model="vit", student="vit", dataset="digits")
    full = RememSpec(model="vit", student="net", dataset="digits", params={"settings": "all"})
    assert RememSpec.model_validate(full.model_dump(mode="json")) == full
