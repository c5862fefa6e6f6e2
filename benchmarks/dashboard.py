"""Promises: with 1,300 models and 1.7 million pairs every page shows its first content within 2 s, filters answer in
500 ms, and no answer of the API or of a callback exceeds 2 MB.

    python -m benchmarks.dashboard --out dashboard.json
    python -m benchmarks.dashboard --data-dir /tmp/zoo --keep        (keeps the synthetic store for the next time)

The zoo is that of `benchmarks.web`: random correctness, counted and stored by the same code as a real scan; its past
(450 transfers in a study and 450 beside it, measurements, runs, 50,000 predictions of two models) that of
`benchmarks.history`. Pages are
opened in a real Chromium that has no cache, from `zoograft web` in a process of its own that has read its board before
(not with `--cold`). First content is the page's heading and, where it has one, its figure or its grid's first row. A
filter is timed from the change of its control to the new count on the page.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from backend.settings import Settings
from benchmarks.history import fill_history
from benchmarks.web import Web, fill, synthetic_names

PROMISE_PAGE_S, PROMISE_FILTER_S, PROMISE_BYTES = 2.0, 0.5, 2_000_000
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update"]


def pages_of(ids: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Every page: address, and what must be there for its first content."""
    point, trace, first_row = ".scatterlayer .point", ".cartesianlayer .trace", ".cell-link"
    return {
        "zoo": ("/", f"#zoo-grid {first_row}"),
        "one model": ("/zoo/synthetic_0700.cnn", ".facts"),
        "pairs, flips × accuracy": ("/pairs", "#pairs-figure .heatmaplayer image"),
        "pairs, flips × entropy": ("/pairs?view=entropy", "#pairs-figure .heatmaplayer image"),
        "pairs, heat map": ("/pairs?view=heat", "#pairs-figure .heatmaplayer image"),
        "pairs, table": ("/pairs", f"#pairs-grid {first_row}"),
        "pair, its figure": ("/pairs/predicted-a/predicted-b?on=imagenet-like/val", "#pair-classes .bars"),
        "pair, its samples": ("/pairs/predicted-a/predicted-b?on=imagenet-like/val", ".sample"),
        "transfers": ("/studies", f"#all-success {trace}"),
        "study": (f"/studies/{ids['study']}", f"#study-success {trace}"),
        "information": ("/plane", f"#plane-points {point}"),
        "expertness": ("/expertness", f"#expertness-blocks {trace}"),
        "neurons": ("/neurons", "#neurons-ranking .barlayer .point"),
        "pre-training": ("/kdep", f"#kdep-candidates {point}"),
        "jobs": ("/jobs", f"#jobs-grid {first_row}"),
        "one job": (f"/jobs/{ids['job']}", f"#job-epochs {trace}"),
    }


FILTERS: dict[str, dict[str, object]] = {
    "teacher by name": {"teacher": "synthetic_07"},
    "student by pattern": {"student": "*.mlp"},
    "weaker teachers": {"than": "weaker"},
    "at least 20 % positive flips": {"min": 20},
    "significant": {"p": "0.001"},
    "all of them": {"teacher": "synthetic_0*", "student": "*.cnn", "than": "stronger", "min": 1, "p": "0.05"},
}


