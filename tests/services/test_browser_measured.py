"""What jobs measured, in a real browser: an information plane is drawn and leads to a model, experts and neurons show
themselves, a teacher is chosen; at every width in both themes without overlaps, and nothing serious for axe."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.services.browsing import Service, until
from tests.services.test_browser_layout import AXE, WIDTHS, settle, wrong_at

pytestmark = [pytest.mark.browser, pytest.mark.slow]
COMMON = {"dataset": "digits", "split": "val", "subset": {"limit": 40}}
CRITICALITY = {"images": 6, "candidates": 6, "top_neurons": 2, "top_images": 3, "pictures": 1, "picture_steps": 2}
INFORMATION = {"updates": 4, "batch_size": 8, "images": 30, "heldout_images": 8}
REMEM = {
    "settings": "baseline,sam",
    "steps": 3,
    "stop_points": "2,3",
    "warmup_steps": 1,
    "batch_size": 32,
    "augment": "none",
    "student_steps": 3,
    "student_warmup_steps": 1,
    "student_batch_size": 32,
    "student_augment": "none",
    **{f"information_{name}": value for name, value in INFORMATION.items()},
}


def newest(service: Service, kind: str) -> str:
    found = httpx.get(f"{service.url}/api/v1/jobs", params={"kind": kind, "limit": 1}, timeout=60).json()
    return found["items"][0]["id"]


@pytest.fixture(scope="module")
def measured(zoo_service: Service) -> Service:
    """The service once its models have been measured in every way."""
    asked = {
        "information": (["tiny-vit", "tiny-resnet"], INFORMATION),
        "expertness": (["tiny-vit"], {"images": 40}),
        "criticality": (["tiny-vit"], CRITICALITY),
        "compactness": (["tiny-vit", "tiny-resnet"], {}),
        "logme": (["tiny-vit", "tiny-resnet"], {}),
        "embedding": (["tiny-resnet"], {"images": 40}),
    }
    jobs = [
        zoo_service.submit("analysis", {"analysis": name, "models": models, "params": params, **COMMON})
        for name, (models, params) in asked.items()
    ]
    subset = {"limit": 80}
    remem = {"model": "tiny-vit", "student": "tiny-resnet", "dataset": "digits", "subset": subset, "params": REMEM}
    jobs.append(zoo_service.submit("remem", {**remem, "train_split": "train", "split": "val"}))
    kdep = {"teacher": "tiny-vit", "student": "tiny-resnet", "dataset": "digits", "subset": subset}
    params = {"epochs": 1, "batch_size": 32, "augment": "none", "lr": 0.01}
    jobs.append(zoo_service.submit("kdep", {**kdep, "train_split": "train", "params": params}))
    for id in jobs:
        job = zoo_service.wait(id)
        assert job["state"] == "succeeded", job["message"]
    return zoo_service


def test_draw_an_information_plane(page, measured):
    page.goto("/")
    page.get_by_role("link", name="Information").click()
    page.wait_for_selector("#plane-points .scatterlayer .point")
    assert (
        "ReMem: tiny-vit → tiny-resnet on digits" in page.get_by_role("textbox", name="What to look at").input_value()
    )
    page.wait_for_selector("#plane-settings .barlayer .point")
    page.wait_for_selector("#plane-sweep-rho .scatterlayer .point")

    page.get_by_role("textbox", name="What to look at").click()
    page.get_by_role("option", name="Zoo: 1 model on digits").first.click()
    until(page, "location.search.includes('of=zoo-')")
    page.get_by_text("What makes them comparable").wait_for()
    name = page.locator("#plane-body .plain-table a").first.inner_text()
    page.locator("#plane-points .scatterlayer .point").first.click(force=True)
    page.wait_for_url(f"**/zoo/{name}")


def test_experts_and_neurons(light_page, measured):
    light_page.goto("/expertness")
    light_page.wait_for_selector("#expertness-blocks .scatterlayer .point")
    light_page.wait_for_selector("#expertness-sizes .boxlayer .box")
    light_page.get_by_role("link", name="Neurons").click()
    light_page.wait_for_selector("#neurons-ranking .barlayer .point")
    until(
        light_page,
        "document.querySelectorAll('.sample img').length >= 4 && "
        "[...document.querySelectorAll('.sample img')].every(i => i.complete && i.naturalWidth > 0)",
    )
    first = light_page.locator("#neurons-body h2", has_text="of tiny-vit").inner_text()
    light_page.get_by_role("textbox", name="Block").click()
    light_page.locator("[role=option]:not([aria-selected=true])").last.click()
    until(light_page, "location.search.includes('block=')")
    until(light_page, f"![...document.querySelectorAll('h2')].some(h => h.textContent === {first!r})")


def test_choose_a_teacher_and_see_a_run(page, measured):
    page.goto("/kdep")
    page.wait_for_selector("#kdep-candidates .scatterlayer .point")
    assert page.locator("#kdep-teachers .plain-table tbody tr").count() == 2
    page.wait_for_selector("#kdep-losses .scatterlayer .trace")
    assert "svd + pts" in page.locator("#kdep-runs").inner_text()
    page.wait_for_selector("#kdep-embedding .scatterlayer .point")


def test_no_text_overlaps_or_is_cut_and_axe_is_content(page, measured):
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text()
    wrong = {}
    jobs = [f"/jobs/{newest(measured, kind)}" for kind in ("remem", "kdep", "analysis")]
    for path in ("/plane", "/expertness", "/neurons", "/kdep", *jobs):
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        page.goto(path)
        settle(page)
        page.wait_for_selector("#job-outcome table, .js-plotly-plot .main-svg")
        for width in WIDTHS:
            if found := wrong_at(page, width):
                wrong[f"{path} at {width}"] = found
        page.evaluate(script)
        if found := page.evaluate(AXE):
            wrong[f"{path} by axe"] = found
    assert wrong == {}
