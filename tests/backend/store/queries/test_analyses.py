"""What was measured: the newest counts, only comparable models share a plane, runs come with their records."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from backend.domain.catalog import Family, Model
from backend.domain.datasets import Dataset, Split
from backend.domain.errors import NotFound
from backend.domain.evaluations import Evaluation
from backend.domain.kdep import KdepParams, KdepResult
from backend.domain.remem import StudentDistillation, TeacherTuning
from backend.domain.remem_protocol import information_plane, setting_table
from backend.domain.remem_results import InformationResult, RememResult, StudentScore, TeacherSnapshot, TunedTeacher
from backend.store import catalog, results
from backend.store.queries import analyses
from backend.store.session import Store
from tests.services.driver import Driver

ACCURACY = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}


@pytest.fixture
def measured(store: Store, driver: Driver) -> Driver:
    """Four models scored on one split; the first three have features of one size."""
    now = datetime.now(UTC)
    with store.write() as connection:
        split = Split(n_samples=10, fingerprint="f")
        catalog.add_dataset(
            connection,
            Dataset(
                id=uuid4(), name="d", source="external", class_names=("x", "y"), splits={"val": split}, created_at=now
            ),
        )
        for name, accuracy in ACCURACY.items():
            family = Family.CNN if name == "a" else Family.TRANSFORMER
            catalog.add_model(
                connection, Model(id=uuid4(), name=name, source="external", family=family, created_at=now)
            )
            results.record_evaluation(
                connection,
                Evaluation(
                    id=uuid4(),
                    model=name,
                    dataset="d",
                    split="val",
                    state="ready",
                    accuracy=accuracy,
                    n_samples=10,
                    created_at=now,
                ),
                key=name,
            )
    return driver


def analyse(driver: Driver, analysis: str, items: list[dict[str, Any]], split: str = "val") -> UUID:
    id = driver.add_one(
        kind="analysis", spec={"analysis": analysis, "dataset": "d", "models": [item["model"] for item in items]}
    )
    result = {"analysis": analysis, "dataset": "d", "split": split, "n_images": 10, "items": items}
    driver.publish(driver.claimed(), {**result, "sample_ids": {"3": "three.png"}, "failures": []})
    return id


def information(model: str, excess: float, width: int = 8, updates: int = 5) -> dict[str, Any]:
    return InformationResult(
        model=model,
        data="d/val",
        loss_nats=0.3 + excess,
        floor_nats=0.3,
        excess_nats=excess,
        feature_width=width,
        feature_grid=(2, 2),
        image_size=(8, 8),
        n_images=8,
        n_heldout=2,
        updates=updates,
        batch_size=4,
    ).model_dump(mode="json")


def transfer(driver: Driver, teachers: list[str], student: str, after: float, split: str = "val") -> None:
    driver.add_one(kind="transfer", spec={"dataset": "d", "teachers": teachers, "student": student})
    result = {"teacher_names": teachers, "student": student, "split": split, "student_accuracy_after": after}
    driver.publish(driver.claimed(), result)


def test_the_newest_result_of_a_model_counts(measured: Driver) -> None:
    def compactness(model: str, value: float) -> dict[str, Any]:
        numbers = {"between_scatter": value, "within_scatter": 1.0, "compactness": value}
        return {"model": model, "dataset": "d", "n_samples": 10, "n_classes": 2, **numbers}

    analyse(measured, "compactness", [compactness("a", 1.0), compactness("b", 2.0)])
    newer = analyse(measured, "compactness", [compactness("a", 3.0)])
    analyse(measured, "compactness", [compactness("a", 9.0)], split="train")
    logme = {"model": "c", "dataset": "d", "n_samples": 10, "n_classes": 2, "logme": 0.4}
    analyse(measured, "logme", [logme])
    failed = measured.add_one(kind="analysis", spec={"analysis": "compactness", "dataset": "d", "models": ["a"]})
    with measured.store.read() as connection:
        found = analyses.measured(connection, "compactness", dataset="d", split="val")
        assert {one.model: one.result.compactness for one in found} == {"a": 3.0, "b": 2.0}
        assert {one.job_id for one in found if one.model == "a"} == {newer}
        assert found[0].sample_ids == {"3": "three.png"}
        assert failed not in {one.job_id for one in found}
        assert len(analyses.measured(connection, "compactness")) == 3
        assert len(analyses.measured(connection, "compactness", model="b")) == 1
        assert analyses.measured(connection, "compactness", dataset="other") == []
        rows = {one.model: one for one in analyses.candidates(connection, "d", "val")}
    assert {name: (one.accuracy, one.compactness, one.logme) for name, one in rows.items()} == {
        "a": (0.9, 3.0, None),
        "b": (0.8, 2.0, None),
        "c": (0.7, None, 0.4),
    }
    assert rows["a"].family == "cnn"


def test_only_comparable_models_share_a_plane(measured: Driver) -> None:
    analyse(measured, "information", [information("a", 0.20), information("b", 0.10), information("d", 0.4, width=16)])
    analyse(measured, "information", [information("c", 0.30)])
    analyse(measured, "information", [information("c", 0.01, updates=50)])
    analyse(measured, "information", [information("gone", 0.01)])  # never scored: no error, no point
    # The student that most of the plane's models taught; the best of its transfers; others do not count.
    transfer(measured, ["a"], "s", 0.5)
    transfer(measured, ["a"], "s", 0.7)
    transfer(measured, ["b"], "s", 0.6)
    transfer(measured, ["c"], "other", 0.9)
    transfer(measured, ["a", "b"], "s", 0.99)
    transfer(measured, ["c"], "s", 0.99, split="test")
    with measured.store.read() as connection:
        planes = analyses.planes(connection)
    assert [sorted(one.model for one in plane.members) for plane in planes[:1]] == [["a", "b", "c"]]
    assert sorted(one.model for plane in planes[1:] for one in plane.members) == ["c", "d"]
    members = {one.model: one for one in planes[0].members}
    assert {name: round(one.teacher_error, 9) for name, one in members.items()} == {"a": 0.1, "b": 0.2, "c": 0.3}
    assert {name for name, one in members.items() if one.on_front} == {"a", "b"}
    assert {name: one.student_error for name, one in members.items()} == {
        "a": pytest.approx(0.3),
        "b": pytest.approx(0.4),
        "c": None,
    }
    assert {one.student for one in planes[0].members} == {"s", None}


def remem_result() -> RememResult:
    distillation = StudentDistillation(steps=10, warmup_steps=1)
    teachers = tuple(
        TunedTeacher(
            tuning=TeacherTuning(lr=0.01, rho=rho, steps=20, warmup_steps=1, stop_points=(10, 20)),
            setting="sam" if rho else "baseline",
            snapshots=tuple(
                TeacherSnapshot(
                    stop_point=stop,
                    validation_error=0.2,
                    test_error=0.2 + stop / 1000,
                    information=InformationResult.model_validate(information("a", 0.1 + rho + stop / 1000)),
                    students=(StudentScore(distillation=distillation, validation_error=0.3, test_error=0.3 - rho),),
                )
                for stop in (10, 20)
            ),
            best_stop_point=10,
            best_distillation=distillation,
        )
        for rho in (0.0, 0.05)
    )
    return RememResult(
        model="a",
        student="b",
        dataset="d",
        metric="top1",
        n_train=8,
        n_validation=2,
        n_test=10,
        teachers=teachers,
        table=setting_table(teachers),
        plane=information_plane(teachers),
        best=1,
    )


def test_runs_of_remem(measured: Driver) -> None:
    result = remem_result()
    id = measured.add_one(kind="remem", spec={"model": "a", "student": "b", "dataset": "d"})
    measured.publish(measured.claimed(), {**result.model_dump(mode="json"), "published_student": "b-remem"})
    other = measured.add_one()
    with measured.store.read() as connection:
        (run,) = analyses.remem_runs(connection)
        assert (run.job_id, run.subject) == (id, "a → b on d")
        found, rest = analyses.remem(connection, id)
        assert found == result
        assert rest == {"published_student": "b-remem"}
        for missing in (other, uuid4()):
            with pytest.raises(NotFound):
                analyses.remem(connection, missing)


def test_runs_of_kdep(measured: Driver) -> None:
    result = KdepResult(
        model="new",
        weights_hash="0" * 64,
        teacher="a",
        student="b",
        architecture="test_resnet",
        dataset="d",
        train_split="train",
        n_samples=10,
        params=KdepParams(),
        steps=3,
        loss_first=2.0,
        loss_last=1.0,
    )
    id = measured.add_one(kind="kdep", spec={"dataset": "d"})
    measured.publish(measured.claimed(), {**result.model_dump(mode="json"), "provenance": {"seed": 0}})
    with measured.store.read() as connection:
        assert [(run.job_id, found) for run, found in analyses.kdep_runs(connection)] == [(id, result)]
        assert len(analyses.kdep_runs(connection, "d")) == 1
        assert analyses.kdep_runs(connection, "elsewhere") == []
