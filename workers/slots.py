"""Where a supervisor may run jobs: one slot per GPU, one for the CPU; and the warm processes each slot starts from.

A supervisor without CUDA has one slot that works both queues. A GPU slot holds the device by a lock file as well as by
its row in the store: the lock is shared with the job's process, so a device is free only when that is gone.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backend.settings import Settings, environment
from workers.attempts import Attempt
from workers.devices import GPU
from workers.processes import HEAVY, LIGHT, Child, ForkServer, Spare
from workers.tasks import TORCH_FREE

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass
class Slot:
    """Room for one job at a time."""

    queues: tuple[str, ...]
    gpu: GPU | None = None
    attempt: Attempt | None = None
    spare: Spare | None = None
    lock: int | None = field(default=None, repr=False)

    @property
    def device(self) -> str:
        """The device as the job's process sees it: a GPU slot shows it one GPU only."""
        return "cpu" if self.gpu is None else "cuda:0"

    def seize(self, guard: bool = True) -> bool:
        """Hold the GPU on this machine; False while another supervisor, or a job it left, has it."""
        if self.gpu is None or not guard:
            return True
        try:
            fcntl.flock(self.open_lock(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def open_lock(self) -> int:
        """The descriptor of the GPU's lock file, the same for every supervisor on this machine."""
        assert self.gpu is not None
        if self.lock is None:
            name = "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in self.gpu.uuid)
            path = Path(tempfile.gettempdir()) / f"zoograft-{name}.lock"
            self.lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        return self.lock

    def free(self) -> None:
        """Let the GPU go."""
        if self.lock is not None:
            fcntl.flock(self.lock, fcntl.LOCK_UN)


def make_slots(queues: Sequence[str], gpus: Sequence[GPU], cpu_slots: int = 1) -> list[Slot]:
    """One slot per GPU for the gpu queue and `cpu_slots` for the cpu queue; without a GPU these work all `queues`."""
    if not gpus or "gpu" not in queues:
        return [Slot(tuple(queues)) for _ in range(cpu_slots)]
    slots = [Slot(("gpu",), gpu) for gpu in gpus]
    return slots + ([Slot(("cpu",)) for _ in range(cpu_slots)] if "cpu" in queues else [])


class Nursery:
    """Starts the processes that jobs run in, warm where that pays."""

    def __init__(self, settings: Settings) -> None:
        self.pdeathsig = settings.guard("pdeathsig")
        self._servers: dict[bool, ForkServer] = {}

    def child_for(self, slot: Slot, kind: str) -> Child:
        """A process for one job: forked for the CPU, the slot's own fresh interpreter for a GPU."""
        if slot.gpu is not None:
            spare = slot.spare or self._spare(slot)
            slot.spare = None
            return spare.child
        return self._server(heavy=kind not in TORCH_FREE).fork()

    def warm(self, slots: Sequence[Slot]) -> None:
        """Import ahead of the next job: a spare for each idle GPU, the heavy server for the CPU."""
        for slot in slots:
            if slot.gpu is None:
                self._server(heavy=True)
            elif slot.spare is None and slot.attempt is None:
                slot.spare = self._spare(slot)

    def poll(self) -> None:
        """Take in births and deaths; forget servers that died."""
        for heavy, server in list(self._servers.items()):
            server.poll()
            if server.channel.closed or not server.alive():
                server.stop()
                del self._servers[heavy]

    def channels(self) -> list[int]:
        return [server.channel.fileno() for server in self._servers.values()]

    def stop(self, slots: Sequence[Slot] = ()) -> None:
        for server in self._servers.values():
            server.stop()
        self._servers.clear()
        for slot in slots:
            if slot.spare is not None:
                slot.spare.stop()
                slot.spare = None

    def _server(self, *, heavy: bool) -> ForkServer:
        if heavy not in self._servers:
            modules = (*LIGHT, *HEAVY) if heavy else LIGHT
            self._servers[heavy] = ForkServer(modules, environment(**ONE_THREAD), pdeathsig=self.pdeathsig)
        return self._servers[heavy]

    def _spare(self, slot: Slot) -> Spare:
        assert slot.gpu is not None
        visible = slot.gpu.uuid.removeprefix("cuda:")
        return Spare(environment(CUDA_VISIBLE_DEVICES=visible), [slot.open_lock()], pdeathsig=self.pdeathsig)
