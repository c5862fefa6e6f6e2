"""What pages ask about jobs."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from backend.domain.jobs import JobEvent
from backend.store import jobs
from dashboard.reads.jobs import once_a_step
from tests.services.driver import Driver

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def events(*steps):
    """Metric events at (attempt, step)."""
    return [
        JobEvent(id=i, job_id=UUID(int=1), type="metric", attempt=attempt, at=NOW, data={"step": step, "values": {}})
        for i, (attempt, step) in enumerate(steps)
    ]


@pytest.mark.parametrize(
    "steps, kept",
    [
        ([], []),
        ([(1, 1), (1, 2), (1, 2)], [1, 2, 2]),
        # The second attempt goes on from a checkpoint after step 2, the third from one after step 1.
        ([(1, 1), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5)], [1, 2, 3, 4, 5]),
        ([(1, 1), (1, 2), (1, 3), (2, 3), (2, 4), (3, 2)], [1, 2]),
    ],
)
def test_steps_that_were_done_again_count_once(steps, kept):
    assert [one["step"] for one in once_a_step(events(*steps))] == kept


def test_curves_grow_with_the_job(reads):
    driver = Driver(reads.store)
    id = driver.add_one()
    claim = driver.claimed()
    assert reads.metrics(id) == []
    for step in (1, 2):
        told = {"step": step, "values": {"loss": 1.0 / step}}
        with reads.store.write() as connection:
            jobs.add_events(connection, id, claim.fence, 1, [("metric", told)])
        assert [one["values"]["loss"] for one in reads.metrics(id)] == [1.0, 0.5][:step]


def transfer_result(delta):
    return {
        "student": "cnn_a",
        "dataset": "pets",
        "split": "val",
        "teacher_names": ["vit_a"],
        "method": "kl",
        "n_samples": 40,
        "n_classes": 4,
        **dict.fromkeys(("student_accuracy_after_low", "student_accuracy_after_high"), 0.5),
        **{f"transfer_delta{end}": delta for end in ("", "_low", "_high")},
        **{f"knowledge_gain{end}": 0.2 for end in ("", "_low", "_high")},
        **{f"knowledge_loss{end}": 0.1 for end in ("", "_low", "_high")},
        "student_accuracy_before": 0.5,
        "student_accuracy_after": 0.5 + delta,
        "teachers": {},
        "control_delta": 0.01,
        "delta_above_control": delta - 0.01,
        "transfer_rate": {"100": 0.5},
    }


def test_finished_transfers_are_read_once_and_new_ones_join_them(reads):
    driver = Driver(reads.store)
    spec = {"student": "cnn_a", "dataset": "pets", "teachers": ["vit_a"], "method": {"method": "kl", "seed": 0}}
    for delta in (0.1, 0.2):
        driver.add_one(kind="transfer", spec=spec)
        driver.publish(driver.claimed(), transfer_result(delta))
        assert delta in [row.transfer_delta for row in reads.transfer_rows()]
    rows = reads.transfer_rows("pets")
    assert [row.delta_above_control for row in rows] == pytest.approx([0.19, 0.09])
    assert reads.transfer_rows("elsewhere") == []
    assert set(reads.transfer_datasets().values()) == {"pets"}
    assert str(uuid4()) not in reads.transfer_datasets()
