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

from backend.domain.device_choice import read_device
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
    others: list[Slot] = field(default_factory=list, repr=False)
    """Slots whose GPUs the job of this one has too."""
    lent: bool = False
    """Whether another slot's job has this slot's GPU."""

    @property
    def idle(self) -> bool:
        return self.attempt is None and not self.lent

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

    def seize_with(self, others: Sequence[Slot], guard: bool = True) -> bool:
        """Hold this GPU and the others for one job; all or none."""
        for slot in (self, *others):
            if not slot.idle or not slot.seize(guard):
                self.free()
                return False
            if slot is not self:
                slot.lent = True
                self.others.append(slot)
        return True

    def open_lock(self) -> int:
        """The descriptor of the GPU's lock file, the same for every supervisor on this machine."""
        assert self.gpu is not None
        if self.lock is None:
            name = "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in self.gpu.uuid)
            path = Path(tempfile.gettempdir()) / f"zoograft-{name}.lock"
            try:
                self.lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            except FileExistsError:
                # Another user's perhaps: reading is enough to lock, and more is not allowed in a shared folder.
                self.lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        return self.lock

    def free(self) -> None:
        """Let the GPU go, and those that its job had beside it."""
        for other in self.others:
            other.lent = False
            other.free()
        self.others = []
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
        if slot.others:
            return self._spare(slot).child
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
            elif slot.spare is None and slot.idle:
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
        held = [slot, *slot.others]
        visible = ",".join(one.gpu.uuid.removeprefix("cuda:") for one in held if one.gpu is not None)
        locks = [one.open_lock() for one in held]
        return Spare(environment(CUDA_VISIBLE_DEVICES=visible), locks, pdeathsig=self.pdeathsig)


def slots_for(device: str, slots: Sequence[Slot]) -> list[Slot]:
    """The slots of the GPUs that a job asks for, in its order; none where this machine lacks one of them."""
    choice = read_device(device)
    by_index = {slot.gpu.index: slot for slot in slots if slot.gpu is not None}
    wanted = sorted(by_index) if choice.every else choice.indices or ()
    return [by_index[index] for index in wanted] if set(wanted) <= set(by_index) else []
