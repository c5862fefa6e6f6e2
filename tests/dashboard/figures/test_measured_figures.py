"""Figures of what was measured: exact values, what is missing, and forests of intervals."""

from uuid import uuid4

import pytest

from backend.domain.kdep import AlignmentReport, EmbeddingResult, estimate
from backend.domain.kdep_studies import KdepSummary
from backend.domain.remem_results import (
    BlockCriticality,
    CriticalityResult,
    CriticalNeuron,
    InfluencedImage,
    InformationResult,
    SettingRow,
    SweepRow,
)
from backend.domain.study_summary import MethodDifference
from dashboard.figures import criticality, forest, kdep, sweeps
from dashboard.figures.model_plane import model_plane
from dashboard.reads import CandidateTeacher, PlaneModel
from dashboard.theme import SCHEMES


def note(figure):
    """What an empty figure says."""
    assert not figure.data
    return figure.layout.annotations[0].text


def plane_model(name, error, excess, student_error=None, family="cnn", on_front=False):
    told = InformationResult(
        model=name,
        data="d",
        loss_nats=1 + excess,
        floor_nats=1.0,
        excess_nats=excess,
        feature_width=4,
        feature_grid=(1, 1),
        image_size=(8, 8),
        n_images=4,
        n_heldout=2,
        updates=1,
        batch_size=2,
    )
    student = None if student_error is None else "s"
    return PlaneModel(name, family, uuid4(), error, told, student, student_error, on_front)


def test_models_in_the_plane():
    members = [
        plane_model("a", 0.1, 0.3, 0.2, on_front=True),
        plane_model("b", 0.3, 0.1, 0.6, "transformer", on_front=True),
        plane_model("c", 0.4, 0.4),
    ]
    front, cnn, transformer = model_plane(members, "light").data
    assert (list(front.x), list(front.y)) == ([10, 30], [0.3, 0.1])
    assert (list(cnn.x), list(cnn.y)) == (pytest.approx([10, 40]), [0.3, 0.4])
    assert list(cnn.marker.size) == [9.0, 9.0]  # the smallest student error, and none at all
    assert list(transformer.marker.size) == pytest.approx([30])
    assert transformer.customdata[0][-1] == "/zoo/b"
    assert "taught s: error 60.00 %" in transformer.customdata[0][0]
    assert "No model" in note(model_plane([], "dark"))


def setting(name, student, teacher=0.5):
    return SettingRow(
        setting=name,
        n_seeds=3,
        student_accuracy=student,
        student_accuracy_low=None if student is None else student - 0.1,
        student_accuracy_high=None if student is None else student + 0.2,
        teacher_accuracy=teacher,
    )


def test_settings_with_intervals():
    teacher, student = sweeps.settings([setting("baseline", 0.4), setting("both", 0.6)], "light").data
    assert list(student.x) == ["Fine-tuned", "ReMem (both)"]
    assert list(student.y) == [40, 60]
    assert list(student.error_y.array) == pytest.approx([20, 20])
    assert list(student.error_y.arrayminus) == pytest.approx([10, 10])
    assert list(teacher.error_y.array) == [0, 0]  # one seed has no interval
    assert len(sweeps.settings([setting("baseline", None)], "light").data) == 1
    assert "No setting" in note(sweeps.settings([], "dark"))


def test_sweeps_by_branch():
    def row(value, branch, student):
        return SweepRow(
            parameter="pruned_blocks",
            value=value,
            branch=branch,
            n_seeds=1,
            student_accuracy=student,
            teacher_accuracy=0.5,
        )

    rows = [row(2, "mlp", 0.6), row(0, "mlp", 0.4), row(0, "attention", 0.4), row(2, "attention", 0.3)]
    figure = sweeps.sweep(rows, "light")
    lines = {trace.name: list(trace.y) for trace in figure.data}
    assert lines["student (mlp)"] == [40, 60]
    assert lines["student (attention)"] == [40, 30]
    assert list(figure.data[0].x) == [0, 2]
    assert figure.layout.xaxis.type == "linear"
    assert "one value" in note(sweeps.sweep(rows[:1], "light"))


