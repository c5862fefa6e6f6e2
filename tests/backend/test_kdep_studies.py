"""A KDEP study through the store: submitted as a tree, its table gathered from its children's results."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from backend.cli.study_table import print_study, write_rows
from backend.domain.errors import BadInput, Conflict, NotFound
from backend.domain.kdep_studies import KdepRow, is_kdep_study, plan_kdep_study, summarise_kdep
from backend.kdep_studies import kdep_study_table, parse_kdep_study, submit_kdep_study
from backend.settings import Settings
from backend.store import job_reads, jobs
from backend.store.session import Store
from backend.studies import load, study_table
from backend.submission import submit

CONTENT = {
    "study": "kdep",
    "name": "small",
    "student": {"name": "tiny", "architecture": "test_resnet"},
    "datasets": [{"name": "digits", "source": "digits"}],
    "dataset": "digits",
    "methods": [{"label": "supervised", "method": "supervised"}, {"label": "random", "method": "none"}],
    "seeds": [0, 1],
    "downstream": ["digits"],
}


@pytest.fixture
def store(tmp_path: Path, sqlite_url: str):
    settings = Settings(data_dir=tmp_path / "data", database_url=sqlite_url)
    opened = Store.open(settings.database, settings=settings)
    yield opened, settings
    opened.close()


def test_a_study_is_a_tree_and_its_table_follows_its_children(store: tuple[Store, Settings]) -> None:
    opened, settings = store
    assert is_kdep_study(CONTENT)
    assert not is_kdep_study({"name": "x"})
    spec = parse_kdep_study(CONTENT)
    study = submit(opened, settings, "study", CONTENT, idempotency_key="once").job
    assert submit(opened, settings, "study", spec, idempotency_key="once").job.id == study.id
    with opened.read() as connection:
        children = job_reads.children_of(connection, study.id)
        assert sorted(child.kind for child in children) == ["kdep"] * 4 + ["register"] * 3
        assert parse_kdep_study(jobs.get(connection, study.id).spec) == spec
        assert kdep_study_table(connection, study.id).n_open == 4
    scores = {("supervised", 0): 0.8, ("supervised", 1): 0.7, ("none", 0): 0.5, ("none", 1): 0.6}
    for _ in children:
        with opened.write() as connection:
            claim = jobs.claim(connection, worker="w", host="h", lease_s=60)
            assert claim is not None
            result: dict = {}
            if claim.job.kind == "kdep":
                params = claim.job.spec["params"]
                mean = scores[params["method"], params["seed"]]
                sets = [{"dataset": "digits", "lr": 0.1, "test": {"mean": mean}}]
                result = {"teacher": None, "n_samples": 3, "downstream": {"average": {"mean": mean}, "sets": sets}}
            jobs.succeed(connection, claim.job.id, claim.fence, result, [])
    with opened.read() as connection:
        table = study_table(connection, study.id)
        with pytest.raises(NotFound, match="register"):
            kdep_study_table(connection, children[0].id)
    assert {one.label: one.average.mean for one in table.summaries} == pytest.approx(
        {"supervised": 0.75, "random": 0.55}
    )
    assert table.differences[0].difference.values == pytest.approx((0.3, 0.1))
    assert (table.n_open, table.n_failed) == (0, 0)


@pytest.mark.parametrize(("name", "n_jobs"), [("cifar10", 15), ("imagenet", 39), ("tiny", 4)])
def test_the_examples_are_studies(name: str, n_jobs: int) -> None:
    spec = load(Path(__file__).parents[2] / "examples" / "kdep" / f"{name}.yaml")
    assert is_kdep_study(spec)
    assert sum(job.kind == "kdep" for job in plan_kdep_study(spec)) == n_jobs


def test_the_table_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def row(label: str, seed: int, score: float) -> KdepRow:
        where = {"teacher": None, "share": 1.0, "epochs": 2, "n_samples": 9, "images_seen": 18, "lrs": {"birds": 0.1}}
        return KdepRow(job_id="j", method=label, label=label, seed=seed, average=score, sets={"birds": score}, **where)

    table = summarise_kdep([row("a", 0, 0.6), row("a", 1, 0.7), row("b", 0, 0.5), row("b", 1, 0.5)])
    print_study(table)
    printed = capsys.readouterr().out
    assert "birds" in printed
    assert "a − b, 2 paired seeds: +15.00" in printed
    write_rows(table, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"], float(row["birds"])) for row in rows[:2]] == [("a", "0", 0.6), ("a", "1", 0.7)]
    assert [float(row["mean"]) for row in rows] == pytest.approx([0.65, 0.65, 0.5, 0.5])
    assert float(rows[0]["mean_low"]) < 0.65 < float(rows[0]["mean_high"])
    assert [row["compared"] for row in rows] == ["", "", "a", "a"]
    assert float(rows[2]["difference"]) == pytest.approx(0.15)
    assert float(rows[2]["difference_low"]) < 0.15 < float(rows[2]["difference_high"])
    write_rows(table, tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist()[3]["difference"] == pytest.approx(0.15)
    with pytest.raises(BadInput, match=r"csv or \.parquet"):
        write_rows(table, tmp_path / "rows.txt")
    print_study(summarise_kdep([]))


def test_bad_files_are_named() -> None:
    with pytest.raises(BadInput, match="downstream"):
        parse_kdep_study({**CONTENT, "downstream": []})
    with pytest.raises(BadInput, match="needs a teacher"):
        parse_kdep_study({**CONTENT, "methods": [{"label": "kdep"}]})


def test_another_model_of_the_students_name_is_a_conflict(store: tuple[Store, Settings]) -> None:
    from datetime import UTC, datetime
    from uuid import uuid4

    from backend.domain.catalog import Model
    from backend.store import catalog

    opened, settings = store
    other = Model(id=uuid4(), name="tiny-s0", source="timm", architecture="resnet18", created_at=datetime.now(UTC))
    with opened.write() as connection:
        catalog.add_model(connection, other)
    with pytest.raises(Conflict, match="tiny-s0"):
        submit_kdep_study(opened, settings, parse_kdep_study(CONTENT))
