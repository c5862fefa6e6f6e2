"""The form says the same thing three times: as a job, as a command, as a request."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from backend.domain.errors import BadInput
from backend.domain.methods import METHODS
from backend.domain.specs import parse_spec
from dashboard.components import transfer_form as form
from tests.dashboard.figures.test_flips import a_pair


def spec_of(method="kl_dp", **given):
    return form.specification(a_pair("teacher-1", "student 2"), method, given, "train", 100, "cpu", False)


@pytest.mark.parametrize("method", form.SHOWN)
def test_every_method_has_a_field_for_each_parameter(method):
    ids = []

    def walk(component):
        children = getattr(component, "children", None)
        id = getattr(component, "id", None)
        if isinstance(id, dict):
            ids.append(id["field"])
        for child in children if isinstance(children, list) else [children]:
            if child is not None and not isinstance(child, str):
                walk(child)

    for one in form.fields(method):
        walk(one)
    assert sorted(ids) == sorted(set(METHODS[method].model_fields) - {"method", *form.SINGLE})


def test_what_is_the_default_is_not_repeated():
    names = ["epochs", "lr", "amp", "views", "partition", "unknown"]
    values = [20, 0.01, "false", "", "unsupervised", 3]
    assert form.changed("kl_dp", names, values) == {"lr": 0.01, "partition": "unsupervised"}
    assert form.changed("kl_dp", ["amp", "views", "lr"], ["true", 4, 1]) == {"amp": True, "views": 4, "lr": 1.0}


@pytest.mark.parametrize("name, value", [("epochs", 0), ("lr", -1), ("epochs", ""), ("temperature", 0)])
def test_a_value_out_of_range_names_the_field(name, value):
    with pytest.raises(BadInput, match=name):
        form.changed("kl_dp", [name], [value])


def test_the_command_is_the_same_job(monkeypatch):
    from backend.cli import transfers
    from backend.cli.main import app

    asked = {}
    monkeypatch.setattr(transfers, "run_job", lambda kind, spec, **_: asked.update(kind=kind, spec=spec))
    spec = spec_of(lr=0.01, partition="unsupervised", amp=True)
    spec["student"] = "student_2"
    words = shlex.split(form.as_command(spec))
    assert words[0] == "zoograft"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    given = {name: value for name, value in asked["spec"].items() if value is not None}
    assert parse_spec("transfer", given) == parse_spec("transfer", spec)


def test_the_request_is_the_same_job():
    spec = spec_of(lr=0.01)
    spec["student"] = "student_2"
    words = shlex.split(form.as_curl(spec, "http://localhost:8080", token=True))
    body = json.loads(words[words.index("-d") + 1])
    assert body["kind"] == "transfer"
    assert parse_spec("transfer", body["spec"]) == parse_spec("transfer", spec)
    assert "Authorization: Bearer $ZOOGRAFT_TOKEN" in words


def test_steps_are_what_the_training_will_take():
    assert form.n_steps(spec_of(epochs=3, batch_size=64), 900) == (6, 100)
    spec = spec_of(epochs=3, batch_size=64)
    del spec["subset"]
    assert form.n_steps(spec, 900) == (45, 900)
    assert form.n_steps(spec, 1_000_000)[1] == 100_000
    assert form.n_steps({**spec, "method": {"method": "kl", "steps": 7}}, 900)[0] == 7