def test_pruning():
    def row(value, branch, teacher, student=None, excess=None):
        return SweepRow(
            parameter="pruned_blocks",
            value=value,
            branch=branch,
            n_seeds=1,
            student_accuracy=student,
            teacher_accuracy=teacher,
            excess_nats=excess,
        )

    rows = [row(4, "mlp", 0.5, 0.7, 0.1), row(0, "mlp", 0.9, 0.6, 0.2), row(0, "attention", 0.9, None, 0.2)]
    mlp, attention = sweeps.pruning(rows, "excess_nats", "light").data
    assert (list(mlp.text), list(mlp.y)) == (["0", "4"], [0.2, 0.1])
    assert list(mlp.x) == pytest.approx([10, 50])
    assert attention.name == "attention branches pruned"
    (mlp,) = sweeps.pruning(rows, "student_accuracy", "dark").data
    assert list(mlp.y) == pytest.approx([40, 30])
    assert "No pruned" in note(sweeps.pruning(rows[2:], "student_accuracy", "dark"))


def test_critical_neurons():
    neurons = tuple(
        CriticalNeuron(
            block=1,
            neuron=n,
            criticality=c,
            images=(InfluencedImage(index=0, influence=c), InfluencedImage(index=2, influence=c / 2)),
        )
        for n, c in ((5, 0.4), (3, 0.2))
    )
    block = BlockCriticality(block=1, n_neurons=8, n_examined=4, mean=0.1, maximum=0.4, neurons=neurons)
    result = CriticalityResult(model="vit", data="d", n_images=3, blocks=(block,))
    largest, mean = criticality.by_block({"vit": result}, "light").data
    assert (list(largest.x), list(largest.y), list(mean.y)) == ([2], [0.4], [0.1])
    assert largest.name == "largest"
    assert criticality.by_block({"vit": result, "b": result}, "light").data[2].name == "b, largest"
    bars, others = criticality.ranking(block, "dark").data
    assert (list(bars.x), list(bars.y)) == (["5", "3"], [0.4, 0.2])
    assert (list(others.x), list(others.y)) == (["5", "3"], [0.2, 0.1])
    assert "No neuron" in note(criticality.ranking(block.model_copy(update={"neurons": ()}), "dark"))
    assert "No model" in note(criticality.by_block({}, "dark"))


def test_candidates_side_by_side():
    found = [
        CandidateTeacher("late", "cnn", 0.5, None, 0.1),
        CandidateTeacher("loose", "cnn", 0.9, 1.0, 0.2),
        CandidateTeacher("tight", "transformer", None, 3.0, 0.3),
    ]
    compactness, logme, accuracy = kdep.teachers(found, "light").data
    assert list(compactness.y) == ["loose", "tight", "late"]
    assert list(compactness.x) == [1.0, 3.0, None]
    assert list(logme.x) == [0.2, 0.3, 0.1]
    assert list(accuracy.x) == [90, None, 50]
    assert compactness.marker.color[0] != compactness.marker.color[1]
    assert "No candidate" in note(kdep.teachers([], "light"))


def summary(label, teacher, share, values, sets=("pets",), seen=1000, **more):
    found = estimate(values)
    facts = {"method": label, "label": label, "teacher": teacher, "share": share, "epochs": 1, "images_seen": seen}
    return KdepSummary(**{**facts, **more}, average=found, sets=dict.fromkeys(sets, found))


def test_pretraining_over_shares():
    rows = [summary("svd", "t", 1.0, [0.5, 0.7]), summary("svd", "t", 0.1, [0.4]), summary("random", None, 1.0, [0.2])]
    figure = kdep.over_shares(rows, "light")
    assert [(trace.name, list(trace.x)) for trace in figure.data] == [
        ("svd, t", ["10 %", "100 %"]),
        ("random", ["100 %"]),
    ]
    assert list(figure.data[0].y) == pytest.approx([40, 60])
    assert figure.data[0].error_y.array[0] == 0
    assert figure.data[0].error_y.array[1] == pytest.approx(100 * (rows[0].average.high - 0.6))
    assert list(figure.layout.xaxis.categoryarray) == ["10 %", "100 %"]
    bars = kdep.downstream_sets(rows, "dark").data
    assert [(bar.name, list(bar.y)) for bar in bars] == [("svd, t", pytest.approx([60])), ("random", [20])]
    assert "No pre-training" in note(kdep.over_shares([], "light"))


