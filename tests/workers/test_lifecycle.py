"""A running attempt over a real store: reports, checkpoints, stops, publishes once, and outlives an outage."""

from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select

from backend.domain.errors import LostLease, StoreUnavailable
from backend.domain.progress import Progress
from backend.domain.specs import SleepSpec
from backend.settings import Settings
from backend.store import artifacts, jobs
from backend.store.job_records import Claim, new_id, to_checkpoints
from backend.store.job_retries import RetryPolicy
from backend.store.session import Store
from backend.store.tables import artifacts as artifact_table
from backend.store.tables import job_events
from backend.store.tables import jobs as job_table
from workers import lifecycle
from workers.lifecycle import Cancelled, Drained, RunningJob, Spool


@pytest.fixture
def store(sqlite_url):
    opened = Store.open(sqlite_url)
    yield opened
    opened.close()


@pytest.fixture
def settings(tmp_path, sqlite_url):
    return Settings(data_dir=tmp_path, database_url=sqlite_url, checkpoint_s=1e6, checkpoint_steps=10)


def claim_new(store: Store, spec: dict | None = None) -> Claim:
    with store.write() as connection:
        jobs.add(connection, [jobs.NewJob("sleep", "cpu", spec or {"steps": 100}, new_id())])
    return claim_next(store)


def claim_next(store: Store) -> Claim:
    with store.write() as connection:
        claim = jobs.claim(connection, worker="w", host="h", lease_s=60)
    assert claim is not None
    return claim


def running(claim: Claim, store: Store, settings: Settings, **options) -> RunningJob:
    scratch = settings.data_dir / "scratch" / str(claim.fence)
    scratch.mkdir(parents=True, exist_ok=True)
    spec = SleepSpec(**claim.job.spec)
    attempt = claim.job.attempt
    made = RunningJob(claim.job.id, "sleep", spec, settings, store, claim.fence, attempt, "cpu", scratch, **options)
    made.checkpoints = claim.checkpoints
    return made


def events(store: Store, job_id: UUID, kind: str) -> list[dict]:
    with store.read() as connection:
        query = select(job_events.c.data).where(job_events.c.job_id == job_id, job_events.c.type == kind)
        return list(connection.scalars(query.order_by(job_events.c.id)))


def row(store: Store, job_id: UUID):
    with store.read() as connection:
        return connection.execute(select(job_table).where(job_table.c.id == job_id)).mappings().one()


def requeue(store: Store, claim: Claim) -> None:
    with store.write() as connection:
        jobs.release(connection, claim.job.id, claim.fence)


class Away:
    """A store whose next transactions fail, before they begin or after they were committed."""

    def __init__(self, store: Store) -> None:
        self.store, self.before, self.after = store, 0, 0

    @contextmanager
    def write(self):
        if self.before:
            self.before -= 1
            raise StoreUnavailable("away")
        with self.store.write() as connection:
            yield connection
        if self.after:
            self.after -= 1
            raise StoreUnavailable("the answer got lost")

    def read(self):
        return self.store.read()


def test_metrics_and_progress_are_written_and_nonfinite_values_left_out(store, settings):
    claim = claim_new(store)
    job = running(claim, store, settings)
    for step in (1, 2, 3):
        job.record(Progress(step=step, total=9, epoch=1, metrics={"loss": 1 / step, "bad": float("nan")}))
    job.flush()
    assert events(store, job.id, "metric") == [
        {"step": step, "values": {"loss": 1 / step}, "epoch": 1} for step in (1, 2, 3)
    ]
    assert (row(store, job.id)["step"], row(store, job.id)["total"]) == (3, 9)


def test_what_is_written_is_throttled(store, settings, monkeypatch):
    job = running(claim_new(store), store, settings)
    flushes = []
    monkeypatch.setattr(lifecycle, "FLUSH_S", 1e6)
    monkeypatch.setattr(job, "flush", lambda: flushes.append(1))
    job._flush_at = 1e12
    for step in range(1, 200):
        job.record(Progress(step=step, total=200))
    assert flushes == []


def test_checkpoints_come_every_so_many_steps_and_the_last_two_are_kept(store, settings):
    claim = claim_new(store)
    job = running(claim, store, settings)
    job._keeping_s = 0.0
    state = {}
    job.checkpoint_with(lambda: dict(state))
    for step in range(1, 46):
        state = {"step": step}
        job._keeping_s = 0.0
        job.record(Progress(step=step, total=100))
    kept = to_checkpoints(row(store, job.id)["checkpoint"])
    assert [one.step for one in kept] == [40, 30]
    folder = Path(settings.artifacts) / str(job.id) / str(job.fence)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-000000030.json", "checkpoint-000000040.json"]
    assert all(artifacts.fetch(one.uri, one.sha256) for one in kept)


def test_a_slow_checkpoint_is_not_repeated_before_twenty_times_its_length(store, settings):
    job = running(claim_new(store), store, settings)
    job.checkpoint_with(lambda: {})
    job._keeping_s = 1e6
    for step in range(1, 100):
        job.record(Progress(step=step, total=100))
    assert row(store, job.id)["checkpoint"] is None


def test_a_job_goes_on_from_its_state_and_says_so(store, settings):
    first = claim_new(store)
    running(first, store, settings).checkpoint({"step": 10}, 10)
    requeue(store, first)
    second = running(claim_next(store), store, settings)
    assert second.resume_state() == {"step": 10}
    second.flush()
    assert {"message": "goes on from step 10"} in events(store, second.id, "log")


