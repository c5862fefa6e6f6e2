"""Percent and points are made here and nowhere else."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from dashboard import formats


def test_rates_and_differences():
    assert formats.percent(0.03946) == "3.95 %"
    assert formats.percent(None) == "–"
    assert formats.signed_percent(-0.0121) == "−1.21 pp"
    assert formats.signed_percent(0.05) == "+5.00 pp"
    assert formats.interval(-0.02, 0.08) == "−2.00 to 8.00 %"
    assert formats.interval(None, 0.1) == "–"
    assert formats.bracket(-0.02, 0.08) == "95 %: [−2.00, 8.00]"


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "≈ 0"), (6.2e-27, "6.2e-27"), (0.0009, "9.0e-04"), (0.05, "0.050"), (1.0, "1.000"), (None, "–")],
)
def test_p_values(value, text):
    assert formats.p_value(value) == text


@pytest.mark.parametrize(
    "value, text", [(25_557_032, "25.6 M"), (300_746, "301 k"), (999, "999"), (1_200_000_000, "1.2 G"), (None, "–")]
)
def test_parameters(value, text):
    assert formats.params(value) == text


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (59.6, "1 min 0 s"), (95, "1 min 35 s"), (7300, "2 h 1 min")])
def test_durations(seconds, text):
    assert formats.duration(seconds) == text


def test_times_are_shown_in_utc():
    there = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert formats.moment(there) == "2025-12-31 23:00:00"
    assert formats.ran_for(there, there + timedelta(seconds=61)) == "1 min 1 s"
    assert formats.ran_for(None, None) == "–"
    assert formats.ran_for(datetime.now(UTC) - timedelta(seconds=5), None) in ("5 s", "6 s")
