"""A study file becomes the right jobs; its rows become the right rates, differences and controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from backend.domain.errors import BadInput
from backend.domain.specs import FinetuneSpec, TransferSpec
from backend.domain.studies import StudyRow, StudySpec, plan_study, study_row, summarise, variants

ROOT = Path(__file__).resolve().parents[3]


def spec(**changes: Any) -> StudySpec:
    base = {"name": "s", "dataset": "d", "models": ["a", "b", "c"], "methods": ["kl", "kl_dp"], "scan": False}
    return StudySpec.model_validate({**base, **changes})


def transfers(study: StudySpec) -> list[TransferSpec]:
    return [child.spec for child in plan_study(study) if isinstance(child.spec, TransferSpec)]


def test_all_pairs_times_methods_times_seeds_and_a_control_a_student():
    planned = transfers(spec(seeds=[0, 1]))
    taught = [one for one in planned if one.teachers]
    assert len(taught) == 6 * 2 * 2
    assert len([one for one in planned if not one.teachers]) == 3 * 2
    assert {(one.teachers[0], one.student) for one in taught} == {(t, s) for t in "abc" for s in "abc" if t != s}
    assert {one.method.seed for one in taught} == {0, 1}
    assert len({child.key for child in plan_study(spec(seeds=[0, 1]))}) == len(plan_study(spec(seeds=[0, 1])))


def test_each_distinct_training_has_its_control():
    controls = [one for one in transfers(spec(methods=["kl", "mcl"])) if not one.teachers]
    assert sorted({one.method.lr for one in controls}) == [1e-4, 1e-2]
    assert len(controls) == 2 * 3
    assert all(one.method.method == "ce" for one in controls)


def test_settings_hold_for_methods_that_know_them_and_the_grid_multiplies():
    found = variants(spec(methods=["ce", "kl"], settings={"temperature": 4.0, "lr": 0.1}, grid={"epochs": [1, 2]}))
    assert [one.label for one in found] == ["ce epochs=1", "ce epochs=2", "kl epochs=1", "kl epochs=2"]
    assert all(one.params.lr == 0.1 for one in found)
    assert found[2].params.temperature == 4.0


def test_a_zoo_is_registered_trained_and_waited_for():
    zoo = [
        {"name": "x", "architecture": "test_resnet", "train": {"epochs": 1}},
        {"name": "y", "architecture": "test_vit", "train": {"epochs": 1}},
    ]
    study = spec(
        models=[], zoo=zoo, zoo_seeds=True, seeds=[3, 4], datasets=[{"name": "d", "source": "digits"}], scan=True
    )
    children = {child.key: child for child in plan_study(study)}
    assert [key for key in children if key.startswith("zoo/")] == ["zoo/x-s3", "zoo/x-s4", "zoo/y-s3", "zoo/y-s4"]
    training = children["zoo/y-s4"].spec
    assert isinstance(training, FinetuneSpec)
    assert (training.model, training.save_as, training.params.seed) == ("y-s4-init", "y-s4", 4)
    assert children["zoo/y-s4"].after == ("model/y-s4-init", "dataset/d")
    assert children["scan"].spec.models == ("x-s3", "y-s3", "x-s4", "y-s4")
    transfer = children["kl | x-s3 > y-s3 | seed 3"]
    assert transfer.after == ("zoo/x-s3", "zoo/y-s3")
    assert not transfer.spec.control
    assert not transfer.spec.save


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["kl_pd"]}, "methods"),
        ({"methods": ["kl", "kl"]}, "differ"),
        ({"settings": {"learning_rate": 1}}, "learning_rate"),
        ({"settings": {"lr": -1}}, "lr"),
        ({"grid": {"tau": [0.9]}}, "tau"),
        ({"pairs": [["a", "z"]]}, "z"),
        ({"pairs": {"random": 7, "seed": 0}}, "6 ordered pairs"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(BadInput, match=message):
        plan_study(spec(**changes))


@pytest.mark.parametrize(
    "changes",
    [{"models": ["a", "a"]}, {"models": []}, {"methods": []}, {"seeds": []}, {"nonsense": 1}, {"models": ["a b"]}],
)
def test_a_wrong_file_is_refused(changes):
    with pytest.raises(ValidationError):
        spec(**changes)


def test_random_pairs_are_the_same_for_the_same_seed():
    def drawn(seed: int) -> list[Any]:
        return [
            (one.teachers, one.student) for one in transfers(spec(pairs={"random": 4, "seed": seed}, methods=["kl"]))
        ]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def row(label: str, teacher: str | None, student: str, delta: float, **more: Any) -> StudyRow:
    values = {
        "job_id": "0",
        "label": label,
        "method": "kl",
        "params": {"lr": 1.0},
        "teachers": (teacher,) if teacher else (),
        "student": student,
        "seed": 0,
        "n_samples": 100,
        "student_accuracy_before": 0.5,
        "student_accuracy_after": 0.5 + delta,
        "transfer_delta": delta,
        "knowledge_gain": max(delta, 0.0),
        "knowledge_loss": max(-delta, 0.0),
    }
    return StudyRow.model_validate({**values, **more})


def test_success_is_strictly_positive_and_controls_stand_beside():
    rows = [
        row("control", None, "s", 0.02),
        row("kl", "a", "s", 0.0),
        row("kl", "b", "s", -0.1, accuracy_difference=-0.2),
        row("kl_dp", "a", "s", 0.05),
        row("kl_dp", "b", "s", 0.01, accuracy_difference=-0.2),
    ]
    table = summarise(rows, n_failed=1)
    by_label = {one.label: one for one in table.methods}
    assert by_label["kl"].success_rate == 0.0  # Δ = 0 is a failure
    assert by_label["kl_dp"].success_rate == 1.0
    assert by_label["kl_dp"].mean_delta_above_control == pytest.approx(0.01)
    assert by_label["control"].mean_delta_above_control is None
    assert (by_label["kl"].n_weaker, by_label["kl"].success_rate_weaker) == (1, 0.0)
    [difference] = table.differences
    assert (difference.label, difference.baseline, difference.n_pairs) == ("kl_dp", "kl", 2)
    assert difference.success_rate_difference == 1.0
    assert difference.mean_delta_difference == pytest.approx(0.08)
    assert difference.mean_delta_difference_low <= 0.08 <= difference.mean_delta_difference_high
    assert table.n_failed == 1


@given(st.lists(st.floats(-0.5, 0.5, width=32), min_size=2, max_size=40))
def test_differences_are_antisymmetric_and_zero_against_itself(deltas):
    def rows(first: str, second: str) -> list[StudyRow]:
        ours = [row(first, f"t{i}", "s", d) for i, d in enumerate(deltas)]
        return ours + [row(second, f"t{i}", "s", d / 2) for i, d in enumerate(deltas)]

    [forward] = summarise(rows("x", "y")).differences
    [backward] = summarise(list(reversed(rows("x", "y")))).differences
    assert forward.mean_delta_difference == pytest.approx(-backward.mean_delta_difference, abs=1e-12)
    assert forward.success_rate_difference == 0.0
    assert forward.mean_delta_difference == pytest.approx(-np.mean(deltas) / 2, abs=1e-9)


def test_a_row_takes_the_best_teacher_and_keeps_the_numbers():
    result = {
        "teacher_names": ["a", "b"],
        "teachers": {
            "a": {"teacher_accuracy": 0.7, "positive_flip_rate_before": 0.1},
            "b": {"teacher_accuracy": 0.9, "positive_flip_rate_before": 0.3},
        },
        "method": "kl_dp",
        "student": "s",
        "n_samples": 10,
        "student_accuracy_before": 0.8,
        "student_accuracy_after": 0.9,
        "transfer_delta": 0.1,
        "knowledge_gain": 0.2,
        "knowledge_loss": 0.1,
        "transfer_rate": {"2": 0.5, "100": None},
    }
    found = study_row("id", "kl_dp parallel", {"seed": 4}, result)
    assert (found.seed, found.teachers, found.teacher_accuracy) == (4, ("a", "b"), 0.9)
    assert found.accuracy_difference == pytest.approx(0.1)
    assert found.transfer_rate == {"2": 0.5, "100": None}


STUDIES = [path for path in sorted((ROOT / "examples").glob("*.yaml")) if "\nmethods:" in path.read_text()]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_example_study_can_be_planned(path):
    assert len(plan_study(StudySpec.model_validate(yaml.safe_load(path.read_text())))) > 1
