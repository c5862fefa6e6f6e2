"""The one door from pages to what changes anything: submit, cancel, retry, resume.

Dash sends reads and writes through one route, so the guard in front can only ask for the scope `read` there; whoever
acts is checked here, from the principal that the guard has put on the request. Without one nothing is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

from flask import has_request_context, request

from backend import submission
from backend.domain.errors import NotAllowed
from backend.domain.jobs import Job
from backend.settings import Settings
from backend.store.session import Store
from dashboard.reads import Reads


class Asking(Protocol):
    """Who is asking, as the guard says."""

    owner: str

    def may(self, scope: Any) -> bool: ...


class Actions:
    """Changes to one store, each checked against whoever asks for it."""

    def __init__(self, store: Store, settings: Settings, reads: Reads) -> None:
        self.store, self.settings, self.reads = store, settings, reads

    def submit(self, kind: str, spec: Mapping[str, Any], *, key: str | None = None) -> Job:
        """Queue a job.

        Raises:
            NotAllowed: the token has no scope `submit`.
            BadInput, NotFound: names the field.
        """
        who = self._require("submit")
        done = submission.submit(self.store, self.settings, kind, spec, owner=who.owner, idempotency_key=key)
        return done.job

    def cancel(self, id: UUID) -> Job:
        """Ask for a job's end; one that has ended stays as it is.

        Raises:
            NotAllowed: no scope `submit`, or another owner's job without the scope `admin`.
        """
        self._require_own(id)
        return submission.cancel(self.store, self.settings, id)

    def retry(self, id: UUID, *, resume: bool = False) -> Job:
        """Try a job again, as a new one.

        Raises:
            NotAllowed: as `cancel`.
            Conflict: it has not ended, it succeeded, or there is no checkpoint to resume from.
        """
        who = self._require_own(id)
        return submission.retry(self.store, self.settings, id, resume=resume, owner=who.owner)

    def may(self, scope: str) -> bool:
        """Whether whoever asks has a scope; for what to show, not for what to allow."""
        who = _asking()
        return who is not None and who.may(scope)

    def _require(self, scope: str) -> Asking:
        who = _asking()
        if who is None:
            raise NotAllowed(f"nobody is signed in; that needs a token with the scope {scope}")
        if not who.may(scope):
            raise NotAllowed(f"the token of {who.owner!r} lacks the scope {scope}")
        return who

    def _require_own(self, id: UUID) -> Asking:
        who = self._require("submit")
        if not who.may("admin") and self.reads.owner_of(id) != who.owner:
            raise NotAllowed("this job was submitted by another owner; that needs the scope admin")
        return who


def _asking() -> Asking | None:
    """The principal of the request being answered."""
    if not has_request_context():
        return None
    scope = request.environ.get("asgi.scope") or {}
    found: Asking | None = (scope.get("state") or {}).get("principal")
    return found
