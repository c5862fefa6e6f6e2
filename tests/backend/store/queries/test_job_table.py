"""Jobs as a table and what a job's page tells, alike on both databases."""

from uuid import uuid4

import pytest

from backend.domain.errors import BadInput
from backend.settings import Settings
from backend.store import jobs
from backend.store.queries import job_table
from backend.submission import cancel, submit


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path)


@pytest.fixture
def three(store, settings):
    ids = [submit(store, settings, "sleep", {"steps": n}).job.id for n in (1, 2, 3)]
    cancel(store, settings, ids[0])
    return ids


def test_rows_are_filtered_sorted_and_counted(store, three):
    with store.read() as connection:
        rows, total = job_table.job_rows(connection)
        assert {row.id for row in rows} == set(three)
        assert total == 3
        opened, n_open = job_table.job_rows(connection, states=("queued", "running"), limit=1)
        assert n_open == 2
        assert len(opened) == 1
        assert [r.state for r in job_table.job_rows(connection, sort=[{"colId": "state", "sort": "asc"}])[0]] == [
            "cancelled",
            "queued",
            "queued",
        ]
        assert job_table.job_rows(connection, kinds=("transfer",))[1] == 0
        assert job_table.kinds(connection) == ["sleep"]
        assert job_table.any_open(connection)
        with pytest.raises(BadInput):
            job_table.job_rows(connection, sort=[{"colId": "spec", "sort": "asc"}])


def test_children_of_studies_can_be_left_out(store, settings):
    from backend.submission import Child, submit_study

    study = submit_study(store, settings, {"name": "s"}, [Child("a", "sleep", {"steps": 1})]).job
    with store.read() as connection:
        assert job_table.job_rows(connection)[1] == 2
        assert [row.kind for row in job_table.job_rows(connection, children=False)[0]] == ["study"]
        assert [row.kind for row in job_table.job_rows(connection, parent=study.id)[0]] == ["sleep"]


def test_a_log_keeps_its_last_lines_in_order(store, three):
    with store.write() as connection:
        claimed = jobs.claim(connection, worker="w:1", host="host", lease_s=60)
        assert claimed is not None
        events = [("log", {"message": f"line {i}"}) for i in range(10)]
        jobs.add_events(connection, claimed.job.id, claimed.fence, claimed.job.attempt, events)
    with store.read() as connection:
        tail = job_table.log_tail(connection, claimed.job.id, 3)
    assert [event.data["message"] for event in tail] == ["line 7", "line 8", "line 9"]


def test_many_metric_events_are_thinned_but_epochs_stay(store, three):
    with store.write() as connection:
        claimed = jobs.claim(connection, worker="w:1", host="host", lease_s=60)
        events = [
            ("metric", {"step": i, "values": {"loss": 1.0, **({"transfer_delta": 0.1} if i % 50 == 7 else {})}})
            for i in range(200)
        ]
        jobs.add_events(connection, claimed.job.id, claimed.fence, claimed.job.attempt, events)
    with store.read() as connection:
        everything = job_table.metric_events(connection, claimed.job.id)
        thinned = job_table.metric_events(connection, claimed.job.id, most=40)
    assert len(everything) == 200
    assert 40 <= len(thinned) <= 45
    steps = {event.data["step"] for event in thinned}
    assert {7, 57, 107, 157} <= steps


def test_what_a_job_left(store, settings, three):
    with store.read() as connection:
        assert not job_table.has_checkpoint(connection, three[0])
        assert not job_table.has_checkpoint(connection, uuid4())
        assert job_table.retries_of(connection, three[0]) == []
        assert job_table.made_models(connection, three[0]) == []


@pytest.mark.parametrize(
    "state, step, total, started, left",
    [
        ("running", 25, 100, 0.0, 30.0),
        ("running", 0, 100, 0.0, None),
        ("running", 100, 100, 0.0, None),
        ("queued", 25, 100, 0.0, None),
        ("running", 25, 100, None, None),
    ],
)
def test_time_left_is_a_straight_line(state, step, total, started, left):
    assert job_table.seconds_left(state, step, total, started, now=10.0) == left


@pytest.mark.parametrize(
    "kind, spec, said",
    [
        ("transfer", {"teachers": ["a", "b"], "student": "c", "method": {"method": "kl"}}, "a, b → c (kl)"),
        ("transfer", {"teachers": [], "student": "c", "method": {"method": "ce"}}, "no teacher → c (ce)"),
        ("scan", {"models": ["a", "b", "c", "d"], "dataset": "x"}, "a, b, c and 1 more on x"),
        ("register", {"model": {"name": "m"}, "dataset": None}, "m"),
        ("study", {"name": "s"}, "s"),
        ("finetune", {"model": "m", "dataset": "x"}, "m on x"),
        ("remem", {"model": "m", "student": "s", "dataset": "x"}, "m → s on x"),
        ("kdep", {"teacher": "t", "student": "s", "dataset": "x"}, "t → s on x"),
        ("analysis", {"analysis": "logme", "models": ["a", "b"], "dataset": "x"}, "logme of a, b on x"),
        ("sleep", {"steps": 1}, ""),
    ],
)
def test_subjects(kind, spec, said):
    assert job_table.subject(kind, spec) == said
