"""A store with everything in it, and tasks run in this process the way the runner runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.settings import Settings
from backend.store import jobs
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


@pytest.fixture
def start(store: Store, settings: Settings, tmp_path: Path) -> Callable[..., Any]:
    """Submit a job and claim it: a `RunningJob` as a task gets it."""
    from backend.domain.specs import parse_spec
    from workers.lifecycle import RunningJob

    def begin(kind: str, spec: dict[str, Any]) -> Any:
        record = submit(store, settings, kind, spec).job
        with store.write() as connection:
            claim = jobs.claim(connection, worker="test", host="test", lease_s=600, job_id=record.id)
        assert claim is not None
        scratch = tmp_path / "scratch" / str(record.id)
        scratch.mkdir(parents=True)
        return RunningJob(
            id=record.id,
            kind=kind,
            spec=parse_spec(kind, claim.job.spec),
            settings=settings,
            store=store,
            fence=claim.fence,
            attempt=claim.job.attempt,
            device="cpu",
            scratch=scratch,
        )

    return begin


@pytest.fixture
def run_task(start: Callable[..., Any]) -> RunTask:
    """Run a job to its published result."""
    from workers import tasks

    def run(kind: str, **spec: Any) -> dict[str, Any]:
        job = start(kind, spec)
        result = tasks.load(kind)(job)
        job.publish(result)
        return result

    return run
