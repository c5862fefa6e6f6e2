"""Cataloguing all of timm's pretrained tags as a job."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm

from backend.store import catalog
from backend.store.session import Store

RunTask = Callable[..., dict[str, Any]]


def test_all_tags_at_once_and_again(run_task: RunTask, store: Store, shared_data: Path) -> None:
    n = len(timm.list_pretrained())
    files = [str(shared_data / "timm-results" / f"results-imagenet{part}.csv") for part in ("", "-real")]
    began = time.perf_counter()
    assert run_task("sync", results=files) == {
        "models": n,
        "added": n,
        "updated": 0,
        "kept": 0,
        "unknown_results": 0,
    }
    assert time.perf_counter() - began < 20
    with store.read() as connection:
        eva = catalog.get_model(connection, "eva_giant_patch14_336.clip_ft_in1k")
        assert len(catalog.model_names(connection)) == n
    assert eva.param_count == 1_013_010_000
    assert eva.reported_accuracy["imagenet-real"] == 0.91078
    assert eva.weights_hash is None
    assert run_task("sync", results=files) == {
        "models": n,
        "added": 0,
        "updated": 0,
        "kept": n,
        "unknown_results": 0,
    }


def test_a_pattern_and_later_results(run_task: RunTask, store: Store, shared_data: Path) -> None:
    n = len(timm.list_pretrained("resnet18*"))
    assert run_task("sync", filter="resnet18*")["added"] == n
    file = str(shared_data / "timm-results" / "results-imagenet.csv")
    again = run_task("sync", filter="resnet18*", results=[file])
    assert again["updated"] > 0
    with store.read() as connection:
        model = catalog.get_model(connection, "resnet18.a1_in1k")
    assert 0.7 < model.reported_accuracy["imagenet"] < 0.75
