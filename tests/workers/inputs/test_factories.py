"""Factories of one's own code are found; everything else is refused before it is imported."""

import sys
from pathlib import Path

import pytest

from backend.domain.errors import BadInput
from workers.inputs.factories import call_factory, find_factory

CODE = """
from torch import nn
def net(num_classes=10, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * width * width, num_classes))
def text(): return "no module"
class Net(nn.Linear):
    def __init__(self): super().__init__(2, 3)
number = 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets_for_test.py").write_text(CODE)
    (tmp_path / "broken_nets_for_test.py").write_text("raise RuntimeError('broken')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_nets_for_test", raising=False)


@pytest.mark.usefixtures("code")
def test_functions_and_classes_of_ones_own() -> None:
    assert call_factory("my_nets_for_test:net", {"num_classes": 7})[1].out_features == 7
    assert call_factory("my_nets_for_test:Net", {}).out_features == 3


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(
    ("path", "kwargs", "told"),
    [
        ("my_nets_for_test:nothing", {}, "no callable 'nothing'"),
        ("my_nets_for_test:number", {}, "no callable 'number'"),
        ("my_nets_for_test:text", {}, "torch module, not str"),
        ("my_nets_for_test:net", {"depth": 3}, "unexpected keyword"),
        ("broken_nets_for_test:net", {}, "RuntimeError: broken"),
        ("no_such_module_here:net", {}, "can be imported from"),
    ],
)
def test_what_does_not_work_is_told(path: str, kwargs: dict, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        call_factory(path, kwargs)


@pytest.mark.parametrize(
    "path",
    [
        "os:system",
        "subprocess:run",
        "builtins:eval",
        "torch:load",
        "torch.hub:load",
        "numpy:load",
        "backend.settings:Settings",
        "workers.inputs.models:build",
        "posix:system",
        "a b:c",
        "../x:y",
        "mod:",
        ":f",
        "m:__init__",
        "m:f.g",
    ],
)
def test_other_code_is_never_reached(path: str) -> None:
    with pytest.raises(BadInput):
        find_factory(path)
