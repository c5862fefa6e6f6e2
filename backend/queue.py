"""Which queue a job belongs to, and the doorbell: a message that carries a job's id and no truth.

The queued row is the outbox. Ringing is best effort, never part of a request: the dispatcher rings for every row that
waits, again and again, and supervisors look into the database by themselves as well.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from kombu import Connection as BrokerConnection
from kombu import Exchange, Queue
from sqlalchemy.exc import SQLAlchemyError

from backend.domain.device_choice import read_device
from backend.domain.errors import ZoograftError
from backend.settings import Settings
from backend.store import jobs
from backend.store.jobs import SEVERAL_GPUS
from backend.store.session import Store

log = logging.getLogger(__name__)

QUEUES = ("gpu", "cpu")
GPU_KINDS = frozenset({"scan", "finetune", "transfer", "remem", "kdep", "analysis"})
# The Celery task of `workers.app`; its one argument is the job's id.
TASK = "zoograft.look"
RING_S = 5.0
# What the broker may take before we go on without it. Rows wait in the database, so losing a ring costs only latency.
CONNECT_S = 1.0
SOCKET_S = 2.0


def queue_for(kind: str, spec: Mapping[str, Any]) -> str:
    """`gpu` for kinds that compute with models, unless the spec says `device: cpu` (or `cpu:N`); `cpu` for the rest."""
    return "gpu" if kind in GPU_KINDS and not str(spec.get("device", "auto")).startswith("cpu") else "cpu"


def device_for(spec: Mapping[str, Any]) -> str:
    """What the spec asks for: auto, cpu, cuda or cuda:N; `cuda:set` for several GPUs, which the spec names."""
    asked = str(spec.get("device", "auto"))
    choice = read_device(asked)
    if choice.several:
        return SEVERAL_GPUS if choice.family == "cuda" else choice.family
    return asked


def ring(settings: Settings, ids: Sequence[tuple[UUID, str]]) -> int:
    """Publish `(job id, queue)` doorbells; returns how many went out: 0 without a broker, or when it does not answer.

    The messages are what Celery's own `task.delay(id)` would send, in JSON.
    """
    if settings.broker_url is None or not ids:
        return 0
    sent = 0
    options = {"socket_connect_timeout": CONNECT_S, "socket_timeout": SOCKET_S, "max_retries": 0}
    try:
        with BrokerConnection(settings.broker_url, connect_timeout=CONNECT_S, transport_options=options) as broker:
            producer = broker.Producer(serializer="json")
            for job_id, queue in ids:
                body, headers = _message(str(job_id))
                producer.publish(
                    body,
                    headers=headers,
                    routing_key=queue,
                    exchange=Exchange(queue, type="direct"),
                    declare=[Queue(queue, Exchange(queue, type="direct"), routing_key=queue)],
                    correlation_id=str(job_id),
                    delivery_mode=2,
                    retry=False,
                )
                sent += 1
    except Exception as error:  # the rim towards the broker: whatever it does, jobs go on from the database
        log.warning("the broker does not answer (%s: %s); jobs wait in the database", type(error).__name__, error)
    return sent


def _message(job_id: str) -> tuple[Any, dict[str, Any]]:
    """Celery's message protocol 2 for `TASK(job_id)`."""
    headers = {
        "lang": "py",
        "task": TASK,
        "id": job_id,
        "root_id": job_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "timelimit": [None, None],
        "ignore_result": True,
        "argsrepr": repr((job_id,)),
        "kwargsrepr": "{}",
    }
    return ((job_id,), {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}), headers


class Dispatcher:
    """A thread that rings for waiting rows every five seconds, at once when `wake()` is called. Runs where a broker is
    set, beside the API and in `housekeeping`; any number of them do no harm.
    """

    def __init__(self, store: Store, settings: Settings, *, every_s: float = RING_S, batch: int = 100) -> None:
        self._store, self._settings, self._every_s, self._batch = store, settings, every_s, batch
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> Dispatcher:
        if self._settings.broker_url is not None:
            self._thread.start()
        return self

    def wake(self) -> None:
        """There is something new; returns at once."""
        self._wake.set()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(CONNECT_S + SOCKET_S + 1)

    def ring_once(self) -> int:
        """Ring for the jobs that could be claimed now, the first in line first."""
        with self._store.read() as connection:
            waiting = jobs.claimable(connection, limit=self._batch)
        return ring(self._settings, waiting)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self.ring_once()
            except (ZoograftError, SQLAlchemyError) as error:
                log.warning("cannot ring: %s", error)
            self._wake.wait(self._every_s)