def test_pretraining_over_the_images_seen():
    rows = [
        summary("svd epochs=9", "t", 0.1, [0.5, 0.7], seen=9000, method="svd", job_s=61.2),
        summary("svd epochs=3", "t", 0.1, [0.4], seen=3000, method="svd"),
        summary("random", None, 1.0, [0.2], seen=0),
    ]
    figure = kdep.over_images_seen(rows, "light")
    (line,) = figure.data
    assert (line.name, list(line.x), list(line.y)) == ("svd, t", [3000, 9000], pytest.approx([40, 60]))
    assert list(line.customdata[1]) == ["svd epochs=9", "10 %", 1, ", 61 s a job"]
    (level,) = figure.layout.shapes
    assert (level.y0, level.y1) == (20, 20)
    assert figure.layout.xaxis.type == "log"
    assert "No pre-training" in note(kdep.over_images_seen([], "light"))


def test_losses_and_spread():
    figure = kdep.losses({"a": [(1, 2.0), (2, 1.0)], "b": [(1, 3.0)], "none": []}, "light")
    assert [trace.name for trace in figure.data] == ["a", "b"]
    assert figure.layout.yaxis.type == "log"
    assert kdep.losses({"a": [(1, -2.0)], "b": [(1, 1.0)]}, "light").layout.yaxis.type is None
    assert "No run" in note(kdep.losses({"none": []}, "light"))
    report = AlignmentReport(
        teacher_width=4,
        student_width=2,
        aligned_width=2,
        expanded=False,
        teacher_std_ratio=3.0,
        std_ratio_before=9.0,
        std_ratio_after=2.0,
    )
    learnt = report.model_copy(update={"std_ratio_before": None})
    spread = kdep.std_ratios({"a": report, "b": learnt, "x" * 40: report}, "dark")
    assert [list(bar.x) for bar in spread.data] == [[3.0, 3.0], [9.0, 9.0], [2.0, 2.0]]
    assert [len(name) for name in spread.layout.yaxis.ticktext] == [1, 28]
    assert spread.layout.xaxis.dtick == "D2"
    wide = report.model_copy(update={"std_ratio_before": 2e8})
    assert kdep.std_ratios({"a": wide}, "dark").layout.xaxis.dtick == 2
    assert "No run" in note(kdep.std_ratios({"b": learnt}, "dark"))


def test_features_in_the_plane():
    result = EmbeddingResult(
        model="m", dataset="d", n_samples=4, points=((0, 1), (2, 3), (4, 5), (6, 7)), labels=(1, 0, 1, 9)
    )
    figure = kdep.embedding(result, ["cat", "dog"], "light")
    assert [(trace.name, list(trace.x)) for trace in figure.data] == [("cat", [2]), ("dog", [0, 4]), ("9", [6])]
    looks = {(trace.marker.color, trace.marker.symbol) for trace in figure.data}
    assert len(looks) == 3


def test_a_forest_of_intervals():
    lines = [forest.Line("kl", 0.02, 0.01, 0.04, control=0.03), forest.Line("x" * 60, -0.01, -0.02, 0.0)]
    drawn, control = forest.forest(lines, "Δ", "light").data
    assert list(drawn.x) == [2, -1]
    assert list(drawn.error_x.array) == pytest.approx([2, 1])
    assert list(drawn.error_x.arrayminus) == pytest.approx([1, 1])
    assert list(control.x) == [3, None]
    figure = forest.forest(lines[1:], "Δ", "light")
    assert len(figure.data) == 1
    assert len(figure.layout.yaxis.ticktext[0]) == 44
    assert "No transfer" in note(forest.forest([], "Δ", "dark"))


def test_differences_between_methods():
    one = MethodDifference(
        label="kl_dp",
        baseline="kl",
        n_pairs=4,
        success_rate_difference=0.5,
        success_rate_difference_low=0.25,
        success_rate_difference_high=1.0,
        mean_delta_difference=0.01,
        mean_delta_difference_low=-0.01,
        mean_delta_difference_high=0.02,
    )
    for scheme in SCHEMES:
        rates = forest.differences([one], "success_rate", scheme)
        deltas = forest.differences([one], "mean_delta", scheme)
        assert (list(rates.data[0].x), list(deltas.data[0].x)) == ([50], [1])
        assert list(rates.layout.yaxis.ticktext) == ["kl_dp − kl"]
