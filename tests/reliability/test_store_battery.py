"""The store's part of the battery (T5, T6, T19, T20) in small counts on both databases, and each guard's mutant, which
must be found out."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest

from backend import submission
from backend.domain.errors import KeyReused
from backend.settings import Settings
from backend.store.session import Store
from tests.reliability.claim_race import race
from tests.reliability.fault_injection import inject
from tests.reliability.state_machine import explore
from tests.services.driver import Driver


@pytest.fixture
def make_settings(database_url: str, tmp_path: Path) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return Settings(data_dir=tmp_path, database_url=database_url, **changes)  # type: ignore[arg-type]

    return make


def storm(store: Store, settings: Settings, count: int) -> tuple[dict[str, set[UUID]], int, int, int]:
    """`count` submissions over half as many keys at once: ids by key, replayed answers, refusals of other bodies, rows."""
    keys = [f"key-{one}" for one in range(count // 2)] * 2
    random.Random(0).shuffle(keys)
    ids: dict[str, set[UUID]] = defaultdict(set)
    replayed = refused = 0

    def send(key: str, steps: int) -> submission.Submitted | None:
        try:
            return submission.submit(store, settings, "sleep", {"steps": steps}, idempotency_key=key)
        except KeyReused:
            return None

    with ThreadPoolExecutor(16) as pool:
        for key, submitted in zip(keys, pool.map(lambda key: send(key, int(key[4:])), keys), strict=True):
            assert submitted is not None
            ids[key].add(submitted.job.id)
            replayed += submitted.replayed
        refused = sum(one is None for one in pool.map(lambda key: send(key, 10_000), sorted(set(keys))))
    return ids, replayed, refused, Driver(store).count()


def test_two_hundred_submissions_of_a_hundred_keys_are_a_hundred_jobs(
    store: Store, make_settings: Callable[..., Settings]
) -> None:
    ids, replayed, refused, rows = storm(store, make_settings(), 200)
    assert {len(one) for one in ids.values()} == {1}
    assert (replayed, refused, rows) == (100, 100, 100)


def test_without_idempotency_duplicates_become_jobs(
    open_store: Callable[..., Store], make_settings: Callable[..., Settings]
) -> None:
    mutant = open_store(disabled_guards="idempotency")
    _, replayed, _, rows = storm(mutant, make_settings(), 20)
    assert replayed == 0
    assert rows > 10


def test_processes_racing_for_jobs_take_each_once(
    store: Store, database_url: str, make_settings: Callable[..., Settings]
) -> None:
    values = make_settings().model_dump(include={"data_dir", "database_url"})
    breaches, counts = race(store, values, 3, 60)
    assert breaches == []
    assert sum(counts["shares"]) == 60


def test_without_begin_immediate_racing_processes_fail(sqlite_url: str, tmp_path: Path) -> None:
    store = Store.open(sqlite_url)
    values = {"data_dir": tmp_path, "database_url": sqlite_url, "disabled_guards": "immediate"}
    breaches, _ = race(store, values, 4, 200)
    store.close()
    assert any("locked" in breach for breach in breaches)


def test_any_sequence_of_events_keeps_to_the_model(store: Store) -> None:
    explore(store, examples=8, steps=30, start=0)


@pytest.mark.parametrize("guard", ["fence", "reaper_guard"])
def test_without_the_guard_a_sequence_is_found_that_breaks_the_model(
    guard: str, sqlite_url: str, tmp_path: Path
) -> None:
    mutant = Store.open(sqlite_url, settings=Settings(data_dir=tmp_path, disabled_guards=guard))
    with pytest.raises(AssertionError):
        explore(mutant, examples=60, steps=30, start=0, shrink=False)
    mutant.close()


def test_a_store_that_fails_once_at_any_call_ends_in_the_same_place(
    store: Store, make_settings: Callable[..., Settings]
) -> None:
    breaches, counts = inject(store, make_settings())
    assert breaches == []
    assert counts["statement"] > 50
    assert counts["commit"] > 10
    assert counts["answer"] > 10


def test_without_fence_and_idempotency_lost_answers_do_harm(sqlite_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url, disabled_guards="fence,idempotency")
    store = Store.open(sqlite_url)
    breaches, _ = inject(store, settings)
    store.close()
    assert any("2 completions" in breach for breach in breaches)
    assert any("2 jobs were made" in breach for breach in breaches)
