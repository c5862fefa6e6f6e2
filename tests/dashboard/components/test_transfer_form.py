"""The form says the same thing three times: as a job, as a command, as a request."""

import json
import shlex
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from backend.domain.errors import BadInput
from backend.domain.jobs import Job
from backend.domain.methods import METHODS
from backend.domain.specs import parse_spec
from dashboard.components import transfer_form as form
from dashboard.components import transfer_request as ask
from tests.dashboard.figures.test_flips import a_pair


def spec_of(method="kl_dp", *, teachers=("teacher-1",), control=False, **given):
    return ask.specification(a_pair("teacher-1", "student_2"), teachers, method, given, "train", 100, "cpu", control)


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
    assert sorted(ids) == sorted(set(METHODS[method].model_fields) - {"method"})


def test_what_is_the_default_is_not_repeated():
    names = ["epochs", "lr", "amp", "views", "partition", "unknown"]
    values = [20, 0.01, "false", "", "unsupervised", 3]
    assert ask.changed("kl_dp", names, values) == {"lr": 0.01, "partition": "unsupervised"}
    assert ask.changed("kl_dp", ["amp", "views", "lr"], ["true", 4, 1]) == {"amp": True, "views": 4, "lr": 1.0}


@pytest.mark.parametrize("name, value", [("epochs", 0), ("lr", -1), ("epochs", ""), ("temperature", 0)])
def test_a_value_out_of_range_names_the_field(name, value):
    with pytest.raises(BadInput, match=name):
        ask.changed("kl_dp", [name], [value])


@pytest.mark.parametrize("teachers, multi", [(("teacher-1",), {}), (("b", "a", "c"), {"multi": "parallel"})])
def test_the_command_is_the_same_job(monkeypatch, teachers, multi):
    from backend.cli import transfers
    from backend.cli.main import app

    asked = {}
    monkeypatch.setattr(transfers, "run_job", lambda kind, spec, **_: asked.update(kind=kind, spec=spec))
    spec = spec_of(teachers=teachers, lr=0.01, partition="unsupervised", amp=True, **multi)
    words = shlex.split(ask.as_command(spec))
    assert words[0] == "zoograft"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    given = {name: value for name, value in asked["spec"].items() if value is not None}
    assert parse_spec("transfer", given) == parse_spec("transfer", spec)


def test_the_request_is_the_same_job():
    spec = spec_of(teachers=("teacher-1", "b"), lr=0.01, teacher_order="random")
    words = shlex.split(ask.as_curl(spec, "http://localhost:8080", token=True))
    body = json.loads(words[words.index("-d") + 1])
    assert body["kind"] == "transfer"
    assert parse_spec("transfer", body["spec"]) == parse_spec("transfer", spec)
    assert "Authorization: Bearer $ZOOGRAFT_TOKEN" in words


def test_steps_are_what_the_training_will_take():
    assert ask.n_steps(spec_of(epochs=3, batch_size=64), 900) == (6, 100)
    spec = spec_of(epochs=3, batch_size=64)
    del spec["subset"]
    assert ask.n_steps(spec, 900) == (45, 900)
    assert ask.n_steps(spec, 1_000_000)[1] == 100_000
    assert ask.n_steps({**spec, "method": {"method": "kl", "steps": 7}}, 900)[0] == 7


def test_several_teachers_where_the_method_takes_them():
    assert spec_of(teachers=("b", "a"), multi="soup")["teachers"] == ["b", "a"]
    # What tells several teachers apart means nothing for one.
    assert "multi" not in spec_of(multi="parallel", lr=0.01)["method"]
    with pytest.raises(BadInput, match="mcl takes exactly 1 teacher"):
        spec_of("mcl", teachers=("a", "b"))
    with pytest.raises(BadInput, match="at least one model"):
        spec_of(teachers=())


@pytest.mark.parametrize(
    "teachers, multi, control, count",
    [
        (("a",), "sequential", False, 1),
        (("a",), "parallel", True, 2),
        (("a", "b", "c"), "sequential", True, 4),
        (("a", "b", "c"), "soup", False, 3),
        (("a", "b", "c"), "parallel", True, 2),
    ],
)
def test_the_cost_counts_every_training(teachers, multi, control, count):
    spec = spec_of(teachers=teachers, multi=multi, control=control, epochs=3, batch_size=64)
    assert ask.trainings(spec) == count
    said = ask.cost(spec, 900, ())
    assert said.startswith("100 samples; 6 steps" + (f" for each of {count} trainings" if count > 1 else ""))
    assert "not known yet" in said


def test_the_time_comes_from_transfers_of_the_same_kind():
    began = datetime(2026, 1, 1, tzinfo=UTC)

    def earlier(teachers, multi, seconds):
        spec = {"teachers": teachers, "method": {"method": "kl_dp", "multi": multi}}
        return Job(
            id=uuid4(),
            kind="transfer",
            state="succeeded",
            spec=spec,
            progress={"step": 100, "total": 100},
            result={},
            created_at=began,
            started_at=began,
            finished_at=began + timedelta(seconds=seconds),
        )

    jobs = [earlier(["a"], "sequential", 50), earlier(["a", "b"], "parallel", 200), earlier(["z"], "sequential", 1)]
    # 3 trainings of 6 steps at 2 steps a second; 1 of 6 at one step in two seconds
    assert "About 9 s, by 1 earlier" in ask.cost(spec_of(teachers=("a", "b"), control=True, epochs=3), 900, jobs)
    at_once = spec_of(teachers=("a", "b"), multi="parallel", epochs=3)
    assert "About 12 s, by 1 earlier" in ask.cost(at_once, 900, jobs)
