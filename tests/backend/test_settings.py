"""Guards: each off-switch is known by name, is looked at somewhere, and has a run that must fail without it."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from backend.settings import GUARDS, Settings
from benchmarks.chaos import mutants

ROOT = Path(__file__).parents[2]
LOOKS = re.compile(r"""(?:\.guard\(|guarded\(connection, )"(\w+)"|"(\w+)" in disabled""")


def test_a_guard_that_is_not_there_cannot_be_switched_off(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"unknown guards \['fense'\]"):
        Settings(data_dir=tmp_path, disabled_guards="fense,stall")
    assert not Settings(data_dir=tmp_path, disabled_guards=" fence , stall").guard("stall")


def test_every_guard_is_looked_at_and_every_look_is_at_a_guard() -> None:
    texts = [path.read_text() for folder in ("backend", "workers") for path in (ROOT / folder).rglob("*.py")]
    looked = {one or other for text in texts for one, other in LOOKS.findall(text)}
    assert looked == GUARDS.keys()


def test_every_guard_has_a_run_that_must_fail_without_it() -> None:
    runs = mutants(0)
    assert all(run.fails for run in runs)
    without = [run.arguments[run.arguments.index("--without") + 1] for run in runs]
    assert sorted(without) == sorted(GUARDS)
    for run in runs:
        assert (ROOT / "tests" / "reliability" / f"{run.script}.py").exists()
