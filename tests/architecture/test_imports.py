"""Who may import whom, and that each rule would be noticed if it were broken."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Contract → (module that sins, the import it plants).
VIOLATIONS = {
    "The domain knows nobody": ("backend/domain/flips.py", "import sqlalchemy"),
    "API and CLI stand on submission, that on the queue, that on the store": (
        "backend/store/jobs.py",
        "import backend.submission",
    ),
    "The backend never imports the workers": ("backend/api/app.py", "import workers.lifecycle"),
    "Only the CLI imports the dashboard": ("backend/api/app.py", "import dashboard.app"),
    "No torch in backend and dashboard": ("backend/submission.py", "import torch"),
    "Science is pure: no queue, no database, no HTTP, no settings": (
        "workers/science/training.py",
        "import backend.settings",
    ),
    "The supervisor knows no model": ("workers/supervisor.py", "import timm"),
    "Tasks speak to the store, never to HTTP or the command line": (
        "workers/tasks/sleep.py",
        "import backend.submission",
    ),
    "In the dashboard only reads touches the store's queries, only actions submits": (
        "dashboard/pages/pairs.py",
        "import backend.submission",
    ),
    "Only session, tables and the store use SQL": ("backend/api/app.py", "import sqlalchemy"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for name in ("backend", "dashboard", "workers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder / "pyproject.toml")
    return folder


@pytest.mark.slow
def test_every_contract_is_kept(copy):
    result = lint(copy)
    assert result.returncode == 0, result.stdout
    for contract in VIOLATIONS:
        assert f"{contract} KEPT" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("contract", VIOLATIONS)
def test_a_planted_violation_breaks_its_contract(copy, contract):
    path, line = VIOLATIONS[contract]
    module = copy / path
    original = module.read_text()
    module.write_text(f"{original}\n{line}\n")
    try:
        result = lint(copy)
    finally:
        module.write_text(original)
    assert result.returncode == 1
    assert f"{contract} BROKEN" in result.stdout


def test_web_process_loads_no_torch():
    """Importing the API and the dashboard must not load what only workers have."""
    code = (
        "import sys, backend.api.app, backend.cli.main, dashboard.app, workers.supervisor, workers.app\n"
        "heavy = {'torch', 'timm', 'torchvision', 'sklearn', 'peft'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {sorted(heavy)}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
