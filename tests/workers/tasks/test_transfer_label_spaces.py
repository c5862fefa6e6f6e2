"""Teachers whose heads speak another label space: used where the registry knows both, refused where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.domain.errors import BadInput
from workers.inputs.label_spaces import class_keys

RunTask = Callable[..., dict[str, Any]]
MODEL = {"architecture": "test_vit", "input_size": [3, 32, 32], "crop_pct": 1.0}
METHOD = {"method": "kl_dp", "epochs": 1, "lr": 0.1, "augment": "none", "batch_size": 8}


@pytest.fixture
def run(run_task: RunTask, tmp_path: Path, sqlite_url: str) -> RunTask:
    """A data set of ImageNet folders (one that in12k does not have), a student and teachers."""
    from backend.store import migrate

    migrate.upgrade(sqlite_url)
    shared = set(class_keys("imagenet-12k"))
    ours = class_keys("imagenet-1k")
    missing = next(key for key in ours if key not in shared)
    folders = [*[key for key in ours if key in shared][:5], missing]
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in folders:
            place = tmp_path / "images" / split / folder
            place.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{number}.png")
    dataset = {"name": "d", "source": "imagefolder", "location": str(tmp_path / "images"), "label_space": "imagenet-1k"}
    run_task("register", dataset=dataset)
    for name, classes, space in (
        ("student", 1000, "imagenet-1k"),
        ("v2", 1000, "imagenet-v2"),
        ("broad", 11821, "imagenet-12k"),
        ("unnamed", 11821, None),
    ):
        kwargs = {"num_classes": classes, "img_size": 32}
        run_task("register", model={"name": name, "kwargs": kwargs, "label_space": space, **MODEL})
    return run_task


def test_a_teacher_of_another_space_teaches_what_both_express(run: RunTask) -> None:
    result = run(
        "transfer", teachers=["broad", "v2"], student="student", dataset="d", save=False,
        method={**METHOD, "multi": "parallel"}, control=False,
    )  # fmt: skip
    broad, same = result["teachers"]["broad"], result["teachers"]["v2"]
    assert (broad["n_classes_expressed"], broad["n_samples_expressed"]) == (993, 15)
    assert (same["n_classes_expressed"], same["n_samples_expressed"]) == (None, None)
    [said] = [text for text in result["warnings"] if text.startswith("broad")]
    assert "993 of the 1000 classes of imagenet-1k" in said
    assert "3 of 18 samples" in said
    cached = run(
        "transfer", teachers=["broad"], student="v2", dataset="d", save=False,
        method={**METHOD, "method": "kl", "views": 1}, control=False,
    )  # fmt: skip
    assert cached["teachers"]["broad"]["n_classes_expressed"] == 993
    assert cached["epochs"][0]["metrics"]["loss"] > 0


def test_a_space_that_is_not_named_is_not_guessed(run: RunTask) -> None:
    with pytest.raises(BadInput, match=r"teachers: 'unnamed'.*1000 classes.*it has 11821"):
        run("transfer", teachers=["unnamed"], student="student", dataset="d", method=METHOD, control=False)
    with pytest.raises(BadInput, match=r"student: 'broad'.*it has 11821"):
        run("transfer", teachers=["student"], student="broad", dataset="d", method=METHOD, control=False)
