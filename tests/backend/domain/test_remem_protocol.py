"""The protocol: metrics, carving, choice on validation only, the table with intervals, the information plane."""

import numpy as np
import pytest

from backend.domain.errors import BadInput
from backend.domain.remem import StudentDistillation, TeacherTuning
from backend.domain.remem_protocol import (
    best_teacher,
    carve_validation,
    error_rate,
    information_plane,
    mean_interval,
    setting_table,
    sweep_table,
    tuned_teacher,
)
from backend.domain.remem_results import InformationResult, StudentScore, TeacherSnapshot, comparable


def information(excess, model="vit", **changes):
    return InformationResult(
        model=model,
        data="cifar10/val",
        loss_nats=0.5 + excess,
        floor_nats=0.5,
        excess_nats=excess,
        **{
            "feature_width": 192,
            "feature_grid": (14, 14),
            "image_size": (224, 224),
            "n_images": 100,
            "n_heldout": 50,
            "updates": 2000,
            "batch_size": 64,
            **changes,
        },
    )


KD = StudentDistillation()
DIST = StudentDistillation(method="dist", lr=0.5)


def snapshot(stop, students, *, test_error=0.3, excess=None):
    """`students`: (distillation, validation error, test error) each."""
    return TeacherSnapshot(
        stop_point=stop,
        validation_error=0.3,
        test_error=test_error,
        information=None if excess is None else information(excess),
        students=tuple(
            StudentScore(distillation=how, validation_error=val, test_error=test) for how, val, test in students
        ),
    )


def teacher(val, test, *, excess=0.1, teacher_error=0.3, stop=500, **tuning):
    return tuned_teacher(
        TeacherTuning(**tuning), [snapshot(stop, [(KD, val, test)], test_error=teacher_error, excess=excess)]
    )


def test_error_rates():
    labels, top1 = [0, 0, 0, 1], [0, 0, 1, 1]
    assert error_rate(top1, labels) == 0.25
    assert error_rate(top1, labels, "mean_per_class") == pytest.approx(1 - (2 / 3 + 1) / 2)
    assert error_rate([7, 7], [7, 9], "mean_per_class") == 0.5
    with pytest.raises(BadInput, match="top1"):
        error_rate([], [])


def test_validation_is_stratified_seeded_and_apart():
    labels = np.repeat([0, 1, 2], [40, 40, 20]).astype(np.int64)
    train, validation = carve_validation(labels, 0.1, seed=3)
    assert np.bincount(labels[validation]).tolist() == [4, 4, 2]
    assert sorted([*train, *validation]) == list(range(100))
    assert np.array_equal(validation, carve_validation(labels, 0.1, seed=3)[1])
    assert not np.array_equal(validation, carve_validation(labels, 0.1, seed=4)[1])
    with pytest.raises(BadInput, match="validation_share"):
        carve_validation(np.zeros(1, np.int64), 0.5)


def test_validation_chooses_whatever_test_says():
    chosen = tuned_teacher(
        TeacherTuning(),
        [snapshot(500, [(KD, 0.3, 0.1), (DIST, 0.2, 0.9)]), snapshot(700, [(KD, 0.2, 0.0), (DIST, 0.4, 0.0)])],
    )
    assert (chosen.best_stop_point, chosen.best_distillation) == (500, DIST)
    assert chosen.best_student.test_error == 0.9
    with pytest.raises(BadInput, match="snapshots"):
        tuned_teacher(TeacherTuning(), [])


def test_without_students_the_teacher_chooses():
    better = snapshot(700, []).model_copy(update={"validation_error": 0.2})
    chosen = tuned_teacher(TeacherTuning(), [snapshot(500, []), better])
    assert (chosen.best_stop_point, chosen.best_distillation, chosen.best_student) == (700, None, None)
    assert chosen.choosing_error == 0.2
    (row,) = setting_table([chosen])
    assert (row.student_accuracy, row.gain) == (None, None)
    assert row.teacher_accuracy == pytest.approx(0.7)


def test_best_of_all():
    assert best_teacher([teacher(0.3, 0.0), teacher(0.2, 0.9, rho=0.05), teacher(0.2, 0.1, rho=0.5)]) == 1


