"""KDEP studies: the plan of a file, and what the rows of its jobs say."""

import pytest

from backend.domain.errors import BadInput
from backend.domain.kdep import KdepSpec
from backend.domain.kdep_studies import (
    KdepStudySpec,
    kdep_row,
    kdep_variants,
    method_labels,
    plan_kdep_study,
    summarise_kdep,
)

FILE = {
    "name": "small",
    "student": {"name": "tiny", "architecture": "test_resnet"},
    "models": [{"name": "big", "architecture": "resnet18"}],
    "datasets": [{"name": "digits", "source": "digits"}],
    "teachers": ["big"],
    "dataset": "digits",
    "settings": {"epochs": 2, "lr": 0.1},
    "methods": [
        {"label": "SVD+PTS"},
        {"label": "1x1 conv", "align": "conv_before_relu"},
        {"label": "supervised", "method": "supervised"},
        {"label": "random", "method": "none"},
    ],
    "shares": [0.1, 1.0],
    "seeds": [0, 1, 2],
    "downstream": ["digits"],
}


def _spec(**change: object) -> KdepStudySpec:
    return KdepStudySpec.model_validate({**FILE, **change})


def test_the_plan_has_every_method_share_and_seed_behind_what_it_needs() -> None:
    jobs = plan_kdep_study(_spec())
    registered = [job.key for job in jobs if job.kind == "register"]
    assert registered == ["dataset/digits", "model/big", "student/0", "student/1", "student/2"]
    trained = [job for job in jobs if job.kind == "kdep"]
    assert len(trained) == len({job.key for job in trained}) == 4 * 2 * 3
    assert all(job.after == tuple(registered) for job in trained)
    specs = {job.key: job.spec for job in trained}
    one = specs["SVD+PTS | big | 0.1 | seed 2"]
    assert isinstance(one, KdepSpec)
    assert (one.teacher, one.student, one.params.seed, one.params.epochs, one.subset.share) == (
        "big",
        "tiny-s2",
        2,
        2,
        0.1,
    )
    assert one.params.transform == "pts"
    assert specs["1x1 conv | big | 1 | seed 0"].params.transform == "none"
    assert specs["random | alone | 1 | seed 0"].teacher is None
    assert jobs[2].spec.model.init_seed == 0 != jobs[4].spec.model.init_seed


def test_a_grid_multiplies_the_methods_that_leave_it_open() -> None:
    methods = [{"label": "a"}, {"label": "b", "pts_exponent": 5}]
    found = kdep_variants(_spec(methods=methods, grid={"pts_exponent": [2, 3], "epochs": [9, 18]}))
    assert len(found) == 4 + 2
    assert found["a pts_exponent=2 epochs=18"].pts_exponent == 2
    assert found["b epochs=9"].pts_exponent == 5
    labels = method_labels(_spec(methods=methods, grid={"pts_exponent": [2, 3], "epochs": [9, 18]}))
    assert labels.keys() == found.keys()
    assert (labels["a pts_exponent=2 epochs=18"], labels["b epochs=9"]) == ("a", "b")


def test_a_grid_does_not_multiply_what_it_does_not_matter_to() -> None:
    methods = [
        {"label": "svd"}, {"label": "sn", "transform": "sn"}, {"label": "conv", "align": "conv_after_relu"},
        {"label": "kd", "method": "logits"}, {"label": "ce", "method": "supervised"}, {"label": "none", "method": "none"},
    ]  # fmt: skip
    grid = {"pts_exponent": [2, 3], "epochs": [9, 18], "kd_temperature": [1, 4]}
    labels = method_labels(_spec(methods=methods, grid=grid))
    counts = {label: list(labels.values()).count(label) for label in labels.values()}
    assert counts == {"svd": 4, "sn": 2, "conv": 2, "kd": 4, "ce": 2, "none": 1}
    assert kdep_variants(_spec(methods=methods, grid=grid)).keys() == labels.keys()
    both = method_labels(
        _spec(methods=[{"label": "all"}], grid={"method": ["features", "none"], "pts_exponent": [2, 3]})
    )
    assert len(both) == 4, "where the method itself is varied, nothing is left out"
    with pytest.raises(BadInput, match="typo"):
        plan_kdep_study(_spec(grid={"typo": [1]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": []}, "needs a teacher"),
        ({"methods": [{"label": "a", "align": "svg"}]}, "methods.a.align"),
        ({"settings": {"typo": 1}}, "typo"),
        ({"grid": {"lr": [0.1, -1]}}, "lr"),
    ],
)
def test_what_cannot_be_planned_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan_kdep_study(_spec(**change))


@pytest.mark.parametrize(
    "change", [{"methods": [{"label": "a"}, {"label": "a"}]}, {"methods": [{}]}, {"seeds": [1, 1]}, {"downstream": []}]
)
def test_a_bad_file_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"label|twice|at least 1"):
        _spec(**change)


def _row(label: str, teacher: str | None, seed: int, *scores: float, share: float | None = None):
    method = "features" if teacher else "none"
    spec = {"params": {"seed": seed, "epochs": 2, "method": method}, "subset": {"share": share}}
    sets = [{"dataset": f"d{i}", "lr": 0.1, "test": {"mean": score}} for i, score in enumerate(scores)]
    downstream = {"average": {"mean": sum(scores) / len(scores)}, "sets": sets}
    return kdep_row(
        "job", label, spec, {"teacher": teacher, "n_samples": 9, "downstream": downstream, "alignments": []}
    )


def test_the_table_pairs_by_seed_and_teacher() -> None:
    rows = [_row("kdep", "big", s, 0.6 + s / 100, 0.8) for s in range(3)]
    rows += [_row("random", None, s, 0.5 + s / 50, 0.7) for s in range(3)]
    table = summarise_kdep(rows, n_failed=1)
    assert [(one.label, one.teacher) for one in table.summaries] == [("kdep", "big"), ("random", None)]
    assert table.summaries[0].average.values == pytest.approx((0.7, 0.705, 0.71))
    assert table.summaries[0].sets["d1"].mean == pytest.approx(0.8)
    (difference,) = table.differences
    assert (difference.label, difference.baseline, difference.teacher) == ("kdep", "random", "big")
    assert difference.difference.values == pytest.approx((0.1, 0.095, 0.09))
    assert difference.difference.low < 0.095 < difference.difference.high
    assert table.n_failed == 1
    assert summarise_kdep([]).rows == ()


def test_shares_are_compared_each_for_itself() -> None:
    rows = [_row("kdep", "big", s, 0.6 + share / 10 + s / 100, share=share) for share in (0.1, 1.0) for s in range(3)]
    rows += [_row("random", None, s, 0.5, share=share) for share in (0.1, 1.0) for s in range(3)]
    table = summarise_kdep(rows)
    assert [(one.share, len(one.difference.values)) for one in table.differences] == [(0.1, 3), (1.0, 3)]
    assert [one.difference.mean for one in table.differences] == pytest.approx([0.12, 0.21])
    seen = {(one.label, one.share): one.images_seen for one in table.summaries}
    assert (seen["kdep", 0.1], seen["random", 0.1]) == (18, 0), "9 images in 2 epochs, or none"
