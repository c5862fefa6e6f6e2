"""A transfer that is stopped exactly between two of its stages: what it keeps there is the end of the first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.settings import Settings
from backend.store import jobs
from backend.store.job_reads import checkpoints_of
from backend.store.session import Store
from workers.lifecycle import Drained

RunTask = Callable[..., dict[str, Any]]
EPOCH_STEPS = 3
SPEC = {
    "teachers": ["a", "c"],
    "student": "b",
    "method": {"method": "kl_dp", "epochs": 1, "lr": 0.02, "augment": "none", "batch_size": 32, "views": 1},
    **{"dataset": "digits", "train_split": "transfer", "subset": {"limit": 32 * EPOCH_STEPS}},
}
SAME = ("weights_hash", "transfer_delta", "control_delta", "epochs", "positive_flips_to_teacher", "knowledge_gain")


@pytest.fixture
def settings(tmp_path: Path, digits_zoo: Path) -> Settings:
    shutil.copyfile(digits_zoo, tmp_path / "zoo.db")
    return Settings(data_dir=tmp_path / "data", database_url=f"sqlite:///{tmp_path / 'zoo.db'}")


@pytest.mark.parametrize("finished", [1, 2])
def test_stopped_between_two_stages_it_ends_in_the_same_bits(
    finished: int, run_task: RunTask, start: Callable[..., Any], store: Store, settings: Settings
) -> None:
    """After the control, and after the first teacher's turn: while the next stage's frozen outputs are computed."""
    from workers.tasks import transfer

    whole = run_task("transfer", **SPEC, save_as="whole")
    shutil.rmtree(settings.data_dir / "cache" / "outputs")
    job = start("transfer", {**SPEC, "save_as": "resumed"})
    stages = transfer.plan(job.spec, dict.fromkeys(SPEC["teachers"], 0.5))
    assert [stage.name for stage in stages] == ["control", "from a", "from c"]
    record, last = job.record, sum(stage.params.epochs for stage in stages[:finished]) * EPOCH_STEPS

    def record_then_ask(progress: Any) -> None:
        record(progress)
        job.stop.drain = progress.step == last  # seen by nobody before the next stage begins

    job.record = record_then_ask
    with pytest.raises(Drained):
        transfer.run(job)
    with store.write() as connection:
        jobs.release(connection, job.id, job.fence)
    with store.read() as connection:
        kept = checkpoints_of(connection, job.id)
    assert kept[0].step == last

    again = start("transfer", {**SPEC, "save_as": "resumed"})
    again.checkpoints = kept
    assert len(again.resume_state()["finished"]) == finished - 1, "the stage before it, and its own training at its end"
    second, steps = again.record, []
    again.record = lambda progress: (steps.append(progress.step), second(progress))
    resumed = transfer.run(again)
    assert steps[0] == last + 1
    assert {key: resumed[key] for key in SAME} == {key: whole[key] for key in SAME}
