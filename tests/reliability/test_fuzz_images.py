"""T12 in small: one file in ten is broken. In a process of its own, because its peak of memory is measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_scan_lists_exactly_the_bad_files() -> None:
    command = [sys.executable, "-m", "tests.reliability.fuzz_images", "--images", "600", "--bad", "60", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert (outcome["breaches"], outcome["listed"]) == ([], 60)
