"""The report of a transfer: exact on the golden case, nothing where nothing was transferred."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.domain.errors import BadInput
from workers.science.transfer.report import flips_to_teacher, positive_flip_rate, report_epoch, report_transfer

Y = np.array([0] * 4 + [1] * 4 + [2] * 4)
S = np.array([0, 0, 1, 1, 1, 1, 0, 2, 2, 0, 0, 1])
T = np.array([0, 1, 0, 0, 1, 0, 1, 2, 0, 2, 2, 2])
NEW = np.array([0, 1, 0, 0, 1, 1, 1, 2, 2, 2, 2, 0])


def test_golden_values():
    result = report_transfer(S, NEW, {"t": T}, Y, 3, control_after=S)
    assert result.knowledge_gain == pytest.approx(0.416667, abs=1e-6)
    assert result.knowledge_loss == pytest.approx(0.083333, abs=1e-6)
    assert result.transfer_delta == pytest.approx(0.333333, abs=1e-6)
    assert result.positive_flip_rate_delta == pytest.approx(-0.416667, abs=1e-6)
    assert result.negative_flip_rate_delta == pytest.approx(-0.083333, abs=1e-6)
    assert result.transfer_rate[100] == pytest.approx(0.833333, abs=1e-6)
    assert result.teachers["t"].positive_flip_rate_before == 0.5
    assert result.teachers["t"].negative_flip_rate_before == 0.25
    assert result.control_delta == 0
    assert result.delta_above_control == pytest.approx(1 / 3)
    assert (result.n_samples, result.n_classes) == (12, 3)


def test_top_p_takes_the_fewest_classes():
    """Flips per class [2, 1, 3] of 6: 50 % is class 2 alone, 2 of whose 3 flips were taken over."""
    result = report_transfer(S, NEW, {"t": T}, Y, 3)
    assert [result.transfer_rate[p] for p in (2, 5, 20, 50)] == pytest.approx([2 / 3] * 4)


def test_without_transfer_nothing_is_transferred():
    result = report_transfer(S, S, {"t": T}, Y, 3)
    assert set(result.transfer_rate.values()) == {0.0}
    assert result.transfer_delta == result.knowledge_gain == result.knowledge_loss == 0
    assert result.transfer_delta_low == result.transfer_delta_high == 0


def test_a_teacher_without_complementary_knowledge_has_no_rate():
    result = report_transfer(Y, Y, {"t": Y}, Y, 3)
    assert set(result.transfer_rate.values()) == {None}
    assert set(result.transfer_rate_low.values()) == {None}


def test_a_control_has_no_teacher():
    result = report_transfer(S, NEW, {}, Y, 3)
    assert result.positive_flip_rate_delta is None
    assert result.transfer_rate == {}
    assert result.teachers == {}
    assert result.transfer_delta == pytest.approx(1 / 3)


def test_several_teachers_know_what_any_of_them_knows():
    other = np.where(np.arange(12) == 11, 0, Y)  # right everywhere but on the last sample
    result = report_transfer(S, NEW, {"t": T, "u": other}, Y, 3)
    assert result.positive_flip_rate_delta == pytest.approx(((NEW != Y).sum() - (S != Y).sum()) / 12)
    assert result.teachers["u"].teacher_accuracy == pytest.approx(11 / 12)
    assert result.teachers["t"] == report_transfer(S, NEW, {"t": T}, Y, 3).teachers["t"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 5))
def test_laws(seed, n, c):
    rng = np.random.default_rng(seed)
    y, s, t, new, control = rng.integers(0, c, (5, n))
    result = report_transfer(s, new, {"t": t}, y, c, control_after=control)
    counts = {name: round(getattr(result, name) * n) for name in ("knowledge_gain", "knowledge_loss", "transfer_delta")}
    assert counts["transfer_delta"] == counts["knowledge_gain"] - counts["knowledge_loss"]
    assert result.transfer_delta == pytest.approx(result.student_accuracy_after - result.student_accuracy_before)
    assert result.positive_flip_rate_delta - result.negative_flip_rate_delta == pytest.approx(-result.transfer_delta)
    for name in ("student_accuracy_after", "transfer_delta", "knowledge_gain", "delta_above_control"):
        assert getattr(result, f"{name}_low") <= getattr(result, name) + 1e-9
        assert getattr(result, f"{name}_high") >= getattr(result, name) - 1e-9
    order = rng.permutation(n)
    moved = report_transfer(s[order], new[order], {"t": t[order]}, y[order], c, control_after=control[order])
    assert moved == result
    # Every figure of the end is there after every epoch, with its interval.
    epoch = report_epoch(1, s, new, {"t": t}, y, c, {"loss": 0.5, "positive_flips_to_teacher": 0.75})
    named = {name for name in type(epoch).model_fields if name in type(result).model_fields}
    assert {"transfer_rate_low", "knowledge_loss_high", "negative_flip_rate_delta_low"} <= named
    assert all(getattr(epoch, name) == getattr(result, name) for name in named if not name.endswith("flips_to_teacher"))
    assert (epoch.student_accuracy, epoch.student_accuracy_low) == (
        result.student_accuracy_after,
        result.student_accuracy_after_low,
    )
    assert (epoch.epoch, epoch.positive_flips_to_teacher, epoch.negative_flips_to_teacher) == (1, 0.75, None)
    one = result.teachers["t"]
    assert (one.positive_flip_rate_delta, one.positive_flip_rate_delta_low, one.negative_flip_rate_delta_high) == (
        result.positive_flip_rate_delta,
        result.positive_flip_rate_delta_low,
        result.negative_flip_rate_delta_high,
    )


def test_intervals_narrow_with_the_samples():
    few = report_transfer(S, NEW, {"t": T}, Y, 3)
    many = report_transfer(np.tile(S, 100), np.tile(NEW, 100), {"t": np.tile(T, 100)}, np.tile(Y, 100), 3)
    assert many.transfer_delta == few.transfer_delta
    width = many.transfer_delta_high - many.transfer_delta_low
    # Δ per sample is +1, -1, 0 with shares 5/12, 1/12, 6/12.
    assert width == pytest.approx(2 * 1.96 * np.sqrt((0.5 - 1 / 9) / 1200), rel=0.05)
    assert few.transfer_delta_high - few.transfer_delta_low > 5 * width
    assert 0 < many.transfer_rate_low[50] < 2 / 3 < many.transfer_rate_high[50] < 1


def test_unlabelled_samples_are_left_out_and_sets_of_labels_count():
    labels = np.append(Y, -1)
    same = report_transfer(np.append(S, 0), np.append(NEW, 2), {"t": np.append(T, 1)}, labels, 3)
    assert same == report_transfer(S, NEW, {"t": T}, Y, 3)
    sets = np.stack([Y, np.where(np.arange(12) == 11, 0, -1)], axis=1)  # the last image may also be class 0
    assert same.student_accuracy_after == pytest.approx(9 / 12)
    assert report_transfer(S, NEW, {"t": T}, sets, 3).student_accuracy_after == pytest.approx(10 / 12)


def test_the_precondition_is_measured_and_warned_about():
    assert positive_flip_rate({"t": T}, S, Y) == 0.5
    assert positive_flip_rate({"t": T, "all": Y}, S, Y) == pytest.approx(7 / 12)
    result = report_transfer(S, NEW, {"t": T}, Y, 3, positive_flip_rate_on_transfer_set=0.0)
    assert "next to nothing to transfer" in result.warnings[0]
    assert report_transfer(S, NEW, {"t": T}, Y, 3, positive_flip_rate_on_transfer_set=0.5).warnings == ()


def test_shares_of_flips_given_to_the_teacher():
    positive, negative = (T == Y) & (S != Y), (S == Y) & (T != Y)
    given = positive.copy()
    given[np.flatnonzero(positive)[0]] = False
    given[np.flatnonzero(negative)[0]] = True
    assert flips_to_teacher(given, {"t": T}, S, Y) == (pytest.approx(5 / 6), pytest.approx(1 / 3))
    assert flips_to_teacher(given, {"t": S}, S, Y) == (None, None)


def test_bad_predictions_are_refused():
    with pytest.raises(BadInput, match="top1"):
        report_transfer(S[:5], NEW, {"t": T}, Y, 3)
    with pytest.raises(BadInput, match="label"):
        report_transfer(S, NEW, {"t": T}, np.full(12, -1), 3)
    with pytest.raises(BadInput, match="classes"):
        report_transfer(S, NEW, {"t": T}, Y, 2)
