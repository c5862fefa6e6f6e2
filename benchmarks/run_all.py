"""Every promise of speed, one script after another; ends with one line `N passed, N failed`.

    make bench                                   about half an hour on two cores
    python -m benchmarks.run_all kl_dp_step web  these alone

Each script measures itself against the alternative in the same run, prints its table and exits 1 where a promise is not
kept. The scan wants real photos: ZOOGRAFT_BENCH_IMAGES names a folder or a zip of class folders; without it that one is
left out and said so.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

RESULTS = Path("benchmarks/results")
SCRIPTS: dict[str, tuple[str, ...]] = {
    "pairs_zoo": ("--out", "{results}/pairs_zoo.json"),
    "kl_dp_step": ("--out", "{results}/kl_dp_step.json"),
    "scan": ("--images", "{images}", "--thumbnails", "--output", "{results}/scan.json"),
    "web": ("--out", "{results}/web.json"),
    "dashboard": ("--out", "{results}/dashboard.json"),
    "kdep_svd": ("--json", "{results}/kdep_svd.json"),
    "expertness_vitb": (),
    "information_vitb": (),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure every promise of speed.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(SCRIPTS)}; all of them by default"
    )
    names = parser.parse_args().names or list(SCRIPTS)
    if unknown := set(names) - set(SCRIPTS):
        parser.error(f"no benchmark named {sorted(unknown)[0]!r}; there are {', '.join(SCRIPTS)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    images = os.environ.get("ZOOGRAFT_BENCH_IMAGES")
    passed = failed = 0
    for name in names:
        if name == "scan" and not images:
            print("scan: left out; set ZOOGRAFT_BENCH_IMAGES to a folder or a zip of class folders\n", flush=True)
            continue
        arguments = [part.format(results=RESULTS, images=images) for part in SCRIPTS[name]]
        print(f"== {name}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments]).returncode
        passed, failed = passed + (code == 0), failed + (code != 0)
        print(flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
