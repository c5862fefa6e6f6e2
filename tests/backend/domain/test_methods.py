"""Methods are named, bounded and explained: a wrong setting says which, and what would be right."""

import json

import pytest
from pydantic import TypeAdapter

from backend.domain.errors import BadInput
from backend.domain.methods import METHODS, MethodParams, TrainingParams, check_teachers, parse_method, parse_params

NAMES = ["ce", "self_kl", "label_smoothing", "kl", "xe_kl", "mcl", "kl_dp", "topk_kl", "soft_ce", "cd", "crd"]


def test_the_methods_are_those_of_the_specification():
    assert list(METHODS) == NAMES
    assert [METHODS[name]().method for name in NAMES] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_paper_defaults(name):
    params = parse_method(name, {})
    assert (params.optimizer, params.momentum, params.weight_decay) == ("sgd", 0.9, 1e-3)
    assert (params.epochs, params.schedule, params.augment) == (20, "constant", "paper")
    assert params.lr == (1e-2 if name == "mcl" else 1e-4)
    assert getattr(params, "temperature", 1.0) == 1.0


def test_defaults_of_single_methods():
    mcl, kl_dp = METHODS["mcl"](), METHODS["kl_dp"]()
    assert (mcl.tau, mcl.interval, mcl.kd_weight) == (0.9999, 2, 0.7)
    assert (kl_dp.partition, kl_dp.multi, kl_dp.kd_weight) == ("supervised", "sequential", 1.0)
    assert METHODS["xe_kl"]().kd_weight == 0.5
    assert METHODS["label_smoothing"]().smoothing == 0.1
    assert METHODS["topk_kl"]().k == 10
    assert METHODS["cd"]().kd_weight == 0.5
    crd = METHODS["crd"]()
    assert (crd.feature_dim, crd.bank_momentum, crd.nce_temperature) == (128, 0.5, 0.07)


@pytest.mark.parametrize("name", NAMES)
def test_stored_and_read_back_unchanged(name):
    params = parse_method(name, {"epochs": 3, "lr": 1})
    stored = json.loads(params.model_dump_json())
    assert TypeAdapter(MethodParams).validate_python(stored) == params
    assert parse_method(name, stored) == params


@pytest.mark.parametrize(
    "field, value",
    [
        ("lr", -1),
        ("lr", 0),
        ("lr", 101),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", "1e-3"),
        ("lr", True),
        ("epochs", 0),
        ("epochs", 10_001),
        ("epochs", 2.5),
        ("epochs", True),
        ("epochs", "3"),
        ("epochs", None),
        ("batch_size", 65_537),
        ("momentum", 1.0),
        ("weight_decay", -1e-9),
        ("seed", -1),
        ("views", 0),
        ("amp", 1),
        ("optimizer", "lion"),
        ("augment", "mixup"),
        ("schedule", ["cosine"]),
        ("partition", "semi"),
        ("multi", {"a": 1}),
        ("temperature", 0),
        ("kd_weight", 1.01),
        ("steps", 10**9),
        ("grad_clip", 0),
    ],
)
def test_a_value_that_cannot_be_used_is_named(field, value):
    with pytest.raises(BadInput) as caught:
        parse_method("kl_dp", {field: value})
    assert caught.value.field == field
    assert "default" in caught.value.expected
    assert any(word in caught.value.expected for word in ("number", "one of", "true or false"))


def test_the_bounds_are_told():
    with pytest.raises(BadInput, match=r"lr: -1 is not valid; a number > 0 and ≤ 100 \(default 0.01\)"):
        parse_method("mcl", {"lr": -1})
    with pytest.raises(BadInput, match="one of: supervised, unsupervised"):
        parse_method("kl_dp", {"partition": "semi"})


def test_an_unknown_parameter_lists_those_there_are():
    with pytest.raises(BadInput, match=r"temprature: 4 .*parameters are: epochs, .*; did you mean temperature\?"):
        parse_method("kl", {"temprature": 4})
    with pytest.raises(BadInput, match="partition"):
        parse_method("kl", {"partition": "supervised"})


def test_an_unknown_method_lists_those_there_are():
    with pytest.raises(BadInput, match=r"one of: ce, self_kl, .*crd; did you mean kl_dp\?"):
        parse_method("kldp", {})
    with pytest.raises(BadInput, match="one of"):
        parse_method(None, {})
    with pytest.raises(BadInput, match="method"):
        parse_method("kl", {"method": "kl_dp"})


def test_probing_longer_than_training_is_refused():
    with pytest.raises(BadInput, match="probe_epochs: 3 is not valid; at most epochs"):
        parse_method("cd", {"probe_epochs": 3, "epochs": 2})


def test_params_of_any_training_are_checked_alike():
    assert parse_params(TrainingParams, {"lr": 2}).lr == 2
    with pytest.raises(BadInput, match="epochs"):
        parse_params(TrainingParams, {"epochs": -3})


def test_teachers_are_counted():
    check_teachers(METHODS["kl"](), ["a", "b"])
    check_teachers(METHODS["ce"](), [])
    with pytest.raises(BadInput, match="takes no teacher"):
        check_teachers(METHODS["ce"](), ["a"])
    with pytest.raises(BadInput, match="takes exactly 1 teacher"):
        check_teachers(METHODS["crd"](), ["a", "b"])
    with pytest.raises(BadInput, match="takes 1 teacher or more"):
        check_teachers(METHODS["kl_dp"](), [])


def test_which_settings_need_labels():
    assert METHODS["kl_dp"]().labels_needed
    assert not parse_method("kl_dp", {"partition": "unsupervised"}).labels_needed
    assert parse_method("kl_dp", {"partition": "unsupervised", "kd_weight": 0.9}).labels_needed
    assert [name for name in NAMES if not METHODS[name]().labels_needed] == ["self_kl", "kl", "topk_kl", "soft_ce"]
    assert parse_method("soft_ce", {"kd_weight": 0.5}).labels_needed
