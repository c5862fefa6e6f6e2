"""The browser and the service that its tests share; skipped with the reason where one of them cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.browsing import ARGUMENTS, STUDY, Service, Watch, chromium, running

PATIENCE_MS = 60_000


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    if path is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def zoo_service(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`zoograft up` on three small models trained on digits, scanned, with a finished study of transfers."""
    pytest.importorskip("timm", reason="the workers' packages are not installed")
    # Somebody who runs these tests often may name a folder that keeps the zoo.
    kept = os.environ.get("ZOOGRAFT_TEST_ZOO_DIR")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("zoo-service")
    folder.mkdir(parents=True, exist_ok=True)
    with running(folder) as service:
        study = service.only_study() or service.submit("study", STUDY)
        job = service.wait(study)
        assert job["state"] == "succeeded", job
        service.study_id = study  # type: ignore[attr-defined]
        yield service


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def page(browser: Any, zoo_service: Service, scheme: str) -> Iterator[Any]:
    """A page of the service in one theme; whatever it complains about fails the test."""
    yield from _opened(browser, zoo_service, scheme)


@pytest.fixture
def light_page(browser: Any, zoo_service: Service) -> Iterator[Any]:
    """The same in the light theme only, for what has no look."""
    yield from _opened(browser, zoo_service, "light")


def _opened(browser: Any, service: Service, scheme: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme, base_url=service.url)
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    opened.watch = watch = Watch(opened, service.url)
    yield opened
    context.close()
    assert watch.complaints == []
