"""A KDEP study through the store: submitted as a tree, its table gathered from its children's results."""

from pathlib import Path

import pytest

from backend.domain.errors import BadInput, Conflict, NotFound
from backend.kdep_studies import is_kdep_study, kdep_study_table, parse_kdep_study, submit_kdep_study
from backend.settings import Settings
from backend.store import job_reads, jobs
from backend.store.session import Store

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
    study = submit_kdep_study(opened, settings, spec).job
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
        table = kdep_study_table(connection, study.id)
        with pytest.raises(NotFound, match="register"):
            kdep_study_table(connection, children[0].id)
    assert {one.label: one.average.mean for one in table.summaries} == pytest.approx(
        {"supervised": 0.75, "random": 0.55}
    )
    assert table.differences[0].difference.values == pytest.approx((0.3, 0.1))
    assert (table.n_open, table.n_failed) == (0, 0)


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
