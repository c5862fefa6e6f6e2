"""A study file becomes the right jobs; its rows become the right rates, differences and controls."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from backend.domain.errors import BadInput
from backend.domain.specs import FinetuneSpec, TransferSpec
from backend.domain.studies import StudySpec, named_pairs, plan_study, variants


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
    keys = [child.key for child in plan_study(spec(methods=["kl", "mcl"])) if child.key.startswith("control")]
    assert {key.split(" | ")[0] for key in keys} == {"control lr=0.0001", "control lr=0.01"}


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
    [
        {"models": ["a", "a"]},
        {"models": []},
        {"methods": [], "scan": False},
        {"seeds": []},
        {"nonsense": 1},
        {"models": ["a b"]},
    ],
)
def test_a_wrong_file_is_refused(changes):
    with pytest.raises(ValidationError):
        spec(**changes)


def test_a_zoo_entry_has_its_own_training_data():
    zoo = [
        {
            "name": "x",
            "architecture": "test_resnet",
            "train": {"epochs": 1},
            "train_split": "a",
            "subset": {"share": 0.5},
        },
        {"name": "y", "architecture": "test_vit", "train": {"epochs": 1}},
    ]
    study = spec(models=[], zoo=zoo, zoo_train_split="b", train_split="c", zoo_subset={"limit": 7})
    trained = {child.spec.save_as: child.spec for child in plan_study(study) if isinstance(child.spec, FinetuneSpec)}
    assert (trained["x"].train_split, trained["x"].subset.share, trained["x"].subset.limit) == ("a", 0.5, None)
    assert (trained["y"].train_split, trained["y"].subset.limit) == ("b", 7)
    assert {one.train_split for one in transfers(study)} == {"c"}
    again = StudySpec.model_validate(study.model_dump(mode="json"))
    assert again == study


@pytest.mark.parametrize("own", [{"train_split": "a"}, {"subset": {"share": 0.5}}], ids=["train_split", "subset"])
def test_training_data_of_a_model_that_is_not_trained_is_refused(own):
    with pytest.raises(ValidationError, match="x is not trained by the study"):
        spec(models=[], zoo=[{"name": "x", "architecture": "test_resnet", **own}])


@pytest.mark.parametrize("subset", [{"share": 2.0}, {"limit": 0}, {"part": 1}, "half"])
def test_training_data_of_a_zoo_entry_is_checked(subset):
    with pytest.raises(ValidationError, match="subset"):
        spec(models=[], zoo=[{"name": "x", "architecture": "test_resnet", "train": {}, "subset": subset}])


SETS = {
    "pairs": {"teachers": ["a", "b", "c"], "students": ["d"]},
    "teacher_sets": [{"teachers": ["a", "b", "c"], "student": "d"}],
    "models": ["a", "b", "c", "d"],
}


def test_one_teacher_is_asked_once_however_several_would_be_used():
    multi = [{"method": "kl_dp", "multi": "sequential", "teacher_order": order} for order in ("ascending", "random")]
    planned = {
        child.key: child.spec
        for child in plan_study(spec(methods=[*multi, {"method": "kl_dp", "multi": "parallel"}, "mcl"], **SETS))
        if isinstance(child.spec, TransferSpec) and child.spec.teachers
    }
    labels = [key.split(" | ")[0] for key in planned]
    assert sorted(labels) == sorted(
        ["kl_dp", "mcl"] * 3 + ["kl_dp sequential ascending ×3", "kl_dp sequential random ×3", "kl_dp parallel ×3"]
    )
    assert planned["kl_dp sequential random ×3 | a+b+c > d | seed 0"].method.teacher_order == "random"


def test_the_control_of_several_teachers_in_turn_has_as_many_steps():
    planned = transfers(spec(methods=["kl_dp", {"method": "kl_dp", "multi": "soup"}], settings={"epochs": 2}, **SETS))
    assert sorted(one.method.epochs for one in planned if not one.teachers) == [2, 6]


def test_sets_of_teachers_need_a_method_for_them():
    with pytest.raises(BadInput, match="kl_dp"):
        plan_study(spec(methods=["mcl", "ce"], **SETS))


def test_a_study_of_pairs_alone_scans_and_transfers_nothing():
    study = spec(methods=[], scan=True, pairs={"random": 4, "seed": 1})
    assert [child.kind for child in plan_study(study)] == ["scan"]
    assert len(set(named_pairs(study))) == 4
    with pytest.raises(ValidationError, match="teacher_sets: name a method"):
        spec(methods=[], scan=True, teacher_sets=[{"teachers": ["a", "b"], "student": "c"}])
    with pytest.raises(BadInput, match="lr"):
        plan_study(spec(methods=[], scan=True, settings={"lr": 0.1}))
    with pytest.raises(BadInput, match="6 ordered pairs"):
        plan_study(spec(methods=[], scan=True, pairs={"random": 7}))


def test_pairs_have_their_models_names_in_the_catalog():
    zoo = [{"name": name, "architecture": "test_resnet", "train": {"epochs": 1}} for name in "xy"]
    study = spec(models=["a"], zoo=zoo, zoo_seeds=True, seeds=[3, 4], pairs=[["a", "x"], ["x", "y"]])
    assert named_pairs(study) == [("a", "x-s3"), ("x-s3", "y-s3"), ("a", "x-s4"), ("x-s4", "y-s4")]


def test_a_zoo_entry_learns_another_domain_or_its_head_alone():
    zoo = [
        {"name": "x", "architecture": "test_resnet", "train": {}, "dataset": "other", "tune": "head"},
        {"name": "y", "architecture": "test_vit", "train": {}},
    ]
    study = spec(models=[], zoo=zoo, zoo_train_split="b", split="val")
    trained = {child.spec.save_as: child.spec for child in plan_study(study) if isinstance(child.spec, FinetuneSpec)}
    assert (trained["x"].dataset, trained["x"].train_split, trained["x"].split, trained["x"].tune) == (
        "other",
        None,
        None,
        "head",
    )
    assert (trained["y"].dataset, trained["y"].train_split, trained["y"].split, trained["y"].tune) == (
        "d",
        "b",
        "val",
        "all",
    )
    with pytest.raises(ValidationError, match="tune: x is not trained"):
        spec(models=[], zoo=[{"name": "x", "architecture": "test_resnet", "tune": "head"}])


def test_random_pairs_are_the_same_for_the_same_seed():
    def drawn(seed: int) -> list[Any]:
        return [
            (one.teachers, one.student) for one in transfers(spec(pairs={"random": 4, "seed": seed}, methods=["kl"]))
        ]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
