"""A store with everything in it, and tasks run in this process the way the runner runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.settings import Settings
from backend.store import jobs, migrate
from backend.store.session import Store
from backend.submission import submit

RunTask = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=sqlite_url)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = Store.open(settings.database, settings=settings)
    yield opened
    opened.close()


def begin_job(store: Store, settings: Settings, scratch: Path, kind: str, spec: dict[str, Any]) -> Any:
    """Submit a job and claim it: a `RunningJob` as a task gets it."""
    from backend.domain.specs import parse_spec
    from workers.lifecycle import RunningJob

    record = submit(store, settings, kind, spec).job
    with store.write() as connection:
        claim = jobs.claim(connection, worker="test", host="test", lease_s=600, job_id=record.id)
    assert claim is not None
    folder = scratch / str(record.id)
    folder.mkdir(parents=True)
    return RunningJob(
        id=record.id,
        kind=kind,
        spec=parse_spec(kind, claim.job.spec),
        settings=settings,
        store=store,
        fence=claim.fence,
        attempt=claim.job.attempt,
        device="cpu",
        scratch=folder,
    )


def run_job(store: Store, settings: Settings, scratch: Path, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Run a job to its published result."""
    from workers import tasks

    job = begin_job(store, settings, scratch, kind, spec)
    result = tasks.load(kind)(job)
    job.publish(result)
    return result


@pytest.fixture
def start(store: Store, settings: Settings, tmp_path: Path) -> Callable[..., Any]:
    """Submit and claim on this test's store."""
    return lambda kind, spec: begin_job(store, settings, tmp_path / "scratch", kind, spec)


@pytest.fixture
def run_task(store: Store, settings: Settings, tmp_path: Path) -> RunTask:
    """Run a job on this test's store to its published result."""
    return lambda kind, **spec: run_job(store, settings, tmp_path / "scratch", kind, spec)


SMALL = {"kwargs": {"num_classes": 10}, "input_size": [3, 32, 32], "crop_pct": 1.0}
TRAIN = {"epochs": 2, "lr": 0.05, "augment": "none", "batch_size": 50}


@pytest.fixture(scope="session")
def digits_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with digits and three trained models, a, b and c; made once, to be copied."""
    folder = tmp_path_factory.mktemp("zoo")
    settings = Settings(data_dir=folder / "data", database_url=f"sqlite:///{folder / 'zoo.db'}")
    migrate.upgrade(settings.database)
    made = Store.open(settings.database, settings=settings)

    def run(kind: str, **spec: Any) -> None:
        run_job(made, settings, folder / "scratch", kind, spec)

    run("register", dataset={"name": "digits", "source": "digits"})
    for name, architecture, seed in (("a", "test_efficientnet", 1), ("b", "test_resnet", 2), ("c", "test_convnext", 3)):
        run("register", model={"name": f"{name}-init", "architecture": architecture, "init_seed": seed, **SMALL})
        run("finetune", model=f"{name}-init", dataset="digits", params=TRAIN, save_as=name)
    made.close()
    return folder / "zoo.db"
