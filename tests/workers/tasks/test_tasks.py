"""Every kind of job has a task, and every task a kind."""

import importlib.util

import pytest

from backend.domain.specs import SPECS
from workers.tasks import TASKS, TORCH_FREE, load


def test_the_kinds_are_those_of_the_specs():
    assert set(TASKS) == set(SPECS)
    assert set(TASKS) >= TORCH_FREE


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_every_module_is_there(kind):
    module, _, name = TASKS[kind].partition(":")
    assert importlib.util.find_spec(module) is not None
    assert name == "run"
    assert callable(load(kind))


@pytest.mark.parametrize("kind", sorted(TORCH_FREE))
def test_torch_free_kinds_import_no_torch(kind):
    import subprocess
    import sys

    code = f"import sys; from workers.tasks import load; load({kind!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
