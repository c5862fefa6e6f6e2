"""Downstream sets of a KDEP job: segmentation and detection from folders, beside classification, and alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.domain.downstream import DownstreamResult
from backend.domain.errors import BadInput, MissingExtra
from backend.store import tables
from backend.store.job_records import to_checkpoints
from backend.store.session import Store
from workers.lifecycle import Cancelled
from workers.science.kdep.detection import torchvision_operators

RunTask = Callable[..., dict[str, Any]]
SMALL = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
QUICK = {"epochs": 1, "batch_size": 4, "lrs": [0.1], "seeds": [0, 1, 2]}
NONE = {"student": "student", "dataset": "digits", "params": {"method": "none"}}


@pytest.fixture
def zoo(run_task: RunTask) -> RunTask:
    run_task("register", dataset={"name": "digits", "source": "digits"})
    run_task("register", model={"name": "student", "architecture": "test_resnet", "init_seed": 2, **SMALL})
    return run_task


def _squares(root: Path, split: str, n: int) -> list[tuple[int, int]]:
    """Pictures of 40 × 32 pixels with a square of 12, their masks, and where the squares are."""
    corners = []
    for i in range(n):
        top, left = (int(x) for x in np.random.default_rng([len(split), i]).integers(0, 20, 2))
        pixels, mask = np.zeros((32, 40, 3), np.uint8), np.zeros((32, 40), np.uint8)
        pixels[top : top + 12, left : left + 12], mask[top : top + 12, left : left + 12] = 255, 1
        for kind, content in (("images", pixels), ("masks", mask)):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(root / split / kind / f"{i}.png")
        corners.append((top, left))
    return corners


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    root = tmp_path / "squares"
    root.mkdir()
    (root / "classes.txt").write_text("ground\nsquare\n")
    for split, n in (("train", 12), ("test", 4)):
        boxes = [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [left, top, 12, 12]}
            for i, (top, left) in enumerate(_squares(root, split, n))
        ]
        images = [{"id": i, "file_name": f"{i}.png"} for i in range(n)]
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def test_a_new_student_is_measured_on_masks_beside_labels(zoo: RunTask, squares: Path) -> None:
    zoo("register", model={"name": "teacher", "architecture": "test_efficientnet", "init_seed": 1, **SMALL})
    params = {"epochs": 1, "batch_size": 16, "lr": 0.05, "loss_weight": 1.0, "views": 1, "augment": "crop"}
    downstream = ["digits", f"segmentation:{squares}"]
    spec = {**NONE, "teacher": "teacher", "params": params, "subset": {"limit": 32}, "downstream": downstream}
    result = zoo("kdep", **spec, downstream_params={**QUICK, "batch_size": 64}, save_as="new")
    measured = DownstreamResult.model_validate(result["downstream"])
    digits, masks = measured.sets
    assert (digits.task, masks.task, masks.dataset, masks.metric) == (
        "classification",
        "segmentation",
        "squares",
        "miou",
    )
    assert 0 < masks.test.mean < 1
    assert len(masks.test.values) == 3
    assert measured.average == digits.test, "accuracy and mIoU have no common mean"


def test_a_catalogued_student_is_measured_alone_and_a_resume_repeats_nothing(
    zoo: RunTask, squares: Path, start: Callable[..., Any], store: Store
) -> None:
    from workers.tasks import kdep

    settings = {**QUICK, "epochs": 16, "stages": 4, "size": 32}
    spec = {**NONE, "downstream": [f"segmentation:{squares}"], "downstream_params": settings}
    result = zoo("kdep", **spec, save_as="alone")
    (found,) = DownstreamResult.model_validate(result["downstream"]).sets
    assert found.test.mean > 0.5
    assert result["steps"] == 0

    job = start("kdep", {**spec, "save_as": "again"})
    record = job.record

    def stop_at_the_second(progress: Any) -> None:
        job.stop.cancel = progress.step == 2 and progress.message is not None
        record(progress)

    job.record = stop_at_the_second
    with pytest.raises(Cancelled):
        kdep.run(job)
    again = start("kdep", {**spec, "save_as": "again"})
    with store.read() as connection:
        row = connection.execute(tables.jobs.select().where(tables.jobs.c.id == job.id)).mappings().one()
    again.checkpoints = to_checkpoints(row["checkpoint"])
    assert len(again.resume_state()["known"]) == 2
    assert {**kdep.run(again)["downstream"], "model": "alone"} == result["downstream"]


def test_a_student_is_measured_on_boxes(zoo: RunTask, squares: Path) -> None:
    try:
        torchvision_operators()
    except MissingExtra as error:
        pytest.skip(str(error))
    source = {"task": "detection", "location": str(squares), "metric": "ap50", "validation_share": 0.67}
    result = zoo("kdep", **NONE, downstream=[source], downstream_params={**QUICK, "size": 32}, save_as="boxed")
    (found,) = DownstreamResult.model_validate(result["downstream"]).sets
    assert (found.dataset, found.task, found.metric) == ("squares", "detection", "ap50")
    assert found.others.keys() == {"ap", "ap50", "ap75"}
    assert all(0 <= one.mean <= 1 for one in found.others.values())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"location": "missing"}, "existing file or folder"),
        ({"location": "squares/classes.txt"}, "a folder"),
        ({"location": "squares", "test_split": "train"}, "different splits"),
        ({"location": "squares", "train_split": "val"}, "a split of 'squares', which has test, train"),
        ({"location": "squares", "validation_split": "test"}, "different splits"),
        ({"location": "squares", "task": "detection", "train_split": "x"}, "a split of 'squares'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    source: dict[str, Any], message: str, zoo: RunTask, squares: Path
) -> None:
    found = {
        "task": "segmentation",
        "dataset": "squares",
        **source,
        "location": str(squares.parent / source["location"]),
    }
    with pytest.raises(BadInput, match=message):
        zoo("kdep", **NONE, downstream=[found], downstream_params=QUICK)


def test_unknown_ids_and_students_without_feature_maps_are_named(zoo: RunTask, squares: Path) -> None:
    shape = {"input_size": [1, 32, 32], "mean": [0.5], "std": [0.5]}
    zoo("register", model={"name": "grey", "architecture": "test_resnet", "kwargs": {"in_chans": 1}, **shape})
    spec = {**NONE, "downstream": [f"segmentation:{squares}"], "downstream_params": QUICK}
    with pytest.raises(BadInput, match=r"grey.*timm model of colour images"):
        zoo("kdep", **{**spec, "student": "grey"})
    Image.fromarray(np.full((32, 40), 9, np.uint8)).save(squares / "train" / "masks" / "3.png")
    with pytest.raises(BadInput, match="this mask has 9"):
        zoo("kdep", **spec)
