"""Pictures of the dashboard's main pages for README and docs, from a store that `zoograft demo` has filled.

    zoograft demo
    python -m docs.screenshots                     writes docs/pictures/NAME.png and NAME-dark.png
    python -m docs.screenshots --schemes light

Starts `zoograft web` on a free port over ZOOGRAFT_DATA_DIR, opens every page in Chromium and stops it again.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--force-device-scale-factor=1"]
SIZE = {"width": 1280, "height": 860}
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


def take(browser: Any, url: str, folder: Path, scheme: str) -> None:
    """One picture a page in one theme."""
    context = browser.new_context(viewport=SIZE, color_scheme=scheme)
    page = context.new_page()
    for name, path in addresses(url).items():
        page.goto(url + path)
        page.wait_for_selector("#page h1", timeout=60_000)
        page.wait_for_load_state("networkidle", timeout=60_000)
        page.wait_for_timeout(SETTLED_MS)
        file = folder / (f"{name}.png" if scheme == "light" else f"{name}-{scheme}.png")
        page.screenshot(path=file)
        with Image.open(file) as picture:
            picture.convert("RGB").quantize(128).save(file, optimize=True)
        print(f"{file.name}  {path}")
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--schemes", nargs="+", default=["light", "dark"])
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    args.out.mkdir(parents=True, exist_ok=True)
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
            for scheme in args.schemes:
                take(browser, url, args.out, scheme)
            browser.close()
    finally:
        service.send_signal(signal.SIGINT)
        service.wait(30)


if __name__ == "__main__":
    main()
