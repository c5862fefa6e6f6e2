"""The ReMem job: from the catalog to a published pair, the same bits after a stop, clear errors."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

from backend.domain.errors import BadInput
from backend.domain.remem_results import RememResult
from backend.store import artifacts, catalog
from backend.store.job_reads import checkpoints_of
from backend.store.session import Store
from workers.inputs.models import build, hash_weights
from workers.lifecycle import Cancelled

RunTask = Callable[..., dict[str, Any]]
SMALL = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
PARAMS = {
    "settings": "baseline,both",
    "lr": 0.05,
    "steps": 8,
    "stop_points": [4, 8],
    "warmup_steps": 1,
    "batch_size": 32,
    "augment": "none",
    "student_lr": 0.05,
    "student_steps": 4,
    "student_warmup_steps": 1,
    "student_batch_size": 32,
    "student_augment": "none",
    "information_updates": 3,
    "information_images": 32,
    "information_batch_size": 16,
}
SPEC = {"model": "vit", "student": "net", "dataset": "digits", "subset": {"limit": 100}}


@pytest.fixture
def zoo(run_task: RunTask) -> RunTask:
    run_task("register", dataset={"name": "digits", "source": "digits"})
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    run_task("register", model={"name": "vit", "architecture": "vit_tiny_patch16_224", "kwargs": kwargs, **SMALL})
    run_task("register", model={"name": "net", "architecture": "test_resnet", "init_seed": 2, **SMALL})
    return run_task


def _model(store: Store, name: str) -> Any:
    with store.read() as connection:
        return catalog.get_model(connection, name)


def facts(result: dict[str, Any]) -> RememResult:
    return RememResult.model_validate({k: v for k, v in result.items() if k in RememResult.model_fields})


def test_the_chosen_pair_is_published(zoo: RunTask, store: Store) -> None:
    result = zoo("remem", **SPEC, params=PARAMS, save_as="small")
    found = facts(result)
    assert [teacher.setting for teacher in found.teachers] == ["baseline", "both"]
    assert (found.n_train, found.n_validation, found.metric) == (90, 10, "top1")
    assert len(found.plane) == 4
    assert any(point.on_front for point in found.plane)
    assert {row.setting: row.n_seeds for row in found.table} == {"baseline": 1, "both": 1}
    assert (result["published_student"], result["published_teacher"]) == ("small", "small-teacher")
    assert 0 <= result["fold_difference"] < 1e-3

    student, teacher = _model(store, "small"), _model(store, "small-teacher")
    assert (student.lineage.kind, student.lineage.method, student.lineage.teachers) == ("remem", "kd", ("vit",))
    assert teacher.lineage.method == found.teachers[found.best].setting
    for entry in (student, teacher):
        module = build(entry)
        assert hash_weights(module) == entry.weights_hash
        folder = artifacts.fetch(entry.checkpoint).parent
        stock = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(stock(x), module(x))
            assert stock(x).shape == (2, 10)


def test_stopped_and_resumed_it_finds_the_same(zoo: RunTask, start: Callable[..., Any], store: Store) -> None:
    from workers.tasks import remem

    whole = zoo("remem", **SPEC, params=PARAMS, save_as="whole")
    job, stop = start("remem", {**SPEC, "params": PARAMS, "save_as": "resumed"}), 25
    record = job.record

    def record_then_stop(progress: Any) -> None:
        job.stop.cancel = progress.step >= stop
        record(progress)

    job.record = record_then_stop
    with pytest.raises(Cancelled):
        remem.run(job)
    again = start("remem", {**SPEC, "params": PARAMS, "save_as": "resumed"})
    with store.read() as connection:
        again.checkpoints = checkpoints_of(connection, job.id)
    assert again.checkpoints
    steps = []
    record_again = again.record

    def record_and_note(progress: Any) -> None:
        steps.append(progress.step)
        record_again(progress)

    again.record = record_and_note
    resumed = remem.run(again)
    assert steps[0] >= stop
    again.publish(resumed)
    assert facts(resumed) == facts(whole)
    for name in ("", "-teacher"):
        assert _model(store, f"resumed{name}").weights_hash == _model(store, f"whole{name}").weights_hash


def test_a_teacher_alone_is_tuned_and_measured(zoo: RunTask, store: Store) -> None:
    params = {k: v for k, v in PARAMS.items() if not k.startswith("student_")}
    result = zoo("remem", model="vit", dataset="digits", subset={"limit": 100}, params=params, save_as="alone")
    found = facts(result)
    assert found.student is None
    assert found.table[0].student_accuracy is None
    assert (result["published_student"], result["published_teacher"]) == (None, "alone")
    assert _model(store, "alone").num_classes == 10


def test_an_adapted_teacher_is_not_exported(zoo: RunTask) -> None:
    params = {**PARAMS, "settings": "baseline", "tune": "adapters", "information": False}
    params = {k: v for k, v in params.items() if not k.startswith("information_")}
    result = zoo("remem", **SPEC, params=params, save_as="adapted")
    assert (result["published_student"], result["published_teacher"]) == ("adapted", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "train", "train_split": "train"}, "another split"),
        ({"model": "net2"}, "pre-norm"),
        ({"params": {**PARAMS, "mlp_weight": 3}}, "mlp_weight"),
    ],
)
def test_bad_input_is_told(change: dict[str, Any], message: str, zoo: RunTask) -> None:
    zoo("register", model={"name": "net2", "architecture": "test_resnet", "init_seed": 3, **SMALL})
    with pytest.raises(BadInput, match=message):
        zoo("remem", **{**SPEC, "params": PARAMS, **change})
