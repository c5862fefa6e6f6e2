"""What a result needs to be made again: versions, seeds, hashes; stored with every result."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from backend.domain.catalog import Model
from backend.domain.datasets import Dataset

PACKAGES = ("zoograft", "torch", "timm", "numpy", "pillow", "scikit-learn")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def provenance(models: Iterable[Model], dataset: Dataset, splits: Iterable[str], **more: Any) -> dict[str, Any]:
    """Hashes of the weights and of the data, versions, and whatever else fixes the result (seeds, device, threads)."""
    return {
        "weights": {model.name: model.weights_hash for model in models},
        "dataset": {"name": dataset.name, "splits": {name: dataset.splits[name].fingerprint for name in splits}},
        "versions": versions(),
        **more,
    }
