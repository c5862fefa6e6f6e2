"""Transfer and fine-tuning jobs on digits: reports that can be counted again, students plain timm opens, exact resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from backend.domain.errors import BadInput, Conflict, NotFound
from backend.domain.transfers import TransferResult
from backend.settings import Settings
from backend.store import artifacts, catalog, tables
from backend.store.job_records import to_checkpoints
from backend.store.session import Store
from workers.inputs.models import build, hash_weights
from workers.lifecycle import Cancelled

RunTask = Callable[..., dict[str, Any]]
SMALL = {"kwargs": {"num_classes": 10}, "input_size": [3, 32, 32], "crop_pct": 1.0}
QUICK = {"epochs": 2, "lr": 0.02, "augment": "none", "batch_size": 32}
SET = {"dataset": "digits", "train_split": "transfer", "subset": {"limit": 96}}


@pytest.fixture
def settings(tmp_path: Path, digits_zoo: Path) -> Settings:
    """This test's own copy of the zoo."""
    shutil.copyfile(digits_zoo, tmp_path / "zoo.db")
    return Settings(data_dir=tmp_path / "data", database_url=f"sqlite:///{tmp_path / 'zoo.db'}")


@pytest.fixture
def zoo(run_task: RunTask) -> RunTask:
    """Runs jobs on the copy."""
    return run_task


def entry(store: Store, name: str) -> Any:
    with store.read() as connection:
        return catalog.get_model(connection, name)


def stored_predictions(store: Store, job_model: str) -> dict[str, np.ndarray]:
    job_id = entry(store, job_model).lineage.job_id
    with store.read() as connection:
        row = connection.execute(
            tables.artifacts.select().where(
                tables.artifacts.c.job_id == job_id, tables.artifacts.c.name == "predictions.npz"
            )
        ).one()
    with np.load(artifacts.fetch(row.uri, row.sha256)) as file:
        return dict(file)


def test_a_transfer_reports_what_its_predictions_say(zoo: RunTask, store: Store) -> None:
    result = zoo("transfer", teachers=["a"], student="b", method={"method": "kl_dp", **QUICK}, save_as="grafted", **SET)
    report = TransferResult.model_validate({key: result[key] for key in TransferResult.model_fields if key in result})
    told = stored_predictions(store, "grafted")
    label, before, after, teacher = told["label"], told["before"], told["after"], told["teacher:a"]
    assert len(label) == report.n_samples == 500
    gained, lost = (after == label) & (before != label), (before == label) & (after != label)
    assert report.knowledge_gain == gained.mean()
    assert report.knowledge_loss == lost.mean()
    assert report.transfer_delta == pytest.approx((after == label).mean() - (before == label).mean(), abs=1e-12)
    assert report.control_delta == pytest.approx(
        (told["control"] == label).mean() - (before == label).mean(), abs=1e-12
    )
    positive = (teacher == label) & (before != label)
    assert report.transfer_rate[100] == pytest.approx((positive & (after == label)).sum() / positive.sum())
    still = ((teacher == label) & (after != label)).mean()
    assert report.positive_flip_rate_delta == pytest.approx(still - positive.mean(), abs=1e-12)
    assert [epoch.epoch for epoch in report.epochs] == [1, 2]
    assert report.epochs[-1].transfer_delta == report.transfer_delta
    assert report.positive_flips_to_teacher == 1.0  # right where the student is wrong: a higher p[y] for the teacher
    assert 0 < report.positive_flip_rate_on_transfer_set < 1
    assert result["n_transfer_samples"] == 96

    # The student is a stock timm checkpoint, catalogued with its lineage, and is what was evaluated.
    model = entry(store, "grafted")
    assert (model.lineage.method, model.lineage.teachers, model.lineage.student) == ("kl_dp", ("a",), "b")
    assert hash_weights(build(model)) == model.weights_hash == result["weights_hash"]
    path = artifacts.fetch(model.checkpoint)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = build(model)(x)
        loaded = timm.create_model("test_resnet", num_classes=10, checkpoint_path=str(path)).eval()
        assert torch.equal(loaded(x), expected)
        assert torch.equal(timm.create_model(f"local-dir:{path.parent}", pretrained=True).eval()(x), expected)
    # A scan of the student finds the accuracy that the transfer reported.
    assert zoo("scan", models=["grafted", "b"], dataset="digits") is not None
    from backend.store import results

    with store.read() as connection:
        scanned = {
            one.model: one.evaluation.accuracy for one in results.current_evaluations(connection, "digits", "val")
        }
    assert scanned["grafted"] == pytest.approx(report.student_accuracy_after, abs=1e-9)
    assert scanned["b"] == pytest.approx(report.student_accuracy_before, abs=1e-9)


