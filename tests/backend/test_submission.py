"""How work enters: one job a key, references told by their field, studies in one piece, retries as new jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from backend import submission
from backend.domain.catalog import Model
from backend.domain.datasets import Dataset, Split
from backend.domain.errors import BadInput, Conflict, KeyReused, NotFound, StoreUnavailable
from backend.domain.jobs import Cause, Job
from backend.settings import Settings
from backend.store import catalog, job_reads
from backend.store.job_records import new_id
from backend.store.session import Store
from backend.submission import Child, Submitted
from tests.services.driver import Driver
from tests.services.servers import free_port

SLEEP = {"steps": 3}


class Desk:
    """`submission` on one store."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings, self.driver = store, settings, Driver(store)

    def submit(self, kind: str = "sleep", spec: object = SLEEP, **options: object) -> Submitted:
        return submission.submit(self.store, self.settings, kind, spec, **options)  # type: ignore[arg-type]

    def study(self, children: list[Child], spec: dict[str, object] | None = None, **options: object) -> Submitted:
        return submission.submit_study(self.store, self.settings, spec or {}, children, **options)  # type: ignore[arg-type]

    def retry(self, job_id: UUID, **options: bool) -> Job:
        return submission.retry(self.store, self.settings, job_id, **options)

    def failed(self, **options: object) -> UUID:
        job_id = self.submit(**options).job.id
        self.driver.fail(self.driver.claimed(job_id=job_id), Cause.BAD_INPUT)
        return job_id


@pytest.fixture
def desk(store: Store, tmp_path: Path) -> Desk:
    return Desk(store, Settings(data_dir=tmp_path))


@pytest.fixture
def furnished(desk: Desk) -> Desk:
    """With models r18, r50 (and one that was only imported), and a data set with train and val (and an external one)."""
    now = "2026-01-01T00:00:00Z"
    with desk.store.write() as connection:
        for name, source in (("r18", "timm"), ("r50", "timm"), ("imported", "external")):
            catalog.add_model(
                connection, Model.model_validate({"id": new_id(), "name": name, "source": source, "created_at": now})
            )
        for name, source, splits in (
            ("pets", "imagefolder", ("train", "val")),
            ("labels", "external", ("val",)),
            ("odd", "imagefolder", ("one", "two")),
        ):
            split = Split(n_samples=10, fingerprint="f")
            fields = {"id": new_id(), "name": name, "source": source, "class_names": ("a", "b"), "created_at": now}
            catalog.add_dataset(connection, Dataset.model_validate({**fields, "splits": dict.fromkeys(splits, split)}))
    return desk


# --- one job -------------------------------------------------------------------------------------------------------


