from typing import Any
from uuid import UUID, uuid4

import pytest

from backend import submission
from backend.domain.errors import BadInput, NotFound
from backend.domain.jobs import JobState
from backend.settings import Settings
from backend.store.queries import jobs as queries
from backend.store.session import Store
from backend.submission import Child


@pytest.fixture
def ids(store: Store, settings: Settings) -> list[UUID]:
    """Seven jobs; the third is cancelled, the last waits for the first."""
    made = [submission.submit(store, settings, "sleep", {"steps": i}).job.id for i in range(6)]
    submission.cancel(store, settings, made[2])
    made.append(submission.submit(store, settings, "sleep", {"steps": 9}, after=[made[0]], owner="eve").job.id)
    return made


def walk(store: Store, limit: int = 3, **query: Any) -> list[UUID]:
    found: list[UUID] = []
    cursor = None
    while True:
        with store.read() as connection:
            page = queries.jobs(connection, limit=limit, cursor=cursor, **query)
        found += [job.id for job in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return found


def test_the_newest_first_each_once(store: Store, ids: list[UUID]) -> None:
    assert walk(store) == ids[::-1]
    assert walk(store, sort="created_at") == ids
    assert walk(store, limit=200) == ids[::-1]


def test_filters(store: Store, ids: list[UUID]) -> None:
    assert walk(store, state=("cancelled",)) == [ids[2]]
    assert walk(store, state=("queued", "cancelled"), kind=("sleep",)) == ids[::-1]
    assert walk(store, kind=("scan",)) == []
    assert walk(store, owner="eve") == [ids[-1]]
    assert walk(store, analysis="expertness") == []
    for wrong, field in (({"state": ("done",)}, "state"), ({"kind": ("dance",)}, "kind"), ({"sort": "spec"}, "sort")):
        with store.read() as connection, pytest.raises(BadInput) as caught:
            queries.jobs(connection, **wrong)  # type: ignore[arg-type]
        assert caught.value.field == field


def test_one_job_knows_what_it_waits_for(store: Store, ids: list[UUID]) -> None:
    with store.read() as connection:
        job = queries.job(connection, ids[-1])
        assert job.after == (ids[0],)
        assert queries.owner_of(connection, ids[-1]) == "eve"
        for ask in (
            queries.job,
            queries.owner_of,
            queries.event_page,
            queries.study,
            queries.analysis,
            queries.artifact,
        ):
            with pytest.raises(NotFound):
                ask(connection, uuid4())
        with pytest.raises(NotFound, match="kind sleep"):
            queries.study(connection, ids[0])


def test_events_as_pages(store: Store, ids: list[UUID]) -> None:
    with store.read() as connection:
        page = queries.event_page(connection, ids[2], types=("state",), limit=1)
        rest = queries.event_page(connection, ids[2], types=("state",), cursor=page.next_cursor)
        assert [event.data["to"] for event in (*page.items, *rest.items)] == ["queued", "cancelled"]
        assert queries.events(connection, ids[2], after_id=page.items[0].id) == list(rest.items)
        with pytest.raises(BadInput):
            queries.event_page(connection, ids[2], types=("noise",))


def test_a_study_counts_its_children(store: Store, settings: Settings) -> None:
    children = [Child(str(i), "sleep", {"steps": i}) for i in range(3)]
    done = submission.submit_study(store, settings, {"name": "three"}, children)
    submission.cancel(store, settings, done.children["1"])
    with store.read() as connection:
        study = queries.study(connection, done.job.id)
        assert study.children_total == 3
        assert study.children == {JobState.QUEUED: 2, JobState.CANCELLED: 1}
        assert [one.job.id for one in queries.studies(connection).items] == [done.job.id]
    assert set(walk(store, parent=done.job.id)) == set(done.children.values())
