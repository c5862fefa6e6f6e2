"""Whoever changes something needs the scope, because Dash has one route for reading and for writing."""

from contextlib import contextmanager

import pytest
from flask import Flask

from backend import submission
from backend.domain.errors import NotAllowed
from backend.domain.jobs import JobState
from backend.store.tokens import LOCAL, Principal
from dashboard.actions import Actions
from dashboard.reads import Reads

READER = Principal(owner="reader", scopes=frozenset({"read"}))
ALICE = Principal(owner="alice", scopes=frozenset({"read", "submit"}))
BOB = Principal(owner="bob", scopes=frozenset({"read", "submit"}))


@pytest.fixture
def actions(empty_store, settings):
    return Actions(empty_store, settings, Reads(empty_store, settings))


@contextmanager
def asking(principal):
    scope = {"state": {} if principal is None else {"principal": principal}}
    with Flask("test").test_request_context("/", environ_overrides={"asgi.scope": scope}):
        yield


@pytest.mark.parametrize("principal", [None, READER])
def test_without_the_scope_nothing_is_queued(actions, principal):
    with asking(principal):
        assert not actions.may("submit")
        with pytest.raises(NotAllowed, match="submit"):
            actions.submit("sleep", {"steps": 1})
    assert actions.reads.job_rows()[1] == 0


def test_outside_a_request_nothing_is_allowed(actions):
    with pytest.raises(NotAllowed):
        actions.submit("sleep", {"steps": 1})


def test_a_job_belongs_to_who_asked_for_it(actions):
    with asking(ALICE):
        job = actions.submit("sleep", {"steps": 1})
    assert actions.reads.owner_of(job.id) == "alice"
    with asking(BOB), pytest.raises(NotAllowed, match="another owner"):
        actions.cancel(job.id)
    with asking(READER), pytest.raises(NotAllowed, match="submit"):
        actions.cancel(job.id)
    assert actions.reads.job(job.id).state is JobState.QUEUED
    with asking(LOCAL):
        assert actions.cancel(job.id).state is JobState.CANCELLED


def test_a_retry_is_a_new_job_of_whoever_may_change_the_old_one(actions, empty_store, settings):
    old = submission.submit(empty_store, settings, "sleep", {"steps": 1}, owner="alice").job
    submission.cancel(empty_store, settings, old.id)
    with asking(BOB), pytest.raises(NotAllowed):
        actions.retry(old.id)
    with asking(ALICE):
        new = actions.retry(old.id)
    assert new.id != old.id
    assert new.retry_of == old.id
    assert actions.reads.retries(old.id) == [new.id]
