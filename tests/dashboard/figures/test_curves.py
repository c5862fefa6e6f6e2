"""Curves from the metric events of a job."""

import pytest

from dashboard.figures import curves

EVENTS = [
    {"step": 1, "values": {"control/loss": 0.9, "control/lr": 0.1}},
    {"step": 2, "values": {"kl_dp/loss": 0.8, "kl_dp/distillation": 0.8, "kl_dp/teacher_share": 0.7}},
    {
        "step": 3,
        "values": {
            "kl_dp/loss": 0.6,
            "kl_dp/distillation": 0.6,
            "transfer_delta": 0.05,
            "knowledge_gain": 0.08,
            "knowledge_loss": 0.03,
        },
    },
]


def test_series_by_name():
    found = curves.by_name(EVENTS)
    assert found["kl_dp/loss"] == [(2, 0.8), (3, 0.6)]


def test_a_term_that_is_the_whole_loss_is_drawn_once_and_rates_are_not_losses():
    figure = curves.loss_curves(curves.by_name(EVENTS), "light")
    assert [trace.name for trace in figure.data] == ["control: loss", "kl_dp: loss"]
    parts = curves.by_name([{"step": 1, "values": {"loss": 1.0, "distillation": 0.4, "cross_entropy": 1.6}}])
    assert len(curves.loss_curves(parts, "light").data) == 3


def test_the_speed_of_a_scan_is_not_a_loss():
    metrics = {"images_per_s": [(500, 2000.0), (1000, 2500.0)], "eta_s": [(500, 3.0), (1000, 1.0)]}
    assert curves.losses(metrics) == {}
    (line,) = curves.speed_curve(metrics, "light").data
    assert (list(line.x), list(line.y)) == ([500, 1000], [2000.0, 2500.0])
    assert not curves.speed_curve({}, "light").data


def test_gain_loss_and_delta_are_points_of_percent():
    results, stages = curves.reported_epochs(EVENTS)
    assert (len(results), stages) == (1, [])
    figure = curves.epochs(results, stages, "dark")
    assert {trace.name: trace.y[0] for trace in figure.data} == pytest.approx(
        {"Δ transfer": 5.0, "gain": 8.0, "loss of knowledge": 3.0}
    )


def test_the_teachers_of_a_running_sequence_are_known_from_its_events():
    ends = {"transfer_delta": 0.0, "knowledge_gain": 0.1, "knowledge_loss": 0.1, "student_accuracy": 0.5}
    events = [
        {"step": i, "values": {f"from {teacher}/loss": 1.0, **(ends if whole else {})}}
        for i, (teacher, whole) in enumerate([("a", False), ("a", True), ("a", True), ("b-2", False), ("b-2", True)])
    ]
    results, stages = curves.reported_epochs(events)
    assert stages == [("a", 2), ("b-2", 1)]
    assert [one["epoch"] for one in results] == [1, 2, 3]
    assert results[0] == {"epoch": 1, **ends}


def test_shares_of_all_stages_have_one_entry_in_the_legend():
    metrics = {"from a/teacher_share": [(1, 0.1)], "from b/teacher_share": [(5, 0.6)]}
    figure = curves.share_curves(metrics, "light")
    assert [trace.showlegend for trace in figure.data] == [True, False]
    assert curves.has_shares(metrics)
    assert not curves.has_shares({"loss": [(1, 1.0)]})


def test_the_share_of_the_evaluated_epochs_is_not_drawn_over_that_of_the_steps():
    name = "positive_flips_to_teacher"
    steps = {f"from a/{name}": [(i, 0.5) for i in range(1, 9)]}
    assert len(curves.share_curves({**steps, name: [(4, 0.5), (8, 0.5)]}, "light").data) == 1
    assert len(curves.share_curves({name: [(4, 0.5)]}, "light").data) == 1


def test_stages_of_a_sequential_run_are_marked():
    results = [
        {"epoch": i + 1, "transfer_delta": 0.01 * i, "knowledge_gain": 0.02, "knowledge_loss": 0.01} for i in range(4)
    ]
    figure = curves.epochs(results, [("a", 2), ("b", 2)], "light")
    assert [note.text for note in figure.layout.annotations] == ["from a", "from b"]
    lines = [shape for shape in figure.layout.shapes if shape.x0 == shape.x1 == 2.5]
    assert len(lines) == 1


def test_nothing_yet_says_so():
    for figure in (curves.loss_curves({}, "light"), curves.share_curves({}, "light")):
        assert figure.layout.annotations
    assert "first epoch" in curves.epochs([], [], "light").layout.annotations[0].text
