"""Jobs over two CPU processes: as one process to rounding, the same bits after a loss, nothing left when they end."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from safetensors.torch import load_file

from backend.domain.jobs import TERMINAL
from backend.settings import Settings
from backend.store import artifacts, catalog, jobs
from backend.store.session import Store
from backend.submission import cancel, submit
from workers.supervisor import Supervisor

TRANSFER = {
    "teachers": ["a"],
    "student": "c",
    "dataset": "digits",
    "method": {"method": "kl_dp", "epochs": 2, "lr": 0.01, "augment": "none", "batch_size": 48, "views": 1},
    "subset": {"limit": 288},
    "control": False,
}


@pytest.fixture
def settings(tmp_path: Path, digits_zoo: Path) -> Settings:
    copy = tmp_path / "zoo.db"
    shutil.copy(digits_zoo, copy)
    values = {"checkpoint_steps": 3, "poll_s": 0.05, "min_free_bytes": 0, "retry_base_s": 0.05}
    return Settings(data_dir=tmp_path / "data", database_url=f"sqlite:///{copy}", **values)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = Store.open(settings.database, settings=settings)
    yield opened
    opened.close()


def members(leader: int) -> list[int]:
    """The processes of a group, the leader among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == leader:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


class Disturbed(Supervisor):
    """Works jobs to their end, and does something once to some of them, when they have come so far."""

    disturbances: dict[UUID, Any]

    def _turn(self) -> None:
        super()._turn()
        attempt = self.slots[0].attempt
        if attempt is not None and attempt.step >= 4 and attempt.id in self.disturbances:
            leader = attempt.child.pid
            self.disturbances.pop(attempt.id)(members(leader), leader)

    def finish(self, ids: list[UUID]) -> None:
        with self:
            for id in ids:
                while self._standing_of(id)[0] not in TERMINAL or self._busy():
                    self._claim_next(id)
                    self._turn()


def student(store: Store, settings: Settings, name: str) -> dict[str, torch.Tensor]:
    with store.read() as connection:
        return load_file(artifacts.fetch(catalog.get_model(connection, name).checkpoint))


def test_two_processes_end_where_one_does_and_leave_nothing(store: Store, settings: Settings, run_task: Any) -> None:
    alone = run_task("transfer", **TRANSFER, device="cpu", save_as="alone")

    def start(**changes: Any) -> UUID:
        return submit(store, settings, "transfer", {**TRANSFER, "device": "cpu:2", **changes}).job.id

    long = start(method={**TRANSFER["method"], "epochs": 500}, save=False)
    two, lost = start(save_as="two"), start(save_as="lost")
    seen: list[int] = []

    def ask_to_cancel(group: list[int], leader: int) -> None:
        seen.extend(group)
        cancel(store, settings, long)

    def kill_a_rank(group: list[int], leader: int) -> None:
        seen.extend(group)
        os.kill(next(pid for pid in group if pid != leader), signal.SIGKILL)

    supervisor = Disturbed(settings)
    supervisor.disturbances = {long: ask_to_cancel, lost: kill_a_rank}
    supervisor.finish([long, two, lost])
    with store.read() as connection:
        cancelled, whole, again = (jobs.get(connection, id) for id in (long, two, lost))
    assert (cancelled.state, whole.state, again.state) == ("cancelled", "succeeded", "succeeded"), again.message
    assert (cancelled.attempt, whole.attempt, again.attempt) == (1, 1, 2)
    assert len(seen) == 4
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in seen) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in seen if Path(f"/proc/{pid}").exists()]

    assert whole.result["provenance"]["devices"] == 2
    ours, theirs = student(store, settings, "two"), student(store, settings, "alone")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)
    assert again.result["weights_hash"] == whole.result["weights_hash"] != alone["weights_hash"]
    for name in ("positive_flips_to_teacher", "negative_flips_to_teacher"):
        assert whole.result[name] == pytest.approx(alone[name], abs=0.02)
        assert again.result[name] == whole.result[name]
    assert again.result["epochs"] == whole.result["epochs"]
