"""The chaos battery in small, and its teeth: each guard taken away must make its script fail.

`make chaos` runs it in full; this is one seed, three kills a store. The scripts mostly wait, so a few run at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED = 77
AT_ONCE = 3
KILLS = "--count 3 --jobs 2 --steps 25"

PROMISES = [
    f"chaos_kill --db postgres+redis {KILLS}",
    f"chaos_kill --db postgres {KILLS}",
    f"chaos_kill --db sqlite {KILLS}",
    "two_hosts --count 8",
    "chaos_zombie --count 1",
    "disk_full --count 1",
    "corrupt_ckpt --count 30",
    "lost_lease --count 1",
    "orphans --count 1",
]
# What each script must find wrong when a guard is off. The store's guards are taken away in test_store_battery.py.
MUTANTS = {
    "one_gpu --count 1 --without gpu_lock": "began while another held the GPU",
    "chaos_zombie --count 1 --without fence": "was completed 2 times",
    "stall --count 1 --workers 1 --without stall": "still holds its worker",
    "cancel_race --count 1 --deaf-share 1 --without cancel_kill": "did not stop",
    "orphans --count 1 --without pdeathsig": "stopped: a job's process outlived its supervisor",
    "orphans --count 1 --without parent_poll": "untold: a job's process outlived its supervisor",
    "lost_lease --count 1 --without loss_signal": "a process still computes",
    "disk_room --count 1 --without disk": "taken without room",
    "corrupt_ckpt --count 60 --without checksum": "damaged state silently",
}
Done = subprocess.CompletedProcess[str]


def perform(line: str) -> Done:
    script, *arguments = line.split()
    return subprocess.run(
        [sys.executable, "-m", f"tests.reliability.{script}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Done]]]:
    """The chosen scripts, under way."""
    chosen = [item.callspec.params["line"] for item in request.session.items if item.path == Path(__file__)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {line: pool.submit(perform, line) for line in chosen}
        pool.shutdown(wait=False, cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("line", PROMISES)
def test_promise(line: str, outcomes: dict[str, Future[Done]]) -> None:
    done = outcomes[line].result()
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("line", MUTANTS)
def test_without_its_guard_it_fails(line: str, outcomes: dict[str, Future[Done]]) -> None:
    done = outcomes[line].result()
    assert done.returncode == 1, done.stdout + done.stderr
    assert MUTANTS[line] in done.stdout