def test_the_student_in_the_zoo_is_left_alone(zoo: RunTask, store: Store) -> None:
    before = hash_weights(build(entry(store, "b")))
    zoo("transfer", teachers=["a"], student="b", method={"method": "kl", **QUICK}, control=False, **SET)
    assert hash_weights(build(entry(store, "b"))) == before == entry(store, "b").weights_hash


@pytest.mark.parametrize(
    ("method", "teachers"),
    [
        ({"method": "xe_kl"}, ["a"]),
        ({"method": "mcl", "tau": 0.5}, ["a"]),
        ({"method": "kl_dp", "partition": "unsupervised", "views": 1}, ["a"]),
        ({"method": "kl_dp", "multi": "parallel"}, ["a", "c"]),
        ({"method": "kl_dp", "multi": "soup", "views": 2}, ["a", "c"]),
        ({"method": "kl", "multi": "sequential", "teacher_order": "descending"}, ["a", "c"]),
        ({"method": "cd", "views": 1}, ["a"]),
        ({"method": "crd", "negatives": 16, "feature_dim": 8}, ["a"]),
        ({"method": "topk_kl", "k": 3}, ["a"]),
        ({"method": "soft_ce"}, ["a"]),
        ({"method": "label_smoothing"}, []),
        ({"method": "self_kl"}, []),
        ({"method": "ce"}, []),
    ],
    ids=lambda value: value["method"] + value.get("multi", "") if isinstance(value, dict) else "",
)
@pytest.mark.slow
def test_every_method_runs_as_a_job(method: dict[str, Any], teachers: list[str], zoo: RunTask) -> None:
    result = zoo(
        "transfer",
        teachers=teachers,
        student="b",
        method={**QUICK, "epochs": 1, **method},
        control=False,
        save=False,
        **SET,
    )
    assert result["teacher_names"] == teachers
    assert -1 < result["transfer_delta"] < 1
    assert result["model"] is None
    assert len(result["epochs"]) == (2 if method.get("multi") in ("soup", "sequential") else 1)


@pytest.mark.parametrize("stop", [2, 4, 8])
def test_stopped_and_resumed_it_ends_in_the_same_bits(
    stop: int, zoo: RunTask, start: Callable[..., Any], store: Store
) -> None:
    """In the control, in the first and in the second teacher's turn; nothing finished is done again."""
    from workers.tasks import transfer

    spec = {
        "teachers": ["a", "c"],
        "student": "b",
        "method": {"method": "kl_dp", **{**QUICK, "epochs": 1}},
        "save_as": "whole",
        **SET,
    }
    whole = zoo("transfer", **spec)
    spec["save_as"] = "resumed"
    job = start("transfer", spec)
    record = job.record

    def record_then_stop(progress: Any) -> None:
        job.stop.cancel = progress.step == stop
        record(progress)

    job.record = record_then_stop
    with pytest.raises(Cancelled):
        transfer.run(job)
    again = start("transfer", spec)
    with store.read() as connection:
        row = connection.execute(tables.jobs.select().where(tables.jobs.c.id == job.id)).mappings().one()
    again.checkpoints = to_checkpoints(row["checkpoint"])
    assert again.checkpoints[0].step == stop
    second = again.record
    resumed_steps: list[int] = []
    again.record = lambda progress: (resumed_steps.append(progress.step), second(progress))
    resumed = transfer.run(again)
    assert resumed_steps[0] == stop + 1
    for key in ("weights_hash", "transfer_delta", "control_delta", "epochs", "positive_flips_to_teacher"):
        assert resumed[key] == whole[key]


