"""House rules that a machine can see: the environment's one reader, no machine details, no addresses in the lock."""

import re
import subprocess
from pathlib import Path

import pytest

from backend.domain.methods import METHODS
from backend.domain.specs import SPECS
from workers.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module", autouse=True)
def _needs_a_checkout():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")


def test_every_job_kind_has_a_task():
    assert set(TASKS) == set(SPECS)


def test_every_method_has_an_objective():
    from workers.science.transfer import OBJECTIVES

    assert set(OBJECTIVES) == set(METHODS)


def test_only_settings_reads_the_environment():
    readers = [
        path.relative_to(ROOT).as_posix()
        for path in tracked("backend/*.py", "workers/*.py", "dashboard/*.py")
        if re.search(r"os\.environ|os\.getenv", path.read_text())
    ]
    assert readers == ["backend/settings.py"]


def test_the_lock_file_pins_versions_and_names_no_address():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert len(lines) > 100
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", line), line


def test_no_room_without_a_noun():
    names = {path.stem for path in tracked("*.py")}
    assert not names & {"utils", "helpers", "common", "misc"}


def test_no_large_files():
    # One file by its nature: the part of plotly.js that the pages draw with.
    bundle = ROOT / "dashboard/vendor/plotly-cartesian.min.js"
    assert [path for path in tracked() if path.stat().st_size > 1_000_000] == [bundle]
    assert bundle.stat().st_size < 2_000_000
