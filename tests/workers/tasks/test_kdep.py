"""The KDEP job: a student pre-trained from the catalog, published as a timm checkpoint, the same bits after a kill."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

from backend.domain.errors import BadInput, NotFound
from backend.domain.kdep import DownstreamResult, KdepResult
from backend.store import artifacts, catalog, tables
from backend.store.job_records import to_checkpoints
from backend.store.session import Store
from workers.inputs.models import build, hash_weights
from workers.lifecycle import Cancelled

RunTask = Callable[..., dict[str, Any]]
SMALL = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
PARAMS = {"epochs": 2, "batch_size": 16, "lr": 0.05, "loss_weight": 1.0, "views": 2, "augment": "crop", "seed": 3}
SPEC = {
    "teacher": "teacher",
    "student": "student",
    "dataset": "digits",
    "train_split": "train",
    "subset": {"limit": 48},
}


@pytest.fixture
def zoo(run_task: RunTask) -> RunTask:
    run_task("register", dataset={"name": "digits", "source": "digits"})
    run_task("register", model={"name": "teacher", "architecture": "test_efficientnet", "init_seed": 1, **SMALL})
    run_task("register", model={"name": "student", "architecture": "test_resnet", "init_seed": 2, **SMALL})
    return run_task


def _model(store: Store, name: str) -> Any:
    with store.read() as connection:
        return catalog.get_model(connection, name)


def test_a_student_is_distilled_saved_and_catalogued(zoo: RunTask, store: Store) -> None:
    result = zoo("kdep", **SPEC, params=PARAMS, save_as="small")
    facts = KdepResult.model_validate({key: value for key, value in result.items() if key != "provenance"})
    assert (facts.model, facts.student, facts.teacher, facts.n_samples, facts.steps) == (
        "small",
        "student",
        "teacher",
        48,
        6,
    )
    assert facts.loss_last < facts.loss_first
    (alignment,) = facts.alignments
    assert (alignment.teacher_width, alignment.student_width, alignment.expanded) == (256, 96, False)
    assert not facts.student_passes_through
    assert result["provenance"]["weights"].keys() == {"teacher", "student"}

    model = _model(store, "small")
    assert (model.lineage.kind, model.lineage.method, model.lineage.teachers) == ("kdep", "svd", ("teacher",))
    assert model.label_space is None, "its head has learnt nothing"
    module = build(model)
    assert hash_weights(module) == model.weights_hash == facts.weights_hash
    folder = artifacts.fetch(model.checkpoint).parent
    stock = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(stock(x), module(x))
    # The zoo's own student is as it was, its head came along, and its body has moved.
    before = build(_model(store, "student")).state_dict()
    after = module.state_dict()
    assert torch.equal(before["fc.weight"], after["fc.weight"])
    assert not torch.equal(before["layer4.0.conv1.weight"], after["layer4.0.conv1.weight"])


@pytest.mark.parametrize("stop", [2, 5])
def test_stopped_and_resumed_it_ends_in_the_same_bits(
    stop: int, zoo: RunTask, start: Callable[..., Any], store: Store
) -> None:
    from workers.tasks import kdep

    whole = zoo("kdep", **SPEC, params=PARAMS, save_as="whole")
    spec = {**SPEC, "params": PARAMS, "save_as": "resumed"}
    job = start("kdep", spec)
    record = job.record

    def record_then_stop(progress: Any) -> None:
        job.stop.cancel = progress.step == stop
        record(progress)

    job.record = record_then_stop
    with pytest.raises(Cancelled):
        kdep.run(job)
    again = start("kdep", spec)
    with store.read() as connection:
        row = connection.execute(tables.jobs.select().where(tables.jobs.c.id == job.id)).mappings().one()
    again.checkpoints = to_checkpoints(row["checkpoint"])
    assert again.checkpoints[0].step == stop
    resumed = kdep.run(again)
    assert resumed["steps"] == 6
    assert resumed["weights_hash"] == whole["weights_hash"]
    assert resumed["loss_last"] == whole["loss_last"]


@pytest.mark.parametrize(
    ("params", "classes"),
    [({"method": "logits"}, 7), ({"align": "overhaul"}, None), ({"views": None, "layers": 2}, None)],
)
def test_baselines_and_variants_run_as_jobs(
    params: dict[str, Any], classes: int | None, zoo: RunTask, store: Store
) -> None:
    if classes is not None:
        zoo("register", model={"name": "t7", "architecture": "test_resnet", "kwargs": {"num_classes": 7}, **SMALL})
    spec = {**SPEC, "teacher": "teacher" if classes is None else "t7"}
    result = zoo("kdep", **spec, params={**PARAMS, **params}, save_as="variant")
    assert result["steps"] == 6
    assert _model(store, "variant").num_classes == (1000 if classes is None else classes)


def test_the_supervised_baseline_learns_the_labels_without_a_teacher(zoo: RunTask, store: Store) -> None:
    params = {**PARAMS, "method": "supervised"}
    spec = {key: value for key, value in SPEC.items() if key != "teacher"}
    zoo("kdep", **spec, params=params, save_as="labelled")
    model = _model(store, "labelled")
    assert (model.num_classes, model.lineage.teachers, model.lineage.method) == (10, (), "supervised")
    assert build(model)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_downstream_sets_are_measured_in_the_same_job_and_a_resume_repeats_nothing(
    zoo: RunTask, start: Callable[..., Any], store: Store
) -> None:
    from workers.tasks import kdep

    settings = {"epochs": 1, "batch_size": 64, "lrs": [0.1, 0.01], "seeds": [0, 1, 2]}
    spec = {"student": "student", "dataset": "digits", "train_split": "train", "subset": {"limit": 48}}
    spec |= {"params": {"method": "none"}, "downstream": ["digits"], "downstream_params": settings}
    result = zoo("kdep", **spec, save_as="random")
    assert (result["steps"], result["loss_first"], result["teacher"]) == (0, None, None)
    measured = DownstreamResult.model_validate(result["downstream"])
    (entry,) = measured.sets
    assert (entry.dataset, measured.seeds, set(entry.validation)) == ("digits", (0, 1, 2), {"0.1", "0.01"})
    assert f"{entry.lr:g}" == max(entry.validation, key=lambda lr: entry.validation[lr])
    assert len(entry.test.values) == 3
    assert entry.test.low < entry.test.mean < entry.test.high
    assert build(_model(store, "random")).state_dict().keys() == build(_model(store, "student")).state_dict().keys()

    job = start("kdep", {**spec, "save_as": "again"})
    record = job.record

    def stop_at_the_third(progress: Any) -> None:
        job.stop.cancel = progress.step == 3 and progress.message is not None
        record(progress)

    job.record = stop_at_the_third
    with pytest.raises(Cancelled):
        kdep.run(job)
    again = start("kdep", {**spec, "save_as": "again"})
    with store.read() as connection:
        row = connection.execute(tables.jobs.select().where(tables.jobs.c.id == job.id)).mappings().one()
    again.checkpoints = to_checkpoints(row["checkpoint"])
    assert len(again.resume_state()["known"]) == 3
    assert {**kdep.run(again)["downstream"], "model": "random"} == result["downstream"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": None}, "teacher: method features needs one"),
        ({"teacher": "student"}, "cannot be its own teacher"),
        ({"params": {**PARAMS, "method": "supervised"}}, "supervised takes none"),
        ({"params": {**PARAMS, "align": "svg"}}, "align"),
        ({"params": {**PARAMS, "pts_temperature": 0}}, "pts_temperature"),
        ({"params": {**PARAMS, "align": "overhaul", "transform": "pts"}}, "takes transform none"),
        ({"unknown": 1}, "unknown"),
        ({"downstream": ["digits", "digits"]}, "named twice"),
        ({"downstream": [{"dataset": "digits", "validation_split": "train"}]}, "different splits"),
    ],
)
def test_bad_specs_are_refused_before_anything_runs(change: dict[str, Any], message: str, zoo: RunTask) -> None:
    with pytest.raises(BadInput, match=message):
        zoo("kdep", **{**SPEC, "params": PARAMS, **change})


def test_unknown_names_and_architectures_are_named(zoo: RunTask) -> None:
    with pytest.raises(NotFound, match="nobody"):
        zoo("kdep", **{**SPEC, "teacher": "nobody"}, params=PARAMS)
    zoo("register", model={"name": "fused", "architecture": "test_efficientnet_evos", **SMALL})
    with pytest.raises(BadInput, match="test_efficientnet_evos"):
        zoo("kdep", **{**SPEC, "teacher": "fused"}, params=PARAMS)
