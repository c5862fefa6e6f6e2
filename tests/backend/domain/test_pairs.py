"""The records carry exactly the contract's fields, and say what the counts say."""

import numpy as np
import pytest

from backend.domain.flips import class_flips, correctness, flip_pairs
from backend.domain.intervals import bootstrap_pair
from backend.domain.pairs import (
    ClassFlips,
    FlippedSample,
    Pair,
    PairDetail,
    class_q_values,
    class_records,
    pair_detail,
    pair_records,
)

Y = np.repeat([0, 1, 2], 4)
CORRECT = correctness([[0, 1, 0, 0, 1, 0, 1, 2, 0, 2, 2, 2], [0, 0, 1, 1, 1, 1, 0, 2, 2, 0, 0, 1]], Y)


def test_fields_of_the_contract():
    rates = [
        f"{name}{end}"
        for name in ("accuracy_difference", "positive_flip_rate", "negative_flip_rate")
        for end in ("", "_low", "_high")
    ]
    assert set(Pair.model_fields) == {
        *("teacher", "student", "dataset", "split", "n_samples", "n_classes", "teacher_accuracy", "student_accuracy"),
        *("flip_entropy_nats", "mcnemar_p_value"),
        *rates,
    }
    assert list(ClassFlips.model_fields) == [
        *("class_index", "class_name", "n_samples", "positive_flips", "negative_flips", "positive_flip_share")
    ]
    assert {"sample_id", "label", "teacher_top1", "student_top1", "thumbnail"} <= set(FlippedSample.model_fields)


def test_pair_records_of_the_golden_pair():
    first, second = pair_records(flip_pairs(CORRECT, Y, 3), ["t", "s"], dataset="golden", split="test")
    assert (first.teacher, first.student, second.teacher, second.student) == ("t", "s", "s", "t")
    assert (first.n_samples, first.n_classes) == (12, 3)
    assert (first.positive_flip_rate, first.negative_flip_rate, first.accuracy_difference) == (0.5, 0.25, 0.25)
    assert first.flip_entropy_nats == pytest.approx(1.011404, abs=5e-7)
    assert second.accuracy_difference_low == pytest.approx(-first.accuracy_difference_high)
    assert first.mcnemar_p_value == second.mcnemar_p_value == pytest.approx(0.5078125)
    assert Pair.model_validate_json(first.model_dump_json()) == first


def test_pair_detail_has_the_same_point_values_and_bootstrap_intervals():
    listed = next(iter(pair_records(flip_pairs(CORRECT, Y, 3), ["t", "s"], dataset="golden", split="test")))
    detail = pair_detail(
        teacher="t",
        student="s",
        dataset="golden",
        split="test",
        right_both=2,
        positive_flips=6,
        negative_flips=3,
        wrong_both=1,
        n_classes=3,
        flip_entropy_nats=listed.flip_entropy_nats,
    )
    same = {name for name in Pair.model_fields if not name.endswith(("_low", "_high"))}
    assert listed.model_dump(include=same) == detail.model_dump(include=same)
    drawn = bootstrap_pair(2, 6, 3, 1)
    assert detail.accuracy_difference_low == drawn.accuracy_difference.low
    assert detail.teacher_accuracy_high == drawn.teacher_accuracy.high
    assert isinstance(detail, PairDetail)


def test_class_records_are_sorted_and_leave_out_absent_classes():
    counts = class_flips(CORRECT[0], CORRECT[1], np.where(Y == 2, 3, Y), 4)
    records = class_records(counts, ["a", "b", "none", "d"])
    assert [(r.class_name, r.positive_flips, r.positive_flip_share) for r in records] == [
        ("d", 3, 0.75),
        ("a", 2, 0.5),
        ("b", 1, 0.25),
    ]
    assert class_q_values(counts).shape == (4,)
    assert (class_q_values(counts) >= 0.5).all()
