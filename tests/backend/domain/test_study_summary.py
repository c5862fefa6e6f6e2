"""Rows of a study become the right rates, differences, controls and comparisons of several teachers with one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.domain.study_summary import StudyRow, grouped_mean, study_row, summarise


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


def test_success_above_the_control_is_counted_against_each_students_own():
    rows = [
        *(row("control", None, s, c, seed=k, params={"lr": 1.0, "seed": k}) for s, c, k in CONTROLS),
        *(row("kl", t, s, 0.03, seed=k, params={"lr": 1.0, "seed": k}) for t in "ab" for s, _, k in CONTROLS),
    ]
    [kl] = [one for one in summarise(rows).methods if one.label == "kl"]
    assert (kl.n_with_control, kl.success_rate, kl.success_rate_above_control) == (8, 1.0, 0.5)
    assert kl.mean_delta_above_control == pytest.approx(0.03 - np.mean([c for _, c, _ in CONTROLS]))
    assert kl.mean_delta_above_control_low <= kl.mean_delta_above_control <= kl.mean_delta_above_control_high
    # Two teachers of one student and seed share its control: eight transfers are four draws, not eight.
    assert kl.success_rate_above_control_low == 0.0


CONTROLS = [("s", 0.01, 0), ("s", 0.02, 1), ("t", 0.04, 0), ("t", 0.03, 1)]


def test_grouped_mean_reduces_to_the_plain_bootstrap_and_is_wider_for_copies():
    values = np.array([0.1, 0.4, -0.2, 0.3, 0.0])
    plain = grouped_mean(values, range(5))
    assert plain == grouped_mean(values, [7] * 5)
    copied = grouped_mean(np.repeat(values, 4), np.repeat(np.arange(5), 4).tolist())
    assert copied[0] == pytest.approx(plain[0])
    assert copied[1:] == pytest.approx(plain[1:], abs=0.02)
    naive = grouped_mean(np.repeat(values, 4), range(20))
    assert copied[2] - copied[1] > 1.5 * (naive[2] - naive[1])


def several(label: str, delta: float, *, seed: int = 0, **params: Any) -> StudyRow:
    return row(label, None, "s", delta, teachers=("a", "b"), seed=seed, params={"lr": 1.0, "seed": seed, **params})


def single(teacher: str, delta: float, accuracy: float, *, seed: int = 0, **params: Any) -> StudyRow:
    values = {"lr": 1.0, "seed": seed, "multi": "sequential", **params}
    return row("kl", teacher, "s", delta, teacher_accuracy=accuracy, seed=seed, params=values)


def test_several_teachers_stand_beside_the_best_and_the_most_accurate_alone():
    rows = [
        single("a", 0.01, 0.9),
        single("b", 0.04, 0.7),
        single("a", 0.02, 0.9, seed=1),
        single("b", 0.0, 0.7, seed=1),
        single("b", 0.5, 0.7, lr=2.0),
        several("kl parallel ×2", 0.05, multi="parallel"),
        several("kl parallel ×2", 0.01, seed=1, multi="parallel"),
        several("kl parallel ×2", 0.9, seed=2, multi="parallel"),
    ]
    table = summarise(rows)
    assert [(one.seed, one.best_single_teacher, one.best_single_delta) for one in table.teacher_sets] == [
        (0, "b", 0.04),
        (1, "a", 0.02),
    ]
    assert [one.mean_single_delta for one in table.teacher_sets] == pytest.approx([0.025, 0.01])
    best, able = table.teacher_set_summaries
    assert (best.against, able.against) == ("best single teacher", "most accurate teacher")
    assert (best.n_transfers, best.n_incomplete, best.win_rate) == (2, 1, 0.5)
    assert best.mean_delta_difference == pytest.approx(0.0, abs=1e-12)
    assert (best.mean_delta_difference_low, best.mean_delta_difference_high) == pytest.approx((-0.01, 0.01))
    assert able.mean_delta_difference == pytest.approx(0.015)
    assert summarise(rows[:5]).teacher_set_summaries == ()


def test_teachers_in_turn_are_controlled_by_as_many_epochs():
    def control(epochs: int, delta: float) -> StudyRow:
        return row("control", None, "s", delta, params={"lr": 1.0, "seed": 0, "epochs": epochs})

    rows = [
        control(3, 0.01),
        control(6, 0.02),
        several("kl sequential ×2", 0.05, epochs=3, multi="sequential"),
        several("kl parallel ×2", 0.05, epochs=3, multi="parallel"),
    ]
    deltas = {one.label: one.control_delta for one in summarise(rows).rows if one.teachers}
    assert deltas == {"kl sequential ×2": 0.02, "kl parallel ×2": 0.01}
