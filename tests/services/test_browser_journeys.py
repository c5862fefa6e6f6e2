"""The journeys of a researcher, walked in a real browser against a running service, in light and in dark."""

from __future__ import annotations

import re

import pytest

from tests.services.browsing import Service, until

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SLOW_MS = 60_000


def says(page, selector: str, text: str) -> None:
    """Wait until an element says something."""
    page.locator(selector, has_text=text).wait_for()


def test_find_a_pair_and_see_its_flipped_images(page, scheme):
    page.goto("/")
    page.wait_for_selector("#zoo-grid .cell-link")
    assert page.evaluate("document.documentElement.dataset.mantineColorScheme") == scheme
    page.get_by_role("link", name="Pairs").click()
    page.wait_for_selector("#pairs-grid .cell-link")
    says(page, "#pairs-count", "6 of 6 pairs")
    page.get_by_label("Student", exact=True).fill("vit")
    says(page, "#pairs-count", "2 of 6 pairs")
    assert "student=vit" in page.url

    # The address is the state: the same link opens the same picture, and back takes the filter away.
    page.reload()
    says(page, "#pairs-count", "2 of 6 pairs")
    assert page.get_by_label("Student", exact=True).input_value() == "vit"

    page.locator("#pairs-grid .cell-link", has_text="tiny-resnet").first.click()
    page.wait_for_url("**/pairs/tiny-resnet/tiny-vit?**")
    page.wait_for_selector(".sample img")
    until(page, "[...document.querySelectorAll('.sample img')].every(i => i.complete && i.naturalWidth > 0)")
    answers = page.locator(".sample").first.locator(".answers li")
    assert answers.count() == 10
    assert re.search(r"\d+\.\d %", answers.first.inner_text())
    label = page.locator(".sample h3").first.inner_text()
    assert page.locator(".sample").first.locator(".answers ol").first.locator("li").first.inner_text().startswith(label)

    page.get_by_text("Only the student right (").click()
    until(page, "location.search.includes('kind=negative')")
    until(
        page,
        """() => { const li = document.querySelector('.sample .answers > div:last-child li');
                   return !li || li.classList.contains('right'); }""",
    )


def test_click_a_point_opens_the_pair(light_page):
    light_page.goto("/pairs")
    light_page.wait_for_selector("#pairs-figure .point")
    light_page.locator("#pairs-figure .point").first.click(force=True)
    light_page.wait_for_url("**/pairs/*/*?on=digits**")
    light_page.wait_for_selector("#pair-classes .bars")


def test_submit_a_transfer_watch_it_finish_and_open_the_student(page):
    page.goto("/pairs/tiny-resnet/tiny-vit?on=digits/val")
    form = page.locator("#tf-fields")
    form.get_by_label("epochs", exact=True).fill("2")
    form.get_by_label("lr", exact=True).fill("0.01")
    says(page, "#tf-preview", "--set epochs=2 --set lr=0.01")
    page.locator("#tf-start").click()
    page.wait_for_url("**/jobs/*")
    page.wait_for_selector("#job-status .state-running", timeout=SLOW_MS)
    page.wait_for_selector("#job-status .state-succeeded", timeout=180_000)
    page.wait_for_selector("#job-loss .scatterlayer .trace")
    page.wait_for_selector("#job-epochs .scatterlayer .trace")
    assert "Δ transfer" in page.locator("#job-outcome").inner_text()
    page.locator(".open-student").click()
    page.wait_for_url("**/zoo/tiny-vit-kl_dp-*")
    page.get_by_text("Where it comes from").wait_for()
    assert page.locator(".facts").first.get_by_role("link", name="tiny-resnet").count() == 1


def test_several_teachers_are_followed_while_they_teach(light_page, zoo_service: Service):
    """Chosen in the form, costed and told as commands; the page that was opened at the start draws every epoch."""
    page = light_page
    page.goto("/pairs/tiny-resnet/tiny-vit?on=digits/val")
    says(page, "#tf-preview", "zoograft transfer --teacher tiny-resnet")
    assert not page.get_by_role("textbox", name="multi").is_visible()
    page.get_by_role("textbox", name="Teachers").click()
    page.get_by_role("option", name=re.compile("^tiny-convnext")).click()
    says(page, "#tf-preview", "--teacher tiny-resnet --teacher tiny-convnext")
    page.keyboard.press("Escape")
    page.get_by_role("textbox", name="multi").click()
    page.get_by_role("option", name="parallel").click()
    says(page, "#tf-preview", "--set multi=parallel")
    says(page, "#tf-cost", "each of 2 trainings")
    page.get_by_role("textbox", name="multi").click()
    page.get_by_role("option", name="sequential").click()
    says(page, "#tf-cost", "each of 3 trainings")
    page.get_by_role("textbox", name="Method").click()
    page.get_by_role("option", name="mcl").click()
    says(page, "#tf-error", "mcl takes exactly 1 teacher")
    assert page.locator("#tf-start").is_disabled()
    page.get_by_role("textbox", name="Method").click()
    page.get_by_role("option", name="kl_dp", exact=True).click()
    says(page, "#tf-summary", "data partitioning")
    says(page, "#tf-preview", "--method kl_dp")
    form = page.locator("#tf-fields")
    form.get_by_label("epochs", exact=True).fill("2")
    form.get_by_label("lr", exact=True).fill("0.01")
    page.get_by_role("textbox", name="At most so many samples").fill("200")
    says(page, "#tf-preview", "--limit 200 --set epochs=2 --set lr=0.01")
    says(page, "#tf-preview", '"teachers": ["tiny-resnet", "tiny-convnext"]')
    page.locator("#tf-start").click()
    page.wait_for_url("**/jobs/*")
    id = page.url.rsplit("/", 1)[1]
    page.evaluate("window.opened = true")
    page.locator("#job-epochs", has_text="from tiny-resnet").wait_for(timeout=120_000)
    page.locator("#job-epochs", has_text="from tiny-convnext").wait_for(timeout=120_000)
    assert zoo_service.wait(id)["state"] == "succeeded"
    page.wait_for_selector("#job-status .state-succeeded")
    until(page, "document.querySelectorAll('#job-epochs .trace:first-child .point').length === 4")
    assert page.evaluate("window.opened"), "the page was loaded again"


