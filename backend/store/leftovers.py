"""Files that attempts left behind without publishing them: found by comparing the folders with the rows, and removed.

A file stays while anything may still want it: its job has not ended, a row of `artifacts` names it, or a checkpoint
that some job could resume from points to it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

from sqlalchemy import Connection, select

from backend.domain.jobs import TERMINAL
from backend.store import artifacts
from backend.store.session import db_now
from backend.store.tables import artifacts as artifact_table
from backend.store.tables import jobs as job_table

log = logging.getLogger(__name__)

KEEP_S = 24 * 3600.0
_JOB = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


def find_leftovers(connection: Connection, base: str, *, keep_s: float = KEEP_S) -> list[str]:
    """URIs under `base` that belong to jobs which ended more than `keep_s` seconds ago, and that no row names."""
    ended = {
        str(job_id)
        for job_id in connection.execute(
            select(job_table.c.id).where(
                job_table.c.state.in_([state.value for state in TERMINAL]),
                job_table.c.finished_at < db_now() - keep_s,
            )
        ).scalars()
    }
    wanted = set(connection.execute(select(artifact_table.c.uri)).scalars())
    for pointers in connection.execute(select(job_table.c.checkpoint)).scalars():
        wanted |= {pointer["uri"] for pointer in pointers or ()}
    return [uri for job, uri in _stored(base) if job in ended and uri not in wanted]


def remove_leftovers(uris: list[str]) -> int:
    """Delete these files; returns how many went. One that resists is left for the next time."""
    gone = 0
    for uri in uris:
        try:
            artifacts.remove(uri)
            gone += 1
        except OSError as error:
            log.warning("a leftover stays: %s (%s)", uri, error)
    return gone


def _stored(base: str) -> Iterator[tuple[str, str]]:
    """(job's id, URI) of every file of every job below `base`."""
    for uri, relative in artifacts.walk(base):
        job = relative.split("/", 1)[0]
        if _JOB.match(job):
            yield job, uri
