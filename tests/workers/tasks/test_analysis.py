"""Analyses as jobs: a record a model, reasons for those that cannot be measured, nothing measured twice."""

from collections.abc import Callable
from typing import Any, get_args

import pytest

from backend.domain.analyses import PARAMS, AnalysisName
from backend.domain.errors import BadInput
from backend.domain.kdep import CompactnessResult, EmbeddingResult, LogmeResult
from backend.domain.remem_results import CriticalityResult, ExpertnessResult, InformationResult
from backend.store.job_reads import checkpoints_of
from backend.store.session import Store
from workers.lifecycle import Cancelled
from workers.tasks.analysis import MEASUREMENTS

RunTask = Callable[..., dict[str, Any]]
SMALL = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
BASE = {"dataset": "digits", "subset": {"limit": 40}}
INFORMATION = {"updates": 6, "batch_size": 8}


@pytest.fixture
def zoo(run_task: RunTask) -> RunTask:
    run_task("register", dataset={"name": "digits", "source": "digits"})
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    for name in ("vit-a", "vit-b"):
        seed = 1 + (name == "vit-b")
        model = {"name": name, "architecture": "vit_tiny_patch16_224", "kwargs": kwargs, "init_seed": seed, **SMALL}
        run_task("register", model=model)
    run_task("register", model={"name": "net", "architecture": "test_resnet", "kwargs": {"num_classes": 10}, **SMALL})
    return run_task


def test_every_analysis_has_params_and_a_measurement() -> None:
    assert set(get_args(AnalysisName)) == set(PARAMS) == set(MEASUREMENTS)


@pytest.mark.parametrize(
    ("analysis", "record", "params"),
    [
        ("expertness", ExpertnessResult, {}),
        ("information", InformationResult, INFORMATION),
        ("compactness", CompactnessResult, {}),
        ("logme", LogmeResult, {}),
        ("embedding", EmbeddingResult, {"images": 40}),
    ],
)
def test_a_record_for_each_model(analysis: str, record: Any, params: dict[str, Any], zoo: RunTask) -> None:
    result = zoo("analysis", analysis=analysis, models=["vit-*"], params=params, **BASE)
    items = [record.model_validate(item) for item in result["items"]]
    assert [item.model for item in items] == ["vit-a", "vit-b"]
    assert items[0] != items[1]
    assert result["failures"] == []
    assert result["n_images"] == 40
    if analysis == "information":
        assert items[0].n_heldout == 8
        assert not items[0].differences(items[1])


def test_critical_neurons_come_with_their_images_and_pictures(zoo: RunTask) -> None:
    params = {
        "images": 6,
        "blocks": [1],
        "candidates": 8,
        "top_neurons": 2,
        "top_images": 2,
        "pictures": 1,
        "picture_steps": 2,
    }
    result = zoo("analysis", analysis="criticality", models=["vit-a"], params=params, **BASE)
    found = CriticalityResult.model_validate(result["items"][0])
    indices = {str(image.index) for neuron in found.blocks[0].neurons for image in neuron.images}
    assert indices == set(result["sample_ids"])
    assert result["n_images"] == 6


def test_models_that_cannot_be_measured_say_why(zoo: RunTask) -> None:
    result = zoo("analysis", analysis="expertness", models=["net", "vit-a"], **BASE)
    assert [item["model"] for item in result["items"]] == ["vit-a"]
    assert [failure["model"] for failure in result["failures"]] == ["net"]
    assert "MLP blocks" in result["failures"][0]["message"]
    with pytest.raises(BadInput, match="MLP blocks"):
        zoo("analysis", analysis="expertness", models=["net"], **BASE)


def test_a_stopped_analysis_goes_on(zoo: RunTask, start: Callable[..., Any], store: Store) -> None:
    from workers.tasks import analysis

    spec = {"analysis": "information", "models": ["vit-*"], "params": INFORMATION, **BASE}
    whole = zoo("analysis", **spec)
    job = start("analysis", spec)
    record = job.record

    def record_then_stop(progress: Any) -> None:
        job.stop.cancel = progress.step > 1500
        record(progress)

    job.record = record_then_stop
    with pytest.raises(Cancelled):
        analysis.run(job)
    again = start("analysis", spec)
    with store.read() as connection:
        again.checkpoints = checkpoints_of(connection, job.id)
    steps = []
    again.record = lambda progress: steps.append(progress.step)
    resumed = analysis.run(again)
    assert min(steps) > 1000
    assert resumed["items"] == whole["items"]