def test_a_damaged_checkpoint_falls_back_to_the_one_before_then_to_none(store, settings):
    first = claim_new(store)
    job = running(first, store, settings)
    job.checkpoint({"step": 10}, 10)
    job.checkpoint({"step": 20}, 20)
    newest, before = to_checkpoints(row(store, job.id)["checkpoint"])
    Path(newest.uri).write_bytes(b"{}")
    requeue(store, first)
    second = claim_next(store)
    assert running(second, store, settings).resume_state() == {"step": 10}
    Path(before.uri).unlink()
    again = running(second, store, settings)
    assert again.resume_state() is None
    again.flush()
    assert {"message": "no usable checkpoint; starts anew"} in events(store, again.id, "log")


def test_a_checkpoint_of_another_spec_is_refused(store, settings):
    claim = claim_new(store)
    running(claim, store, settings).checkpoint({"step": 10}, 10)
    requeue(store, claim)
    second = claim_next(store)
    other = running(second, store, settings)
    other.spec = SleepSpec(steps=99)
    assert other.resume_state() is None


@pytest.mark.parametrize(("flag", "stops"), [("cancel", Cancelled), ("drain", Drained)])
def test_asked_to_stop_it_keeps_a_checkpoint_and_stops_at_the_step(store, settings, flag, stops):
    job = running(claim_new(store), store, settings)
    job.checkpoint_with(lambda: {"step": 3})
    setattr(job.stop, flag, True)
    with pytest.raises(stops):
        job.record(Progress(step=3, total=9))
    assert [one.step for one in to_checkpoints(row(store, job.id)["checkpoint"])] == [3]


def test_a_stale_attempt_cannot_write_anything(store, settings):
    claim = claim_new(store)
    job = running(claim, store, settings)
    with store.write() as connection:
        job_table_update(connection, claim.job.id)
        assert jobs.reap(connection, retry=RetryPolicy(base_s=0), guard_s=0, reachable_s=1) == [claim.job.id]
    claim_next(store)
    job._pending.append(("metric", {"step": 1, "values": {}}))
    with pytest.raises(LostLease):
        job.flush()
    with pytest.raises(LostLease):
        job.checkpoint({}, 1)
    with pytest.raises(LostLease), job.write() as connection:
        connection.execute(artifact_table.delete())
    with pytest.raises(LostLease):
        job.publish({})
    assert events(store, job.id, "metric") == []


def job_table_update(connection, job_id):
    """Let the lease run out."""
    connection.execute(job_table.update().where(job_table.c.id == job_id).values(lease_until=0.0))


def test_publishing_is_one_transaction(store, settings):
    job = running(claim_new(store), store, settings)
    job.attach("a.txt", b"one")
    job.attach("a.txt", b"two")

    def broken(connection):
        connection.execute(job_events.delete())
        raise RuntimeError("no")

    job.on_publish(broken)
    with pytest.raises(RuntimeError, match="no"):
        job.publish({"x": 1})
    assert row(store, job.id)["state"] == "running"
    assert events(store, job.id, "state")
    job._on_publish.clear()
    job.publish({"x": 1})
    with store.read() as connection:
        files = connection.execute(select(artifact_table)).mappings().all()
    assert [(one["name"], artifacts.read(one["uri"], one["sha256"])) for one in files] == [("a.txt", b"two")]
    assert row(store, job.id)["result"] == {"x": 1}


def test_a_publication_whose_answer_got_lost_is_not_repeated(store, settings):
    away = Away(store)
    job = running(claim_new(store), away, settings)
    calls = []
    job.on_publish(lambda connection: calls.append(1))
    away.after = 1
    job.publish({"x": 1})
    assert (row(store, job.id)["state"], calls) == ("succeeded", [1])
    assert [data["to"] for data in events(store, job.id, "state")].count("succeeded") == 1


def test_a_cancel_that_was_first_wins_over_the_result(store, settings):
    claim = claim_new(store)
    job = running(claim, store, settings)
    with store.write() as connection:
        jobs.cancel(connection, claim.job.id)
    with pytest.raises(Cancelled):
        job.publish({})
    assert row(store, job.id)["result"] is None


def test_metrics_wait_in_a_synced_file_while_the_store_is_away(store, settings):
    away = Away(store)
    job = running(claim_new(store), away, settings)
    away.before = 3
    for step in range(1, 6):
        job._flush_at = 0.0
        job.record(Progress(step=step, total=9, metrics={"loss": float(step)}))
        if step == 2:
            assert len(Spool(job.scratch / "spool.jsonl").read()) >= 2
    job.flush()
    assert [data["step"] for data in events(store, job.id, "metric")] == [1, 2, 3, 4, 5]
    assert not (job.scratch / "spool.jsonl").exists()


def test_the_patience_with_an_absent_store_ends(store, settings):
    away = Away(store)
    job = running(claim_new(store), away, settings.model_copy(update={"store_patience_s": 0.0}))
    away.before = 10
    job._pending.append(("log", {"message": "y"}))
    with pytest.raises(StoreUnavailable):
        job.flush()


def test_a_spool_that_was_cut_off_keeps_its_whole_lines(tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.append([("log", {"message": "one"}), ("log", {"message": "two"})])
    with open(spool.path, "a") as file:
        file.write('["log", {"mess')
    assert [data["message"] for _, data in spool.read()] == ["one", "two"]


def test_loaders_are_given_up_after_an_attempt_ran_out_of_memory(store, settings):
    claim = claim_new(store)
    assert running(claim, store, settings).loaders(4) == 4
    assert running(claim, store, settings, spare_loaders=False).loaders(4) == 0
