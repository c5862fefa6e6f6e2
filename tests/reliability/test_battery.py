"""The chaos battery in small, and its teeth: each guard taken away must make its script fail.

`make chaos` runs it in full; this is one seed, three kills a store.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED = 77


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.reliability.{script}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    return done


@pytest.mark.slow
@pytest.mark.parametrize("db", ["sqlite", "postgres", "postgres+redis"])
def test_three_kills(db):
    done = run("chaos_kill", "--db", db, "--count", "3", "--jobs", "2", "--steps", "25")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_zombie_writes_nothing():
    done = run("chaos_zombie", "--count", "1")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_without_the_fence_a_zombie_completes_a_job_twice():
    done = run("chaos_zombie", "--count", "1", "--without", "fence")
    assert done.returncode == 1
    assert "was completed 2 times" in done.stdout


def test_damaged_checkpoints():
    done = run("corrupt_ckpt", "--count", "30")
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_checksums_damage_is_loaded():
    done = run("corrupt_ckpt", "--count", "60", "--without", "checksum")
    assert done.returncode == 1
    assert "damaged state silently" in done.stdout


@pytest.mark.slow
def test_a_full_disk():
    done = run("disk_full", "--count", "1")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_hosts_share_one_store_and_one_broker():
    done = run("two_hosts", "--count", "8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_its_end_by_force_a_deaf_job_keeps_its_process():
    done = run("cancel_race", "--count", "2", "--deaf-share", "1", "--without", "cancel_kill")
    assert done.returncode == 1
    assert "did not stop" in done.stdout
