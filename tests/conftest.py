"""What every test shares: one thread per process, and the way to the shared real data."""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run, and no deadline: a busy machine is not a failure.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

pytest_plugins = ["tests.fixtures_services"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images, predictions and weights; tests that need it skip where it is missing."""
    folder = os.environ.get("ZOOGRAFT_SHARED_DATA")
    if not folder:
        pytest.skip("ZOOGRAFT_SHARED_DATA is not set")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.skip(f"ZOOGRAFT_SHARED_DATA={folder} is not a folder")
    return path


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Oversubscribed threads are fifty times slower; only where torch is installed."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