def test_a_submitted_job_is_there_when_the_call_returns(desk: Desk) -> None:
    submitted = desk.submit(priority=4, owner="ada")
    assert not submitted.replayed
    job = desk.driver.get(submitted.job.id)
    assert job == submitted.job
    assert (job.kind, job.state.value, job.priority) == ("sleep", "queued", 4)
    assert job.spec["steps"] == 3
    assert desk.driver.column(job.id, "owner") == "ada"
    assert desk.driver.column(job.id, "queue") == "cpu"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"kind": "dance"}, "kind"),
        ({"kind": "study", "spec": {}}, "study.name"),
        ({"kind": "study", "spec": [1]}, "spec"),
        ({"spec": {"steps": -1}}, "spec.steps"),
        ({"spec": {"step": 1}}, "spec.step"),
        ({"spec": [1]}, "spec"),
        ({"priority": 1001}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"after": [UUID(int=1)]}, "after"),
        ({"parent": UUID(int=1)}, "parent"),
        ({"idempotency_key": ""}, "Idempotency-Key"),
        ({"idempotency_key": "x" * 256}, "Idempotency-Key"),
        ({"idempotency_key": "a\x00b"}, "Idempotency-Key"),
    ],
)
def test_bad_requests_name_the_field_and_leave_nothing(desk: Desk, options: dict[str, object], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        desk.submit(**options)
    assert caught.value.field == field
    assert desk.driver.count() == 0


@pytest.mark.parametrize(
    ("kind", "spec", "field"),
    [
        ("transfer", {"teachers": ["r50"], "student": "r81", "dataset": "pets", "method": "kl_dp"}, "spec.student"),
        (
            "transfer",
            {"teachers": ["r50", "x"], "student": "r18", "dataset": "pets", "method": "kl_dp"},
            "spec.teachers",
        ),
        ("transfer", {"teachers": ["imported"], "student": "r18", "dataset": "pets", "method": "kl"}, "spec.teachers"),
        ("transfer", {"teachers": ["r50"], "student": "r18", "dataset": "cats", "method": "kl_dp"}, "spec.dataset"),
        ("transfer", {"teachers": ["r50"], "student": "r18", "dataset": "labels", "method": "kl"}, "spec.dataset"),
        ("transfer", {"teachers": ["r50"], "student": "r18", "dataset": "odd", "method": "kl"}, "spec.train_split"),
        ("scan", {"models": ["r*", "vit*"], "dataset": "pets"}, "spec.models"),
        ("scan", {"models": ["imported"], "dataset": "pets"}, "spec.models"),
        ("scan", {"models": ["r18"], "dataset": "pets", "split": "test"}, "spec.split"),
        ("scan", {"models": ["r18"], "dataset": "odd"}, "spec.split"),
        ("finetune", {"model": "nobody", "dataset": "pets"}, "spec.model"),
        ("finetune", {"model": "r18", "dataset": "pets", "train_split": "nope"}, "spec.train_split"),
        ("flips", {"dataset": "cats"}, "spec.dataset"),
        (
            "kdep",
            {"student": "r18", "dataset": "pets", "params": {"method": "none"}, "downstream": ["pets", "cats"]},
            "spec.downstream",
        ),
    ],
)
def test_what_does_not_exist_is_told_by_its_field(
    furnished: Desk, kind: str, spec: dict[str, object], field: str
) -> None:
    with pytest.raises(BadInput) as caught:
        furnished.submit(kind, spec)
    assert caught.value.field == field
    assert furnished.driver.count() == 0


def test_good_references_are_queued_where_they_belong(furnished: Desk) -> None:
    transfer = {"teachers": ["r50"], "student": "r18", "dataset": "pets", "method": "kl_dp"}
    job = furnished.submit("transfer", transfer).job
    assert (furnished.driver.column(job.id, "queue"), furnished.driver.column(job.id, "device")) == ("gpu", "auto")
    job = furnished.submit("transfer", {**transfer, "device": "cpu"}).job
    assert (furnished.driver.column(job.id, "queue"), furnished.driver.column(job.id, "device")) == ("cpu", "cpu")
    assert furnished.submit("scan", {"models": ["r*"], "dataset": "pets", "device": "cuda:1"}).job.state == "queued"
    assert furnished.submit("flips", {"dataset": "labels"}).job.state == "queued"
    measured = {"student": "r18", "dataset": "pets", "params": {"method": "none"}}
    measured["downstream"] = ["pets", "segmentation:/on/the/worker"]
    assert furnished.submit("kdep", measured).job.state == "queued"


def test_names_that_an_earlier_job_will_save_are_known(furnished: Desk) -> None:
    first = furnished.submit("finetune", {"model": "r18", "dataset": "pets", "save_as": "r18-pets"}).job
    scan = {"models": ["r18-pets"], "dataset": "pets"}
    with pytest.raises(NotFound):
        furnished.submit("scan", scan)
    assert furnished.submit("scan", scan, after=[first.id]).job.after == (first.id,)


def test_waiting_for_what_failed_is_refused(desk: Desk) -> None:
    failed = desk.failed()
    with pytest.raises(BadInput, match="this one failed"):
        desk.submit(after=[failed])


def test_a_job_may_join_a_study_that_has_not_ended(desk: Desk) -> None:
    study = desk.study([Child("a", "sleep", SLEEP)])
    extra = desk.submit(parent=study.job.id).job
    assert extra.parent == study.job.id
    for _ in range(2):
        desk.driver.publish(desk.driver.claimed())
    assert desk.driver.get(study.job.id).message == "2 succeeded of 2"
    with pytest.raises(BadInput, match="parent"):
        desk.submit(parent=study.job.id)


def test_a_database_that_is_away_is_unavailable_not_an_error_of_the_request(tmp_path: Path) -> None:
    store = Store.open(f"postgresql+psycopg://u:p@127.0.0.1:{free_port()}/none")
    with pytest.raises(StoreUnavailable):
        submission.submit(store, Settings(data_dir=tmp_path), "sleep", SLEEP)
    store.close()


def test_a_broker_that_is_away_changes_nothing(store: Store, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, broker_url=f"redis://127.0.0.1:{free_port()}/0")
    assert submission.submit(store, settings, "sleep", SLEEP).job.state == "queued"


# --- keys ----------------------------------------------------------------------------------------------------------


def test_the_same_key_and_body_is_the_same_job(desk: Desk) -> None:
    first = desk.submit(idempotency_key="k")
    second = desk.submit(spec={"steps": 3, "step_s": 0.0}, idempotency_key="k")
    assert (second.job.id, second.replayed) == (first.job.id, True)
    assert desk.driver.count() == 1
    assert len(desk.driver.events(first.job.id)) == 1


@pytest.mark.parametrize(
    "other", [{"spec": {"steps": 4}}, {"priority": 1}, {"kind": "flips", "spec": {"dataset": "d"}}]
)
def test_the_same_key_with_another_body_is_refused(desk: Desk, other: dict[str, object]) -> None:
    desk.submit(idempotency_key="k")
    with pytest.raises(KeyReused):
        desk.submit(idempotency_key="k", **other)
    assert desk.driver.count() == 1


def test_keys_belong_to_their_owner_and_no_key_is_no_promise(desk: Desk) -> None:
    ids = {desk.submit(idempotency_key="k", owner=owner).job.id for owner in ("ada", "bob")}
    ids |= {desk.submit().job.id for _ in range(2)}
    assert len(ids) == 4


def test_a_key_outlives_its_job_and_its_references(furnished: Desk) -> None:
    spec = {"models": ["r18"], "dataset": "pets"}
    first = furnished.submit("scan", spec, idempotency_key="k").job
    furnished.driver.cancel(first.id)
    again = furnished.submit("scan", spec, idempotency_key="k")
    assert (again.job.id, again.replayed, again.job.state) == (first.id, True, "cancelled")


def test_without_the_guard_the_same_key_makes_two_jobs(open_store: Callable[..., Store], tmp_path: Path) -> None:
    mutant = Desk(open_store(disabled_guards="idempotency"), Settings(data_dir=tmp_path))
    assert mutant.submit(idempotency_key="k").job.id != mutant.submit(idempotency_key="k").job.id


def test_a_race_that_only_the_index_decides_ends_in_the_same_job(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request looks before the first has committed; the unique index then stops it."""
    first = desk.submit(idempotency_key="k")
    real = job_reads.by_idempotency_key
    looks: list[int] = []

    def blind_at_first(connection: object, owner: str, key: str) -> object:
        looks.append(1)
        return None if len(looks) == 1 else real(connection, owner, key)  # type: ignore[arg-type]

    monkeypatch.setattr(submission.job_reads, "by_idempotency_key", blind_at_first)
    second = desk.submit(idempotency_key="k")
    assert (second.job.id, second.replayed, len(looks)) == (first.job.id, True, 2)
    looks.clear()
    with pytest.raises(KeyReused):
        desk.submit(spec={"steps": 9}, idempotency_key="k")
    assert desk.driver.count() == 1


# --- studies -------------------------------------------------------------------------------------------------------


def test_a_study_is_one_parent_and_its_children_in_order(desk: Desk) -> None:
    before = desk.submit().job.id
    children = [Child("a", "sleep", SLEEP), Child("b", "sleep", SLEEP, ("a",)), Child("c", "sleep", {"steps": 1})]
    study = desk.study(children, {"name": "grid"}, after=[before], priority=2, owner="ada")
    assert study.job.kind == "study"
    assert study.job.spec == {"name": "grid"}
    assert study.job.progress.total == 3
    with desk.store.read() as connection:
        rows = job_reads.children_of(connection, study.job.id)
    assert [row.id for row in rows] == [study.children[key] for key in "abc"]
    assert [set(row.after) for row in rows] == [{before}, {before, study.children["a"]}, {before}]
    assert {row.priority for row in rows} == {2}
    assert desk.driver.claimed().job.id == before
    assert desk.driver.claim() is None


@pytest.mark.parametrize(
    ("children", "field"),
    [
        ([], "children"),
        ([Child("a", "sleep", SLEEP), Child("a", "sleep", SLEEP)], "children"),
        ([Child("a", "sleep", SLEEP, ("b",))], "children.a.after"),
        ([Child("a", "sleep", SLEEP, ("a",))], "children"),
        ([Child("a", "sleep", SLEEP, ("b",)), Child("b", "sleep", SLEEP, ("a",))], "children"),
        ([Child("a", "sleep", SLEEP), Child("b", "sleep", {"steps": -1})], "children.b.spec.steps"),
        ([Child("a", "study", {})], "children.a.kind"),
        ([Child("a", "sleep", SLEEP), Child("b", "flips", {"dataset": "x"})], "children.b.spec.dataset"),
    ],
)
def test_bad_studies_leave_nothing_behind(desk: Desk, children: list[Child], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        desk.study(children)
    assert caught.value.field == field
    assert desk.driver.count() == 0


def test_children_may_use_what_their_siblings_save(furnished: Desk) -> None:
    tune = Child("tune", "finetune", {"model": "r18", "dataset": "pets", "save_as": "tuned"})
    graft = {"teachers": ["tuned"], "student": "r50", "dataset": "pets", "method": "kl"}
    furnished.study([tune, Child("graft", "transfer", graft, ("tune",))])
    with pytest.raises(NotFound):
        furnished.submit("transfer", graft)


def test_studies_have_keys_too(desk: Desk) -> None:
    children = [Child("a", "sleep", SLEEP)]
    first = desk.study(children, idempotency_key="k")
    again = desk.study(children, idempotency_key="k")
    assert (again.job.id, again.replayed) == (first.job.id, True)
    with pytest.raises(KeyReused):
        desk.study([Child("b", "sleep", SLEEP)], idempotency_key="k")
    assert desk.driver.count() == 2


# --- cancel, retry, resume -----------------------------------------------------------------------------------------


def test_cancel_goes_through(desk: Desk) -> None:
    job = desk.submit().job
    assert submission.cancel(desk.store, desk.settings, job.id).state == "cancelled"
    with pytest.raises(NotFound):
        submission.cancel(desk.store, desk.settings, uuid4())


def test_a_retry_is_a_new_job_and_the_old_one_stays(desk: Desk) -> None:
    old = desk.driver.get(desk.failed(priority=7, idempotency_key="k"))
    new = desk.retry(old.id)
    assert (new.retry_of, new.state, new.spec, new.priority, new.attempt) == (old.id, "queued", old.spec, 7, 0)
    assert desk.driver.get(old.id) == old
    assert desk.driver.claimed().checkpoints == ()


def test_resume_goes_on_from_the_last_checkpoint(desk: Desk) -> None:
    job_id = desk.submit().job.id
    claim = desk.driver.claimed()
    desk.driver.checkpoint(claim, 10)
    desk.driver.checkpoint(claim, 20)
    desk.driver.fail(claim, Cause.NONFINITE_LOSS)
    new = desk.retry(job_id, resume=True)
    assert desk.driver.column(new.id, "resume_from") == job_id
    assert [one.step for one in desk.driver.claimed().checkpoints] == [20, 10]


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_what_has_not_failed_cannot_be_retried(desk: Desk, state: str) -> None:
    job_id = desk.submit().job.id
    if state != "queued":
        claim = desk.driver.claimed()
        if state == "succeeded":
            desk.driver.publish(claim)
    with pytest.raises(Conflict, match=state):
        desk.retry(job_id)


def test_resuming_without_a_checkpoint_is_refused(desk: Desk) -> None:
    with pytest.raises(Conflict, match="no checkpoint"):
        desk.retry(desk.failed(), resume=True)
    assert desk.driver.count() == 1


def test_a_dependent_is_retried_after_what_it_waits_for(desk: Desk) -> None:
    first = desk.submit().job.id
    second = desk.submit(after=[first]).job.id
    desk.driver.fail(desk.driver.claimed(), Cause.BAD_INPUT)
    with pytest.raises(Conflict, match="retry that one first"):
        desk.retry(second)
    again = desk.retry(first)
    assert desk.retry(second).after == (again.id,)


def test_retrying_a_study_redoes_what_did_not_succeed(desk: Desk) -> None:
    children = [Child("a", "sleep", SLEEP), Child("b", "sleep", SLEEP), Child("c", "sleep", SLEEP, ("a", "b"))]
    study = desk.study(children, {"name": "grid"})
    first, second = desk.driver.claimed(), desk.driver.claimed()
    desk.driver.publish(first)
    desk.driver.fail(second, Cause.BAD_INPUT)
    new = desk.retry(study.job.id)
    assert (new.kind, new.retry_of, new.spec) == ("study", study.job.id, {"name": "grid"})
    with desk.store.read() as connection:
        b, c = job_reads.children_of(connection, new.id)
    assert (b.retry_of, c.retry_of) == (study.children["b"], study.children["c"])
    assert set(b.after) == {first.job.id}
    assert set(c.after) == {first.job.id, b.id}
    for _ in range(2):
        desk.driver.publish(desk.driver.claimed())
    assert desk.driver.state(new.id) == "succeeded"
    assert desk.driver.state(study.job.id) == "failed"
    with pytest.raises(Conflict, match="no checkpoint"):
        desk.retry(study.job.id, resume=True)
