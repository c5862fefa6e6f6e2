"""Promises: the web process answers /healthz within 2 s of its start, and a page of GET /pairs with 1.7 million pairs
stored takes at most 50 ms (95th percentile): first pages and deep ones in the order of a rate, the difference or the
entropy, of all models, of one teacher or of one student. Where the whole split has to be read (another sort column,
bounds on columns beside it, patterns), 500 ms.

    python -m benchmarks.web --out web.json
    python -m benchmarks.web --data-dir /tmp/zoo --keep        (keeps the synthetic store for the next time)

The zoo is synthetic: random correctness of 1,304 models on 2,000 samples of 100 classes, counted and stored by the same
code as a real scan. Pages are fetched over HTTP from `zoograft web` in a process of its own, on one connection.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import numpy as np

from backend.domain.catalog import Family, Model
from backend.domain.datasets import Dataset, Split
from backend.domain.evaluations import Evaluation
from backend.domain.flips import flip_pairs
from backend.settings import Settings, environment
from backend.store import catalog, results
from backend.store.migrate import upgrade
from backend.store.session import Store

PROMISE_START_S, PROMISE_PAGE_S, PROMISE_FILTER_S = 2.0, 0.050, 0.500
SAMPLES, CLASSES = 2000, 100


def synthetic_names(n_models: int) -> list[str]:
    """Names of the models of the zoo; families take turns."""
    return [
        f"synthetic_{i:04d}.{family.value}" for i, family in zip(range(n_models), list(Family) * n_models, strict=False)
    ]


def fill(settings: Settings, n_models: int) -> float:
    """A synthetic zoo with every ordered pair; the seconds that storing took."""
    upgrade(settings.database)
    store = Store.open(settings.database, settings=settings)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SAMPLES)
    accuracy = np.sort(rng.uniform(0.3, 0.95, n_models))
    hard = rng.uniform(0, 1, SAMPLES)
    correct = (0.6 * hard + 0.4 * rng.uniform(0, 1, (n_models, SAMPLES))) < accuracy[:, None]
    names = synthetic_names(n_models)
    began = time.perf_counter()
    table = flip_pairs(correct, labels, CLASSES)
    now = datetime.now(UTC)
    with store.write() as connection:
        split = Split(n_samples=SAMPLES, fingerprint="synthetic")
        classes = tuple(f"class {c}" for c in range(CLASSES))
        catalog.add_dataset(
            connection,
            Dataset(
                id=uuid4(),
                name="synthetic",
                source="external",
                class_names=classes,
                splits={"val": split},
                created_at=now,
            ),
        )
        for i, name in enumerate(names):
            catalog.add_model(connection, Model(id=uuid4(), name=name, source="external", created_at=now))
            evaluation = Evaluation(
                id=uuid4(),
                model=name,
                dataset="synthetic",
                split="val",
                state="ready",
                accuracy=float(correct[i].mean()),
                n_samples=SAMPLES,
                n_classes=CLASSES,
                created_at=now,
            )
            results.record_evaluation(connection, evaluation, key=f"synthetic-{i}")
        results.replace_pairs(connection, "synthetic", "val", table, names)
    store.close()
    return time.perf_counter() - began


class Web:
    """`zoograft web` in a process of its own."""

    def __init__(self, data_dir: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "backend.cli.main", "web", "--port", str(self.port)]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command, env=environment(ZOOGRAFT_DATA_DIR=str(data_dir)), stderr=subprocess.DEVNULL
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        while True:
            try:
                self.client.get("/healthz").raise_for_status()
                break
            except httpx.TransportError:
                if self.process.poll() is not None or time.perf_counter() - began > 60:
                    raise SystemExit("zoograft web did not start") from None
                time.sleep(0.005)
        self.start_s = time.perf_counter() - began

    def stop(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


def measure_start(data_dir: Path, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        web = Web(data_dir)
        times.append(web.start_s)
        web.stop()
    return times


QUERIES: dict[str, dict[str, str]] = {
    "first page": {},
    "first page of 200": {"limit": "200"},
    "by negative flips, one data set": {"sort": "-negative_flip_rate", "dataset": "synthetic"},
    "by difference, ascending": {"sort": "accuracy_difference"},
    "by entropy": {"sort": "-flip_entropy_nats"},
    "by teacher accuracy": {"sort": "-teacher_accuracy"},
    "by student accuracy": {"sort": "-student_accuracy"},
    "one teacher": {"teacher": "synthetic_0700.cnn"},
    "one student": {"student": "synthetic_0700.cnn"},
    "teachers by pattern": {"teacher": "synthetic_07*"},
    "range of the sorted column": {"positive_flip_rate_max": "0.2"},
    "weaker teachers": {"accuracy_difference_max": "-0.1"},
    "significant, weaker": {"accuracy_difference_max": "0", "mcnemar_p_value_max": "0.05"},
}


WHOLE_SPLIT = (
    "by teacher accuracy",
    "by student accuracy",
    "teachers by pattern",
    "weaker teachers",
    "significant, weaker",
)


def limit_of(query: str) -> float:
    return PROMISE_FILTER_S if query in WHOLE_SPLIT else PROMISE_PAGE_S


def measure_pages(web: Web, count: int) -> dict[str, dict[str, float]]:
    measured = {}
    for name, query in QUERIES.items():
        measured[name] = _summary([_timed(web, query)[0] for _ in range(count)])
        _show(name, measured[name])
    deep = []
    cursor: dict[str, str] = {}
    for _ in range(count):
        seconds, page = _timed(web, {"limit": "200", **cursor})
        deep.append(seconds)
        cursor = {"cursor": page["next_cursor"]}
    name = f"{count} pages of 200, one after the other"
    measured[name] = _summary(deep)
    _show(name, measured[name])
    return measured


def _timed(web: Web, query: dict[str, str]) -> tuple[float, dict[str, str]]:
    began = time.perf_counter()
    response = web.client.get("/api/v1/pairs", params=query)
    seconds = time.perf_counter() - began
    response.raise_for_status()
    page = response.json()
    assert page["items"], query
    return seconds, page


def _show(name: str, numbers: dict[str, float]) -> None:
    print(f"{name:45} median {1e3 * numbers['median_s']:7.1f} ms   p95 {1e3 * numbers['p95_s']:7.1f} ms", flush=True)


def _summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"median_s": statistics.median(ordered), "p95_s": ordered[max(0, int(0.95 * len(ordered)) - 1)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1304)
    parser.add_argument("--requests", type=int, default=200, help="requests a query")
    parser.add_argument("--rest", type=float, default=10.0, help="seconds before the pages are measured")
    parser.add_argument("--rounds", type=int, default=5, help="starts")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    folder = args.data_dir or Path(tempfile.mkdtemp(prefix="zoograft-web-"))
    settings = Settings(data_dir=folder)
    try:
        stored_s = None
        if not (folder / "zoograft.db").exists():
            stored_s = fill(settings, args.models)
            print(f"counted and stored {args.models * (args.models - 1):,} pairs in {stored_s:.1f} s")
        starts = measure_start(folder, args.rounds)
        print(f"start to /healthz: median {statistics.median(starts):.2f} s, worst {max(starts):.2f} s")
        web = Web(folder)
        try:
            web.client.get("/")  # the dashboard is imported and warmed beside the first requests; let it come to rest
            time.sleep(args.rest)
            pages = measure_pages(web, args.requests)
        finally:
            web.stop()
    finally:
        if args.data_dir is None and not args.keep:
            shutil.rmtree(folder)
    broken = [name for name, numbers in pages.items() if numbers["p95_s"] > limit_of(name)]
    if statistics.median(starts) > PROMISE_START_S:
        broken.append("start")
    kept = not broken
    print("promises kept" if kept else f"promises BROKEN: {', '.join(broken)}")
    if args.out:
        report = {
            "machine": platform.platform(),
            "models": args.models,
            "stored_s": stored_s,
            "start_s": starts,
            "pages": pages,
            "kept": kept,
        }
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(not kept)


if __name__ == "__main__":
    main()