def test_finetuning_gives_a_head_of_the_right_size_and_leaves_the_body_when_told(zoo: RunTask, store: Store) -> None:
    zoo(
        "register", model={"name": "thousand", "architecture": "test_resnet", "init_seed": 5, **{**SMALL, "kwargs": {}}}
    )
    result = zoo(
        "finetune",
        model="thousand",
        dataset="digits",
        tune="head",
        params={**QUICK, "epochs": 8, "lr": 1.0},
        save_as="headed",
    )
    model = entry(store, "headed")
    assert (model.num_classes, model.kwargs["num_classes"]) == (10, 10)
    before, after = build(entry(store, "thousand")).state_dict(), build(model).state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if not key.startswith("fc."))
    assert not torch.equal(after["fc.weight"], before["fc.weight"][:10])
    assert result["steps"] == 8 * 29


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "nobody"}, "nobody"),
        ({"teachers": []}, "needs at least one teacher"),
        ({"teachers": ["b"]}, "own teacher"),
        ({"teachers": ["a", "a"]}, "named twice"),
        ({"method": "kl_pd"}, "kl_dp"),
        ({"method": {"method": "kl_dp", "lr": -1}}, "lr"),
        ({"method": {"method": "kl_dp", "lr": 1e9}}, "lr"),
        ({"method": {"method": "kl_dp", "epochs": True}}, "epochs"),
        ({"method": {"method": "kl_dp", "partitions": 1}}, "partition"),
        ({"split": "nowhere"}, "nowhere"),
        ({"dataset": "mnist"}, "mnist"),
        ({"subset": {"limit": 0}}, "limit"),
        ({"labelled": False}, "unsupervised"),
        ({"save_as": "with space"}, "save_as"),
        ({"save_as": "c"}, "there is a model named 'c'"),
    ],
)
def test_bad_input_is_refused_and_named(change: dict[str, Any], message: str, zoo: RunTask, store: Store) -> None:
    spec = {"teachers": ["a"], "student": "b", "method": {"method": "kl_dp", **QUICK}, **SET}
    with store.read() as connection:
        names = catalog.model_names(connection)
    with pytest.raises((BadInput, NotFound, Conflict), match=message):
        zoo("transfer", **{**spec, **change})
    with store.read() as connection:
        assert catalog.model_names(connection) == names


def test_a_head_of_other_classes_is_refused_with_the_way_out(zoo: RunTask) -> None:
    zoo("register", model={"name": "thousand", "architecture": "test_resnet", **{**SMALL, "kwargs": {}}})
    with pytest.raises(BadInput, match="zoograft finetune --model thousand --dataset digits"):
        zoo("transfer", teachers=["thousand"], student="b", method={"method": "kl", **QUICK}, **SET)


def test_a_model_of_other_classes_of_the_same_number_is_refused(
    zoo: RunTask, tmp_path: Path, settings: Settings
) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 10
    names = np.array([f"animal {i}" for i in range(10)])
    np.savez(
        tmp_path / "d.npz",
        train_images=images,
        train_labels=labels,
        val_images=images,
        val_labels=labels,
        class_names=names,
    )
    zoo("register", dataset={"name": "animals", "source": "npz", "location": str(tmp_path / "d.npz")})
    with pytest.raises(BadInput, match=r"student: 'b'.*trained on 'digits', whose class 0 is '0' and not 'animal 0'"):
        zoo("transfer", teachers=["a"], student="b", method={"method": "kl", **QUICK}, dataset="animals")
