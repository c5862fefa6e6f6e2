"""Every promise about jobs, tested by breaking things: the scripts of tests/reliability, as one table.

    python -m benchmarks.chaos --full                 make chaos: at most a quarter of an hour on two cores
    python -m benchmarks.chaos --quick                one seed, three kills a store (tests/reliability/test_battery.py)
    python -m benchmarks.chaos --mutants              each guard taken away: its script must then fail
    python -m benchmarks.chaos --nightly              the counts that do not fit into a quarter of an hour

Seeded, each script bounded in time, two at once (they mostly wait; those that measure time run alone). Ends with one
line `N passed, N failed`, writes benchmarks/results/chaos.json, exits 1 when one failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = 77
# These measure time, so nothing runs beside them.
ALONE = ("throughput", "dup_submit", "claim_race", "load")


@dataclass(frozen=True)
class Run:
    """One script with its arguments; `fails` when a guard was taken away and a breach is what we want to see."""

    script: str
    arguments: tuple[str, ...]
    limit_s: int = 240
    fails: bool = False

    @property
    def name(self) -> str:
        return " ".join((self.script, *self.arguments))


def full(seed: int) -> list[Run]:
    s = ("--seed", str(seed))
    stores = ("sqlite", "postgres", "postgres+redis")
    kill = ("chaos_kill", "--count", "20", "--work", "transfer")
    return [
        *(run(*kill, "--db", db, *s, limit_s=400) for db in stores[::2]),
        run("chaos_kill", "--db", "postgres", "--count", "20", *s),
        *(run("chaos_kill", "--count", "5", "--jobs", "2", "--work", work, *s) for work in ("kdep", "remem")),
        run("chaos_zombie", "--db", "sqlite", "--count", "20", *s, limit_s=400),
        run("chaos_zombie", "--db", "postgres", "--count", "8", *s),
        run("chaos_pg", "--db", "postgres", "--count", "5", "--outage-s", "60", *s),
        run("chaos_redis", "--count", "5", *s),
        run("cancel_race", "--db", "sqlite", "--count", "200", *s),
        run("cancel_race", "--db", "postgres", "--count", "100", *s),
        run("drain", "--db", "sqlite", "--count", "20", *s),
        run("drain", "--db", "postgres+redis", "--count", "10", *s),
        run("poison", "--db", "sqlite", "--count", "10", *s),
        run("disk_full", "--db", "sqlite", "--count", "10", *s),
        run("corrupt_ckpt", "--count", "200", *s),
        run("fuzz_images", "--images", "10000", "--bad", "500", *s),
        run("nan", "--db", "sqlite", "--count", "30", *s),
        run("clock", "--count", "4", *s),
        run("two_hosts", "--count", "40", *s),
        *(run(script, *s) for script in ("orphans", "stall", "lost_lease", "one_gpu", "disk_room")),
        *(run("dup_submit", "--db", db, *s) for db in stores[:2]),
        *(run("claim_race", "--db", db, "--count", "1500", "--min-rate", "80", *s) for db in stores[:2]),
        *(run("load", "--db", db, *s) for db in stores[:2]),
        *(run("state_machine", "--db", db, "--count", "500", *s, limit_s=400) for db in stores[:2]),
        *(run("fault_injection", "--db", db, "--stride", "1", *s) for db in stores[:2]),
        *(run("throughput", "--db", db, "--count", "1000", *s) for db in stores[:2]),
    ]


def nightly(seed: int) -> list[Run]:
    s = ("--seed", str(seed))
    stores = ("sqlite", "postgres", "postgres+redis")
    return [
        *(run("chaos_kill", "--db", db, "--count", "200", "--work", "transfer", *s, limit_s=3000) for db in stores),
        *(run("chaos_kill", "--count", "20", "--work", work, *s, limit_s=900) for work in ("kdep", "remem")),
        run("chaos_zombie", "--db", "postgres", "--count", "20", *s, limit_s=900),
        run("cancel_race", "--db", "postgres", "--count", "200", *s, limit_s=900),
        run("drain", "--db", "postgres+redis", "--count", "20", *s, limit_s=900),
        *(run("state_machine", "--db", db, "--count", "5000", *s, limit_s=3000) for db in stores[:2]),
        run("schemathesis_run", "--count", "1000", *s, limit_s=3000),
        run("schemathesis_run", "--count", "300", "--phases", "stateful", *s, limit_s=3000),
        *(run("list_10k", "--db", db, *s, limit_s=600) for db in stores[:2]),
        *(run(script, *s, limit_s=600) for script in ("sec_routes", "sec_inputs")),
    ]


def quick(seed: int) -> list[Run]:
    s = ("--seed", str(seed))
    kill = ("chaos_kill", "--count", "3", "--jobs", "2", "--steps", "25", *s)
    return [
        *(run(*kill, "--db", db) for db in ("sqlite", "postgres", "postgres+redis")),
        run("chaos_zombie", "--db", "sqlite", "--count", "1", *s),
        run("corrupt_ckpt", "--count", "30", *s),
        run("disk_full", "--count", "1", *s),
        run("two_hosts", "--count", "8", *s),
        run("load", "--load-s", "3", *s),
    ]


def mutants(seed: int) -> list[Run]:
    """Every guard of `backend.settings.GUARDS` at least once."""
    s = ("--seed", str(seed))
    outage = ("--outage-s", "6", "--heartbeat-s", "2.5", "--workers", "4")
    return [
        mutant("fence", "chaos_zombie", "--count", "1", *s),
        mutant("reaper_guard", "chaos_pg", "--count", "1", *outage, *s),
        mutant("immediate", "claim_race", "--count", "200", "--processes", "4", *s),
        mutant("idempotency", "dup_submit", *s),
        mutant("pdeathsig", "orphans", "--count", "1", *s),
        mutant("parent_poll", "orphans", "--count", "1", *s),
        mutant("loss_signal", "lost_lease", "--count", "1", *s),
        mutant("cancel_kill", "cancel_race", "--count", "4", "--deaf-share", "1", *s),
        mutant("stall", "stall", "--count", "1", "--workers", "1", *s),
        mutant("gpu_lock", "one_gpu", "--count", "1", *s),
        mutant("disk", "disk_room", "--count", "1", *s),
        mutant("checksum", "corrupt_ckpt", "--count", "60", *s),
    ]


def run(script: str, *arguments: str, limit_s: int = 240) -> Run:
    return Run(script, arguments, limit_s)


def mutant(guard: str, script: str, *arguments: str) -> Run:
    return Run(script, (*arguments, "--without", guard), fails=True)


def perform(run: Run) -> tuple[Run, str, float, str]:
    """Outcome (passed, failed, skipped), seconds, and what was counted or went wrong."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.reliability.{run.script}", *run.arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        output, errors = process.communicate(timeout=run.limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # lets the script end its own processes
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        return run, "failed", time.monotonic() - began, f"not done within {run.limit_s} s"
    seconds = time.monotonic() - began
    lines = [line for line in output.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {}
    if process.returncode == SKIPPED:
        return run, "skipped", seconds, found.get("skipped", "")
    if not found:
        return run, "failed", seconds, errors.strip().splitlines()[-1] if errors.strip() else "no result"
    breached = process.returncode != 0
    hidden = ("test", "db", "seed", "seconds", "breaches")
    shown = ", ".join(f"{name} {value}" for name, value in found.items() if name not in hidden)
    if breached:
        shown = "; ".join(str(one) for one in found.get("breaches", ())[:3])
    return run, ("passed" if breached == run.fails else "failed"), seconds, shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="every script with its full counts (the default)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--mutants", action="store_true", help="without each guard its script must fail")
    parser.add_argument("--nightly", action="store_true", help="the counts that take longer")
    parser.add_argument("--only", default="", help="run only the scripts whose names contain this")
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    lists = {"quick": quick, "mutants": mutants, "nightly": nightly}
    runs = next((make for name, make in lists.items() if getattr(options, name)), full)(options.seed)
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    table = []
    print(f"{'outcome':8} {'seconds':>8}  run")
    chosen = [run for run in runs if options.only in run.name]
    alone = [run for run in chosen if run.script in ALONE]
    with ThreadPoolExecutor(options.at_once) as pool:
        together = pool.map(perform, [run for run in chosen if run not in alone])
        for run, outcome, seconds, shown in itertools.chain(together, map(perform, alone)):
            counts[outcome] += 1
            table.append({"run": run.name, "outcome": outcome, "seconds": round(seconds, 1), "detail": shown})
            print(f"{outcome:8} {seconds:8.1f}  {run.name}\n{'':19}{shown[:300]}", flush=True)
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "chaos.json").write_text(json.dumps(table, indent=1) + "\n")
    skipped = f" ({counts['skipped']} skipped)" if counts["skipped"] else ""
    print(f"{counts['passed']} passed, {counts['failed']} failed{skipped}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
