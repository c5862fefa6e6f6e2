"""Study files are read strictly, made models are not made again, and the table counts what finished."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from backend import studies
from backend.domain.catalog import Lineage, Model, Preprocessing
from backend.domain.datasets import Dataset, Split
from backend.domain.errors import BadInput, Conflict, NotFound
from backend.domain.jobs import Cause
from backend.settings import Settings
from backend.store import catalog, job_reads, jobs
from backend.store.job_records import new_id
from backend.store.session import Store
from backend.submission import retry, submit
from tests.services.driver import Driver

STUDY: dict[str, Any] = {
    "name": "s",
    "dataset": "d",
    "models": ["a", "b"],
    "methods": ["kl", "kl_dp"],
    "scan": False,
    "controls": False,
}


@pytest.fixture
def store(sqlite_url: str, tmp_path: Path) -> Any:
    opened = Store.open(sqlite_url, settings=Settings(data_dir=tmp_path))
    with opened.write() as connection:
        for name in ("a", "b"):
            catalog.add_model(connection, model(name))
        split = Split(n_samples=10, fingerprint="f")
        catalog.add_dataset(
            connection,
            Dataset(
                id=uuid4(),
                name="d",
                source="digits",
                class_names=("0", "1"),
                splits={"train": split, "val": split},
                created_at=datetime.now(UTC),
            ),
        )
    yield opened
    opened.close()


def model(name: str, **changes: Any) -> Model:
    values = {
        "id": uuid4(),
        "name": name,
        "source": "timm",
        "architecture": "test_resnet",
        "num_classes": 2,
        "preprocessing": Preprocessing(),
        "created_at": datetime.now(UTC),
    }
    return Model.model_validate({**values, **changes})


def result(delta: float, teachers: list[str], student: str) -> dict[str, Any]:
    return {
        "teacher_names": teachers,
        "teachers": {name: {"teacher_accuracy": 0.4, "positive_flip_rate_before": 0.1} for name in teachers},
        "method": "kl",
        "student": student,
        "n_samples": 10,
        "student_accuracy_before": 0.5,
        "student_accuracy_after": 0.5 + delta,
        "transfer_delta": delta,
        "knowledge_gain": max(delta, 0.0),
        "knowledge_loss": max(-delta, 0.0),
    }


def work(store: Store, outcome: Callable[[dict[str, Any]], float | None]) -> None:
    """Finish every queued transfer: with this Δ, or as a failure where it is None."""
    driver = Driver(store)
    while (claim := driver.claim()) is not None:
        spec = claim.job.spec
        delta = outcome(spec)
        if delta is None:
            driver.fail(claim, Cause.BAD_INPUT, "no")
        else:
            driver.publish(claim, result(delta, spec["teachers"], spec["student"]))


def test_the_table_counts_finished_failed_and_open(store: Store, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    job = submit(store, settings, "study", STUDY).job
    with store.read() as connection:
        assert studies.study_table(connection, job.id).n_open == 4
    work(store, lambda spec: None if spec["student"] == "b" else 0.1 if spec["method"]["method"] == "kl_dp" else -0.1)
    with store.read() as connection:
        table = studies.study_table(connection, job.id)
        assert job_reads.get(connection, job.id).state == "failed"
    assert (table.n_failed, table.n_open, len(table.rows)) == (2, 0, 2)
    assert {one.label: one.success_rate for one in table.methods} == {"kl": 0.0, "kl_dp": 1.0}
    assert table.differences[0].success_rate_difference == 1.0

    # Trying it again runs what failed, and the table of the new try has the rows of the old one too.
    again = retry(store, settings, job.id)
    work(store, lambda spec: 0.2)
    with store.read() as connection:
        assert len(job_reads.children_of(connection, again.id)) == 2
        table = studies.study_table(connection, again.id)
    assert (table.n_failed, table.n_open, len(table.rows)) == (0, 0, 4)


def test_a_job_that_is_no_study_is_named(store: Store, tmp_path: Path) -> None:
    job = submit(store, Settings(data_dir=tmp_path), "sleep", {"steps": 1}).job
    with store.read() as connection, pytest.raises(NotFound, match="sleep"):
        studies.study_table(connection, job.id)


def test_models_made_by_the_same_training_are_used_again(store: Store, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    zoo = [{"name": name, "architecture": "test_resnet", "train": {"epochs": 1}} for name in ("x", "y")]
    study = {**STUDY, "models": [], "zoo": zoo}
    job = submit(store, settings, "study", study).job
    with store.read() as connection:
        children = job_reads.children_of(connection, job.id)
    makers = {child.spec["save_as"]: child for child in children if child.kind == "finetune"}
    assert set(makers) == {"x", "y"}
    with store.write() as connection:
        for name, child in makers.items():
            lineage = Lineage(job_id=child.id, kind="finetune", student=f"{name}-init", dataset="d")
            catalog.add_model(connection, model(name, lineage=lineage))
    with store.read() as connection:
        kinds = {child.kind for child in studies.children_to_run(connection, studies.parse(study))}
        assert kinds == {"transfer"}
        changed = {**study, "zoo": [{**one, "train": {"epochs": 2}} for one in zoo]}
        with pytest.raises(Conflict, match="another model named 'x'"):
            studies.children_to_run(connection, studies.parse(changed))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "YAML"),
        ("- just\n- a list\n", "mapping"),
        ("name: s\n", "study.dataset"),
        ("{name: s, dataset: d, models: [a, b], methods: [kl], epochs: 3}", "epochs"),
        ("{name: s, dataset: d, models: [a, b], methods: [{method: kl, lr: many}]}", "lr"),
        ("!!python/object/apply:os.system ['true']", "YAML"),
    ],
)
def test_a_bad_file_is_refused_with_the_field(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        studies.load(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(BadInput, match="1000000 bytes"):
        studies.load(path)


def test_a_study_of_pairs_has_their_flips_and_top_classes(zoo: Store, settings: Settings, tmp_path: Path) -> None:
    spec = studies.parse(
        {"name": "p", "dataset": "golden", "models": ["student", "teacher", "after"], "pairs": [["teacher", "student"]]}
    )
    child = studies.plan_study(spec)[0]
    assert child.kind == "scan"
    with zoo.read() as connection:
        table = studies._with_pairs(connection, spec, studies.summarise([]))
    assert [(pair.teacher, pair.positive_flip_rate) for pair in table.pairs] == [("teacher", 0.5)]
    assert table.pair_summary is not None
    assert (table.pair_summary.n_pairs, table.pair_summary.n_missing) == (1, 0)
    assert table.pair_summary.positive_flip_rate_min == 0.5

    everything = spec.model_copy(update={"pairs": "all", "models": (*spec.models, "nobody")})
    with zoo.read() as connection:
        wider = studies._with_pairs(connection, everything, studies.summarise([]))
    assert (len(wider.pairs), wider.pair_summary and wider.pair_summary.n_missing) == (6, 6)
    assert [(pair.teacher, pair.student) for pair in wider.pairs][:2] == [("teacher", "student"), ("after", "student")]

    job = add_study(zoo, spec)
    tops = list(studies.study_top_classes(zoo, settings, job, (20, 100)))
    assert [(one["teacher"], one["p"], one["n_classes"], one["n_flips"]) for one in tops] == [
        ("teacher", 20.0, 1, 3),
        ("teacher", 100.0, 3, 6),
    ]


def add_study(store: Store, spec: Any) -> Any:
    """The row of a study without children."""
    job = new_id()
    with store.write() as connection:
        jobs.add(connection, [jobs.NewJob("study", "cpu", spec.model_dump(mode="json", exclude={"kind"}), job)])
    return job