def test_cancel_a_running_job(page, zoo_service: Service):
    id = zoo_service.submit("sleep", {"steps": 3000, "step_s": 0.1})
    page.goto("/jobs?state=open")
    page.wait_for_selector(f'#jobs-grid a[href="/jobs/{id}"]')
    page.locator(f'#jobs-grid a[href="/jobs/{id}"]').click()
    page.wait_for_selector("#job-status .state-running")
    page.locator("#job-cancel").click()
    page.wait_for_selector("#job-status .state-cancelled")
    assert zoo_service.wait(id)["state"] == "cancelled"
    page.wait_for_selector("#job-retry:not([disabled])")
    assert page.locator("#job-cancel").is_disabled()


def test_a_failed_job_says_why_and_what_to_do(light_page, zoo_service: Service):
    id = zoo_service.submit("sleep", {"steps": 5, "fault": "nan", "fault_step": 2})
    assert zoo_service.wait(id)["state"] == "failed"
    light_page.goto(f"/jobs/{id}")
    light_page.wait_for_selector("#job-status .state-failed")
    said = light_page.locator("#job-status").inner_text()
    assert "nonfinite_loss" in said
    assert "Retry" in said
    light_page.locator("#job-retry").click()
    light_page.wait_for_url(lambda url: "/jobs/" in url and id not in url)
    light_page.get_by_text("Tries again").wait_for()


def test_the_studys_figures_are_drawn_and_filter_survives_back(light_page, zoo_service: Service):
    light_page.goto(f"/studies/{zoo_service.study_id}")
    for name in ("success", "methods", "bins", "balance", "top", "size"):
        light_page.wait_for_selector(f"#study-{name} .cartesianlayer .trace")
    assert "kl_dp" in light_page.locator("#study-tables").inner_text()
    light_page.get_by_role("link", name="Transfers").click()
    light_page.wait_for_selector("#all-success .cartesianlayer .trace")
    light_page.go_back()
    light_page.wait_for_selector("#study-success .cartesianlayer .trace")


def test_choose_a_theme_and_it_stays(page, scheme):
    other = "dark" if scheme == "light" else "light"
    page.goto("/pairs")
    page.wait_for_selector("#pairs-figure .main-svg")
    page.get_by_text(other.capitalize(), exact=True).click()
    until(page, f"document.documentElement.dataset.mantineColorScheme === '{other}'")
    ground = {"dark": "rgb(30, 34, 39)", "light": "rgb(255, 255, 255)"}[other]
    until(page, f"document.querySelector('#pairs-figure .main-svg')?.style.background.includes('{ground}')")
    page.goto("/jobs")
    page.wait_for_selector("#page h1")
    assert page.evaluate("document.documentElement.dataset.mantineColorScheme") == other


def test_downloads_are_files(light_page):
    light_page.goto("/pairs?teacher=resnet")
    light_page.wait_for_selector("#pairs-figure .main-svg")
    for label, ending in (("CSV", ".csv"), ("SVG", ".svg"), ("PNG", ".png")):
        with light_page.expect_download() as download:
            light_page.get_by_role("button", name=re.compile(f"^Download as {label}: Pairs in the plane")).click()
        assert download.value.suggested_filename.endswith(ending)
        content = download.value.path().read_bytes()
        assert len(content) > 200
        if ending == ".csv":
            assert content.decode().splitlines()[1].startswith("tiny-resnet,")


def test_the_keyboard_reaches_a_pair(light_page):
    light_page.goto("/")
    light_page.wait_for_selector("#zoo-grid .cell-link")
    light_page.keyboard.press("Tab")
    assert light_page.evaluate("document.activeElement.className") == "skip-link"
    for _ in range(12):
        light_page.keyboard.press("Tab")
        if light_page.evaluate("document.activeElement.textContent") == "Pairs":
            break
    light_page.keyboard.press("Enter")
    light_page.wait_for_url("**/pairs")
    light_page.wait_for_selector("#pairs-grid .cell-link")
