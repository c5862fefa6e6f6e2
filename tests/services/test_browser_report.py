"""Reports in a real browser: every figure is drawn in the reader's theme and on paper, and nothing is asked of any host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backend.settings import environment
from tests.services.browsing import Watch
from tests.services.test_browser_layout import AXE, MEASURE, WIDTHS

pytestmark = [pytest.mark.browser, pytest.mark.slow]
GROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(30, 34, 39)"}
DRAWN = """() => [...document.querySelectorAll('.plot')].map(plot => plot.querySelector('.main-svg')?.style.background || '')"""


@pytest.fixture(scope="module", params=["study", "pair"])
def report(request, zoo_service, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("report") / "report.html"
    what = {"study": ["--study", zoo_service.study_id], "pair": ["--pair", "tiny-resnet", "tiny-vit"]}[request.param]
    command = [sys.executable, "-m", "backend.cli.main", "report", *what, "-o", str(output)]
    subprocess.run(command, check=True, env=environment(ZOOGRAFT_DATA_DIR=str(zoo_service.data_dir)))
    return output


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_stands_alone(report, browser, scheme):
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text()
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    watch = Watch(page, report.as_uri())
    page.goto(report.as_uri())
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 0")

    def grounds():
        found = page.evaluate(DRAWN)
        assert len(found) >= 2
        return set(found)

    assert grounds() == {GROUNDS[scheme]}
    wrong = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(600)
        if found := page.evaluate(MEASURE):
            wrong[width] = found
    page.evaluate(script)
    if found := page.evaluate(AXE):
        wrong["axe"] = found
    assert wrong == {}

    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert grounds() == {GROUNDS["light"]}
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert grounds() == {GROUNDS[scheme]}
    assert watch.complaints == []
    context.close()