def measure_pages(
    browser: Any, url: str, pages: dict[str, tuple[str, str]], rounds: int, sizes: dict[str, int]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name, (path, first) in pages.items():
        for _ in range(rounds):
            context = browser.new_context(viewport={"width": 1920, "height": 1000})
            page = context.new_page()
            page.on("response", lambda response: _note(response, sizes))
            began = time.perf_counter()
            page.goto(url + path, wait_until="commit")
            page.wait_for_selector(first, timeout=120_000, state="attached")
            found.setdefault(name, []).append(time.perf_counter() - began)
            page.wait_for_load_state("networkidle")
            context.close()
        print(f"{name:32} median {statistics.median(found[name]):6.2f} s   worst {max(found[name]):6.2f} s", flush=True)
    return found


def measure_filters(browser: Any, url: str, rounds: int, sizes: dict[str, int]) -> dict[str, list[float]]:
    """Each filter on a fresh page, with a bound that differs each time: nothing is answered from a cache."""
    found: dict[str, list[float]] = {}
    for name, values in FILTERS.items():
        for turn in range(rounds):
            page = browser.new_page()
            page.on("response", lambda response: _note(response, sizes))
            page.goto(url + "/pairs")
            page.wait_for_selector("#pairs-figure .heatmaplayer image", timeout=120_000, state="attached")
            page.wait_for_load_state("networkidle")
            least = float(str(values.get("min", 0))) + 0.013 * (turn + 1)
            found.setdefault(name, []).append(_change(page, {**values, "min": least}))
            page.close()
        print(f"{name:32} median {1e3 * statistics.median(found[name]):6.0f} ms", flush=True)
    return found


def _change(page: Any, values: dict[str, object]) -> float:
    """Seconds from the change of these controls to the page's new count."""
    began = time.perf_counter()
    page.evaluate(
        """values => new Promise(resolve => {
             const count = document.querySelector('#pairs-count'), before = count.innerText;
             new MutationObserver(() => { if (count.innerText !== before) { resolve(); } })
               .observe(count, {childList: true, characterData: true, subtree: true});
             for (const [name, value] of Object.entries(values)) {
               dash_clientside.set_props({type: 'q', name: name, default: ''}, {value: value});
             } })""",
        values,
    )
    seconds = time.perf_counter() - began
    page.wait_for_load_state("networkidle")
    return seconds


def _note(response: Any, sizes: dict[str, int]) -> None:
    path = response.url.split("?")[0]
    if "/_dash-component-suites/" in path or "/assets/" in path:
        return
    try:
        size = len(response.body())
    except Exception:  # the page was left before the answer was read
        return
    sizes[path] = max(size, sizes.get(path, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1304)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="do not wait for the board to be read first")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    folder = args.data_dir or Path(tempfile.mkdtemp(prefix="zoograft-dashboard-"))
    sizes: dict[str, int] = {}
    try:
        if not (folder / "zoograft.db").exists():
            print(f"stored in {fill(Settings(data_dir=folder), args.models):.1f} s", flush=True)
        if not (folder / "history.json").exists():
            ids = fill_history(Settings(data_dir=folder), synthetic_names(args.models))
            (folder / "history.json").write_text(json.dumps(ids))
        every_page = pages_of(json.loads((folder / "history.json").read_text()))
        web = Web(folder)
        url = f"http://127.0.0.1:{web.port}"
        try:
            with sync_playwright() as started:
                browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
                if not args.cold:
                    page = browser.new_page()
                    page.goto(url + "/pairs")
                    page.wait_for_selector("#pairs-figure .heatmaplayer image", timeout=300_000, state="attached")
                    page.close()
                pages = measure_pages(browser, url, every_page, args.rounds, sizes)
                filters = measure_filters(browser, url, args.rounds, sizes)
                browser.close()
        finally:
            web.stop()
    finally:
        if args.data_dir is None and not args.keep:
            shutil.rmtree(folder)
    slowest_page = max(statistics.median(times) for times in pages.values())
    slowest_filter = max(statistics.median(times) for times in filters.values())
    largest = max(sizes.values())
    kept = slowest_page <= PROMISE_PAGE_S and slowest_filter <= PROMISE_FILTER_S and largest <= PROMISE_BYTES
    print(
        f"slowest page {slowest_page:.2f} s, slowest filter {1e3 * slowest_filter:.0f} ms, largest answer {largest:,} B"
    )
    print(
        f"promises {'kept' if kept else 'BROKEN'}: "
        f"≤ {PROMISE_PAGE_S} s, ≤ {1e3 * PROMISE_FILTER_S:.0f} ms, ≤ {PROMISE_BYTES:,} B"
    )
    if args.out:
        report = {
            "machine": platform.platform(),
            "models": args.models,
            "pages_s": pages,
            "filters_s": filters,
            "largest_answers": dict(sorted(sizes.items(), key=lambda item: -item[1])[:10]),
            "kept": kept,
        }
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(not kept)


if __name__ == "__main__":
    main()