def test_table_pairs_gains_by_seed():
    teachers = [
        teacher(0.30, 0.30, seed=0),
        teacher(0.40, 0.10, seed=0, lr=0.05),  # better on test, worse on validation: not chosen
        teacher(0.30, 0.34, seed=1),
        teacher(0.25, 0.28, seed=0, rho=0.05, excess=0.05),
        teacher(0.25, 0.30, seed=1, rho=0.05, excess=0.07),
        teacher(0.20, 0.20, seed=0, rho=0.05, mlp_weight=0.8),
    ]
    baseline, sam, both = setting_table(teachers)
    assert [row.setting for row in (baseline, sam, both)] == ["baseline", "sam", "both"]
    assert baseline.student_accuracy == pytest.approx(0.68)
    assert baseline.gain == 0
    assert sam.gain == pytest.approx(0.03)
    # values .02 and .04: half width t(.975, 1) · .0141421 / √2
    assert sam.gain_high - sam.gain == pytest.approx(12.7062 * 0.01, abs=1e-4)
    assert sam.excess_nats == pytest.approx(0.06)
    assert (both.n_seeds, both.gain_low) == (1, None)
    assert both.gain == pytest.approx(0.1)


def test_sweeps():
    teachers = [
        teacher(0.30, 0.30, rho=0.5),
        teacher(0.30, 0.32, rho=0.5, seed=1),
        teacher(0.20, 0.20),
        teacher(0.10, 0.50, lr=0.05),
    ]
    low, high = sweep_table(teachers, "rho")
    assert (low.value, low.student_accuracy, low.n_seeds) == (0.0, 0.5, 1)
    assert (high.value, high.n_seeds) == (0.5, 2)
    assert high.student_accuracy == pytest.approx(0.69)


def test_pruning_curves_begin_with_the_whole_model():
    teachers = [
        teacher(0.1, 0.1),
        teacher(0.1, 0.2, pruned_blocks=1),
        teacher(0.1, 0.3, pruned_blocks=2),
        teacher(0.1, 0.6, pruned_blocks=1, pruned_branch="attention"),
    ]
    rows = sweep_table(teachers, "pruned_blocks")
    assert [(row.branch, row.value) for row in rows] == [
        ("attention", 0), ("attention", 1), ("mlp", 0), ("mlp", 1), ("mlp", 2)
    ]  # fmt: skip
    assert [row.student_accuracy for row in rows] == pytest.approx([0.9, 0.4, 0.9, 0.8, 0.7])
    (row,) = setting_table(teachers)
    assert row.student_accuracy == 0.9


def test_no_baseline_no_gain():
    (row,) = setting_table([teacher(0.3, 0.3, rho=0.05)])
    assert row.gain is None


def test_interval():
    mean, low, high = mean_interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert high - mean == pytest.approx(mean - low) == pytest.approx(4.30265 * 0.1 / 3**0.5, abs=1e-5)
    assert mean_interval([0.5]) == (0.5, None, None)


def test_plane_has_a_front_per_setting():
    points = information_plane(
        [
            teacher(0.3, 0.31, excess=0.10, teacher_error=0.30),
            teacher(0.3, 0.32, excess=0.20, teacher_error=0.40, lr=0.05),
            teacher(0.3, 0.33, excess=0.30, teacher_error=0.50, rho=0.05),
        ]
    )
    assert [point.on_front for point in points] == [True, False, True]
    assert [point.setting for point in points] == ["baseline", "baseline", "sam"]
    assert points[0].student_error == 0.31


def test_incomparable_information_is_refused():
    a, b = information(0.1), information(0.1, model="wide", feature_width=384)
    assert comparable(a, information(0.2, seed=1))
    assert not comparable(a, b)
    teachers = [teacher(0.3, 0.3), teacher(0.3, 0.3, rho=0.05)]
    odd = teachers[1].snapshots[0].model_copy(update={"information": b})
    teachers[1] = teachers[1].model_copy(update={"snapshots": (odd,)})
    with pytest.raises(BadInput, match=r"wide.*feature_width 384.*vit"):
        information_plane(teachers)
