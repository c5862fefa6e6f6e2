"""Figures of many transfers: success is Δ > 0, means are means, nothing is scaled twice."""

import pytest

from backend.domain.study_summary import StudyRow, summarise
from dashboard.figures import transfers
from dashboard.theme import SCHEMES


def a_row(label, student, delta, difference=0.0, **more):
    gain = max(delta, 0.0) + 0.02
    return StudyRow(
        job_id=f"{label}-{student}-{delta}",
        label=label,
        method="kl",
        params={},
        teachers=() if label.startswith("control") else ("t",),
        student=student,
        seed=0,
        n_samples=100,
        student_accuracy_before=0.6,
        student_accuracy_after=0.6 + delta,
        accuracy_difference=None if label.startswith("control") else difference,
        transfer_delta=delta,
        knowledge_gain=gain,
        knowledge_loss=gain - delta,
        transfer_rate={"2": 0.5, "100": 0.25},
        **more,
    )


ROWS = [
    a_row("kl", "s1", 0.02, -0.1),
    a_row("kl", "s1", -0.04, 0.1),
    a_row("kl", "s2", 0.0, 0.0),
    a_row("kl_dp", "s1", 0.03, -0.1),
    a_row("kl_dp", "s2", 0.05, 0.1),
    a_row("control", "s1", 0.01),
]


def test_success_counts_only_deltas_above_zero():
    figure = transfers.success_boxes(ROWS, "light")
    by_name = {trace.name: list(trace.y) for trace in figure.data}
    assert by_name == {"kl": [50.0, 0.0], "kl_dp": [100.0, 100.0], "control": [100.0]}


def test_bins_hold_every_row_once_and_the_mean_is_honest():
    edges = transfers.bins([row for row in ROWS if row.teachers])
    assert edges[0][0] == pytest.approx(-0.1)
    assert edges[-1][1] == pytest.approx(0.1)
    figure = transfers.binned_deltas(ROWS, "dark")
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert {trace.name: list(trace.customdata) for trace in lines} == {"kl": [1, 1, 1], "kl_dp": [1, 1]}
    assert list(lines[0].y) == pytest.approx([2.0, 0.0, -4.0])


def test_gain_against_loss_links_to_jobs_and_draws_the_diagonal():
    figure = transfers.gain_against_loss(ROWS, "light")
    assert list(figure.data[0].x) == list(figure.data[0].y)
    kl = figure.data[1]
    assert [y - x for x, y in zip(kl.x, kl.y, strict=True)] == pytest.approx([2.0, -4.0, 0.0])
    assert kl.customdata[0][-1].startswith("/jobs/")


def test_rates_and_properties():
    top = transfers.rates_by_top(ROWS, "light")
    assert list(top.data[0].x) == ["2 %", "100 %"]
    assert list(top.data[0].y) == [50.0, 25.0]
    accuracy = transfers.deltas_by_student(ROWS, {}, "light", of="accuracy")
    assert accuracy.data[0].x[0] == pytest.approx(60)
    assert "parameters of the student" in transfers.rates_by_student(ROWS, {}, "light").layout.annotations[0].text
    assert "No transfer" in transfers.rates_by_student([], {}, "light").layout.annotations[0].text


def test_method_bars_show_the_interval_of_the_summary():
    table = summarise(ROWS)
    bars = transfers.method_bars(table.methods, "light").data[0]
    one = table.methods[0]
    assert bars.y[0] == pytest.approx(100 * one.mean_delta)
    assert bars.error_y.array[0] == pytest.approx(100 * (one.mean_delta_high - one.mean_delta))
    assert bars.error_y.arrayminus[0] == pytest.approx(100 * (one.mean_delta - one.mean_delta_low))


def test_means_by_data_set():
    datasets = {row.job_id: "d1" if row.student == "s1" else "d2" for row in ROWS}
    figure = transfers.by_dataset(ROWS, datasets, "light")
    kl = figure.data[0]
    assert list(kl.x) == ["d1", "d2"]
    assert list(kl.y) == pytest.approx([-1.0, 0.0])
    assert figure.data[2].y[1] is None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_rows_every_figure_says_so(scheme):
    for figure in (
        transfers.success_boxes([], scheme),
        transfers.binned_deltas([], scheme),
        transfers.gain_against_loss([], scheme),
        transfers.rates_by_top([], scheme),
        transfers.method_bars([], scheme),
        transfers.by_dataset([], {}, scheme),
    ):
        assert figure.layout.annotations[0].text == transfers.NO_ROWS


def test_a_method_has_one_colour_everywhere():
    tones = transfers.tones(ROWS, "light")
    assert len(set(tones.values())) == 3
    assert transfers.success_boxes(ROWS, "light").data[0].marker.color == tones["kl"]
    assert transfers.gain_against_loss(ROWS, "light").data[1].marker.color == tones["kl"]


def test_titles_along_the_side_fit_a_figure_that_gave_its_height_to_long_labels():
    rows = [*ROWS, a_row("KL+DP unsupervised", "s1", 0.01, 0.0)]
    for draw in (transfers.success_boxes, transfers.binned_deltas, transfers.rates_by_top, transfers.gain_against_loss):
        assert len(draw(rows, "light").layout.yaxis.title.text) <= 28
