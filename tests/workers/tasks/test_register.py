"""Registering models and data sets as jobs: catalogued when they work, told when they do not, nothing half-written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.domain.errors import BadInput, Conflict
from backend.store import catalog
from backend.store.session import Store

RunTask = Callable[..., dict[str, Any]]


def test_a_model_and_a_data_set_are_catalogued_once(run_task: RunTask, store: Store) -> None:
    spec = {"name": "tiny", "architecture": "test_resnet", "kwargs": {"num_classes": 10}}
    first = run_task("register", model=spec)["model"]
    assert run_task("register", model=spec)["model"] == first
    added = run_task("register", dataset={"name": "digits", "source": "digits"})["dataset"]
    assert run_task("register", dataset={"name": "digits", "source": "digits"})["dataset"] == added
    with store.read() as connection:
        assert catalog.get_model(connection, "tiny").model_dump(mode="json") == first
        assert catalog.get_dataset(connection, "digits").model_dump(mode="json") == added
    with pytest.raises(Conflict, match="another model named 'tiny'"):
        run_task("register", model={**spec, "init_seed": 1})


def test_what_does_not_work_leaves_nothing(run_task: RunTask, store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unexpected keyword"):
        run_task("register", model={"name": "bad", "architecture": "test_resnet", "kwargs": {"colour": 1}})
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no images"):
        run_task("register", dataset={"name": "bad", "source": "imagefolder", "location": str(tmp_path / "empty")})
    with store.read() as connection:
        assert catalog.model_names(connection) == catalog.dataset_names(connection) == []
