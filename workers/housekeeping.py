"""What must happen even where nobody works: silent workers' jobs taken back, waiting ones rung for, leftovers removed.

    python -m workers.housekeeping                run until told to stop; any number of them do no harm

On one machine the supervisor and the web process do this between them; a deployment of many runs one of these beside
its workers. It never imports torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import structlog

from backend import logs
from backend.domain.errors import StoreUnavailable, ZoograftError
from backend.queue import Dispatcher
from backend.settings import Settings
from backend.store.leftovers import find_leftovers, remove_leftovers
from backend.store.session import Store
from workers.keeper import Keeper
from workers.supervisor import drain_on_sigterm, prepare

log = structlog.get_logger()

SWEEP_S = 3600.0
LOOK_S = 0.2


def keep_house(settings: Settings, stopping: Callable[[], bool], *, sweep_s: float = SWEEP_S) -> None:
    """Reap, ring and sweep until `stopping()`.

    Raises:
        Exception: whatever ended the reaper's thread; the process should end and be started again.
    """
    store = Store.open(settings.database, settings=settings)
    keeper = Keeper(settings, store, wake=lambda: None)
    dispatcher = Dispatcher(store, settings).start()
    keeper.start()
    sweep_at = time.monotonic()
    try:
        while not stopping():
            if keeper.failure is not None:
                raise keeper.failure
            if time.monotonic() >= sweep_at:
                sweep_at = time.monotonic() + sweep_s
                sweep(settings, store)
            time.sleep(LOOK_S)
    finally:
        dispatcher.stop()
        keeper.stop()
        store.close()


def sweep(settings: Settings, store: Store) -> int:
    """Remove what attempts left behind and no row names; returns how many files went."""
    try:
        with store.read() as connection:
            found = find_leftovers(connection, settings.artifacts)
    except StoreUnavailable as error:
        log.warning("cannot sweep", error=error.message)
        return 0
    gone = remove_leftovers(found)
    if gone:
        log.info("removed leftovers", files=gone)
    return gone


def main() -> int:
    settings = Settings()
    logs.configure(settings)
    stopping = drain_on_sigterm()
    try:
        prepare(settings)
        keep_house(settings, stopping)
    except ZoograftError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
