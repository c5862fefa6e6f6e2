"""Pictures of the dashboard's main pages for README and docs, from a store that `zoograft demo` has filled.

    zoograft demo
    python -m docs.screenshots                     writes docs/pictures/NAME.png and NAME-dark.png
    python -m docs.screenshots --schemes light
    python -m docs.screenshots --every build/pictures      every page, whole, 1280 and 1920 wide, to be looked at

Starts `zoograft web` on a free port over ZOOGRAFT_DATA_DIR, opens every page in Chromium and stops it again.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from dashboard.pages import PAGES

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--force-device-scale-factor=1"]
SIZE = {"width": 1280, "height": 860}
WIDTHS = (1280, 1920)
LOUD = ("error", "warning")
SETTLED_MS = 1200


def addresses(url: str) -> dict[str, str]:
    """Name of the picture → address; what the store does not have is left out."""
    pair = httpx.get(f"{url}/api/v1/pairs", params={"limit": 1}, timeout=60).json()["items"]
    jobs = httpx.get(f"{url}/api/v1/jobs", params={"kind": "transfer", "state": "succeeded"}, timeout=60).json()[
        "items"
    ]
    studies = httpx.get(f"{url}/api/v1/studies", timeout=60).json()["items"]
    found = {"zoo": "/", "pairs": "/pairs", "heat-map": "/pairs?view=heat", "transfers": "/studies", "jobs": "/jobs"}
    if pair:
        one = pair[0]
        found["pair"] = f"/pairs/{one['teacher']}/{one['student']}?on={one['dataset']}/{one['split']}"
    if jobs:
        found["job"] = f"/jobs/{jobs[0]['id']}"
    if studies:
        found["study"] = f"/studies/{studies[0]['job']['id']}"
    return found


def every_address(url: str) -> dict[str, str]:
    """`addresses`, the other pages of the menu, one job of each kind, and what is shown for what is not there."""
    found = addresses(url)
    for page in PAGES:
        if page.NAV and page.HREF not in found.values():
            found[page.HREF.strip("/")] = page.HREF
    models = httpx.get(f"{url}/api/v1/models", params={"limit": 1}, timeout=60).json()["items"]
    if models:
        found["model"] = f"/zoo/{models[0]['name']}"
    for kind in ("finetune", "scan", "kdep", "remem", "analysis"):
        jobs = httpx.get(f"{url}/api/v1/jobs", params={"kind": kind, "limit": 1}, timeout=60).json().get("items")
        if jobs:
            found[f"job-{kind}"] = f"/jobs/{jobs[0]['id']}"
    failed = httpx.get(f"{url}/api/v1/jobs", params={"state": "failed", "limit": 1}, timeout=60).json()["items"]
    if failed:
        found["job-failed"] = f"/jobs/{failed[0]['id']}"
    return found | {"entropy": "/pairs?view=entropy", "no-model": "/zoo/nobody", "no-page": "/nowhere"}


def take(browser: Any, url: str, folder: Path, scheme: str, pages: dict[str, str]) -> None:
    """One picture a page in one theme, as far as a window reaches."""
    with _opened(browser, SIZE, scheme) as page:
        for name, path in pages.items():
            file = folder / (f"{name}.png" if scheme == "light" else f"{name}-{scheme}.png")
            _take_one(page, url + path, file, whole=False)


def take_every(browser: Any, url: str, folder: Path, scheme: str, pages: dict[str, str]) -> None:
    """One picture a page and width in one theme, down to the page's end."""
    for width in WIDTHS:
        with _opened(browser, {"width": width, "height": 1000}, scheme) as page:
            for name, path in pages.items():
                _take_one(page, url + path, folder / f"{name}-{width}-{scheme}.png", whole=True)


@contextmanager
def _opened(browser: Any, size: dict[str, int], scheme: str) -> Iterator[Any]:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda said: print(f"console, {said.type}: {said.text}") if said.type in LOUD else None)
    yield page
    context.close()


def _take_one(page: Any, address: str, file: Path, *, whole: bool) -> None:
    page.goto(address)
    page.wait_for_selector("#page h1", timeout=60_000)
    page.wait_for_load_state("networkidle", timeout=60_000)
    page.wait_for_timeout(SETTLED_MS)
    page.screenshot(path=file, full_page=whole)
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(128).save(file, optimize=True)
    print(f"{file.name}  {address}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--schemes", nargs="+", default=["light", "dark"])
    parser.add_argument("--every", type=Path, metavar="FOLDER", help="every page at every width, into this folder")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these pages")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    folder: Path = args.every or args.out
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    service = subprocess.Popen([sys.executable, "-m", "backend.cli.main", "web", "--port", str(port)])
    try:
        for _ in range(300):
            try:
                httpx.get(f"{url}/healthz", timeout=5).raise_for_status()
                break
            except httpx.TransportError:
                if service.poll() is not None:
                    raise SystemExit("zoograft web did not start") from None
                time.sleep(0.1)
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            pages = every_address(url) if args.every else addresses(url)
            if args.only:
                pages = {name: pages[name] for name in args.only}
            for scheme in args.schemes:
                (take_every if args.every else take)(browser, url, folder, scheme, pages)
            browser.close()
    finally:
        service.send_signal(signal.SIGINT)
        service.wait(30)


if __name__ == "__main__":
    main()
