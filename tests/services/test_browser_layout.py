"""Every page at 1280, at 1920 and on a tablet, in both themes: no text overlaps another or is cut, nothing sticks out,
and axe finds nothing serious."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from dashboard.pages import PAGES
from tests.services.browsing import Service, until

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WIDTHS = (1280, 1920, 820)
MISSING = ("/zoo/nobody", "/nowhere")
SETTLED_MS = 500

MEASURE = """() => {
  const wrong = [];
  const shown = (el) => {
    const style = getComputedStyle(el), box = el.getBoundingClientRect();
    return style.visibility !== 'hidden' && style.display !== 'none' && Number(style.opacity) > 0 && box.width > 1 && box.height > 1;
  };
  const name = (el) => `${el.tagName.toLowerCase()}.${String(el.className.baseVal ?? el.className).split(' ').join('.')} "${el.textContent.trim().slice(0, 50)}"`;

  // Nothing sticks out of the page.
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth + 1) {
    const out = [...document.querySelectorAll('#page *')].filter(e => e.getBoundingClientRect().right > root.clientWidth + 1 && shown(e) && !e.closest('.ag-root-wrapper, .table-scroll'));
    wrong.push(`the page is ${root.scrollWidth - root.clientWidth} px too wide: ${out.slice(0, 3).map(name).join('; ')}`);
  }

  // Texts of the page, by the boxes of their lines; grids scroll by themselves and show whole names as tooltips.
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.textContent.trim() || !parent || !shown(parent)) { continue; }
    if (parent.closest('.ag-root-wrapper, .visually-hidden, script, style, noscript, option, .skip-link, .hoverlayer, .modebar-container, [class*="mantine-Overlay"], .table-scroll, .log')) { continue; }
    if (parent.closest('details:not([open])') && !parent.closest('summary')) { continue; }
    let hidden = false;
    for (let up = parent; up; up = up.parentElement) { if (getComputedStyle(up).display === 'none' || (up.getAttribute && up.getAttribute('aria-hidden') === 'true' && up.offsetHeight === 0)) { hidden = true; break; } }
    if (hidden) { continue; }
    const range = document.createRange(); range.selectNodeContents(node);
    for (const box of range.getClientRects()) { if (box.width > 1 && box.height > 1) { boxes.push([box, parent]); } }
  }
  for (let i = 0; i < boxes.length; i++) {
    for (let j = i + 1; j < boxes.length; j++) {
      const [a, ea] = boxes[i], [b, eb] = boxes[j];
      if (ea === eb) { continue; }
      const w = Math.min(a.right, b.right) - Math.max(a.left, b.left), h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      const turned = ea.closest('[transform*="rotate(-45"]') && eb.closest('[transform*="rotate(-45"]');
      const fixed = Boolean(ea.closest('header')) !== Boolean(eb.closest('header')) || Boolean(ea.closest('.mantine-AppShell-navbar')) !== Boolean(eb.closest('.mantine-AppShell-navbar'));
      if (w > 3 && h > 4 && !turned && !fixed) { wrong.push(`overlap ${Math.round(w)}x${Math.round(h)}: ${name(ea)} and ${name(eb)}`); }
    }
  }

  // A text is cut where its box hides a part of it.
  for (const el of document.querySelectorAll('#page *, header *')) {
    if (!shown(el) || el.closest('.ag-root-wrapper, svg, .visually-hidden, .log') || !el.childNodes.length) { continue; }
    const style = getComputedStyle(el);
    const own = [...el.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (own && style.overflowX === 'hidden' && el.scrollWidth > el.clientWidth + 1 && !el.title) { wrong.push(`cut: ${name(el)}`); }
  }
  for (const svg of document.querySelectorAll('.js-plotly-plot')) {
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll('.xtick text, .ytick text, .g-xtitle text, .g-ytitle text, .legendtext, .annotation-text, .cbaxis text, .cbtitle text')) {
      const box = text.getBoundingClientRect();
      if (box.width && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)) {
        wrong.push(`cut in a figure: ${name(text)}`);
      }
    }
  }
  return [...new Set(wrong)].slice(0, 12);
}"""

AXE = """async () => {
  const found = await axe.run(document, { resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice'] });
  return found.violations.filter(v => ['serious', 'critical'].includes(v.impact))
    .map(v => `${v.id}: ${v.nodes.length} × ${v.nodes.slice(0, 3).map(n => n.target.join(' ') + ' ' + (n.any[0] || n.all[0] || n.none[0] || {}).message).join(' | ')}`);
}"""


def addresses(service: Service) -> list[str]:
    """Every page of the menu, one page of each other kind, and the pages for what is not there."""
    jobs = httpx.get(f"{service.url}/api/v1/jobs", params={"kind": "transfer", "state": "succeeded"}, timeout=60).json()
    menu = [page.HREF for page in PAGES if page.NAV]
    return [
        *menu,
        "/pairs?view=entropy",
        "/pairs?view=heat",
        "/pairs/tiny-resnet/tiny-vit?on=digits/val",
        f"/jobs/{jobs['items'][0]['id']}",
        "/zoo/tiny-vit",
        f"/studies/{service.study_id}",  # type: ignore[attr-defined]
        *MISSING,
    ]


def settle(page) -> None:
    page.wait_for_selector("#page h1", timeout=60_000)
    page.wait_for_load_state("networkidle", timeout=60_000)
    until(page, "!document.querySelector('[data-dash-is-loading=\"true\"]')")
    page.wait_for_timeout(SETTLED_MS)


def wrong_at(page, width: int) -> list[str]:
    """What overlaps or is cut at a width, once its figures are drawn anew, for which a busy machine takes longer."""
    page.set_viewport_size({"width": width, "height": 900})
    for _ in range(6):
        page.wait_for_timeout(SETTLED_MS)
        found = page.evaluate(MEASURE)
        if not found:
            break
    return found


def test_every_page_at_every_width(page, zoo_service):
    """No text overlaps or is cut, and axe finds nothing serious."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text()
    wrong = {}
    page.watch.missing.update(MISSING)
    for path in addresses(zoo_service):
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        page.goto(path)
        settle(page)
        for width in WIDTHS:
            if found := wrong_at(page, width):
                wrong[f"{path} at {width}"] = found
        page.evaluate(script)
        if found := page.evaluate(AXE):
            wrong[f"{path}, axe"] = found
    assert wrong == {}
