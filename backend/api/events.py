"""Server-sent events of one job: `state | progress | metric | log`, replayed from any event on (Last-Event-ID).

The store's event rows are the stream; this only follows them. It ends when the job has ended and all was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

from starlette.concurrency import run_in_threadpool

from backend.domain.errors import BadInput, StoreUnavailable
from backend.domain.jobs import TERMINAL, JobEvent
from backend.store.queries import jobs as job_queries
from backend.store.session import Store

POLL_S = 0.4
KEEP_ALIVE_S = 15.0
BATCH = 500


def last_event_id(header: str | None, parameter: int | None) -> int:
    """Where to go on: the header that browsers send when they reconnect, else the query parameter.

    Raises:
        BadInput: not an id of an event.
    """
    if header is None or not header.strip():
        return parameter or 0
    text = header.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadInput("Last-Event-ID", header, "the id of an event, a whole number")
    return int(text)


def encode(event: JobEvent) -> bytes:
    """One event in the wire format of server-sent events; its JSON has no raw line break."""
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


async def follow(store: Store, id: UUID, after_id: int) -> AsyncIterator[bytes]:
    """The events of a job after `after_id`, as they come. While the store is away, the line is kept open."""
    yield b"retry: 2000\n\n"
    silent_s = 0.0
    while True:
        try:
            events, ended = await run_in_threadpool(_next, store, id, after_id)
        except StoreUnavailable:
            events, ended = [], False
        for event in events:
            after_id = event.id
            yield encode(event)
        if ended and len(events) < BATCH:
            return
        if events:
            silent_s = 0.0
            if len(events) == BATCH:
                continue
        elif silent_s >= KEEP_ALIVE_S:
            silent_s = 0.0
            yield b": still here\n\n"
        await asyncio.sleep(POLL_S)
        silent_s += POLL_S


def _next(store: Store, id: UUID, after_id: int) -> tuple[list[JobEvent], bool]:
    """The next events, and whether the job had ended before they were read (so that none can follow)."""
    with store.read() as connection:
        ended = job_queries.job(connection, id).state in TERMINAL
        return job_queries.events(connection, id, after_id=after_id, count=BATCH), ended
