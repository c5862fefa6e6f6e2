"""One job per GPU, in a fresh interpreter that sees only that GPU."""

import os
import secrets

import pytest

from backend.settings import Settings
from backend.store import jobs
from backend.store.job_records import new_id
from backend.store.session import Store
from workers.devices import GPU
from workers.slots import Slot, make_slots
from workers.supervisor import Supervisor


@pytest.fixture
def gpu():
    found = GPU(0, f"GPU-test-{secrets.token_hex(8)}", "pretended", 2**30)
    yield found
    path = f"/tmp/zoograft-{found.uuid}.lock"
    if os.path.exists(path):
        os.unlink(path)


def test_without_a_gpu_one_slot_works_both_queues():
    assert [slot.queues for slot in make_slots(("gpu", "cpu"), [])] == [("gpu", "cpu")]


def test_a_slot_per_gpu_and_one_for_the_rest(gpu):
    assert [(slot.queues, slot.device) for slot in make_slots(("gpu", "cpu"), [gpu])] == [
        (("gpu",), "cuda:0"),
        (("cpu",), "cpu"),
    ]
    assert [slot.queues for slot in make_slots(("gpu",), [gpu])] == [("gpu",)]
    assert [slot.gpu for slot in make_slots(("cpu",), [gpu])] == [None]


def test_two_supervisors_cannot_hold_one_gpu_and_the_lock_is_the_guard(gpu):
    first, second = Slot(("gpu",), gpu), Slot(("gpu",), gpu)
    assert first.seize()
    assert not second.seize()
    assert second.seize(guard=False)
    first.free()
    assert second.seize()


def test_a_gpu_job_runs_in_a_fresh_interpreter_that_sees_its_gpu_only(tmp_path, sqlite_url, gpu):
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url, poll_s=0.05, min_free_bytes=0)
    store = Store.open(sqlite_url)
    one = new_id()
    with store.write() as connection:
        jobs.add(connection, [jobs.NewJob("sleep", "gpu", {"steps": 30, "step_s": 0.05}, one, device="cuda:0")])
    seen = {}

    class Watched(Supervisor):
        def _turn(self):
            super()._turn()
            attempt = self.slots[0].attempt
            if attempt is not None and attempt.child.ready and not seen:
                pid = attempt.child.pid
                with open(f"/proc/{pid}/environ", "rb") as file:
                    seen["environment"] = file.read().split(b"\0")
                seen["group"] = os.getpgid(pid) == pid
                seen["held"] = not Slot(("gpu",), gpu).seize()

    assert Watched(settings, gpus=[gpu]).attach(one) == 0
    assert f"CUDA_VISIBLE_DEVICES={gpu.uuid}".encode() in seen["environment"]
    assert (seen["group"], seen["held"]) == (True, True)
    assert Slot(("gpu",), gpu).seize()
    with store.read() as connection:
        assert jobs.get(connection, one).state == "succeeded"
    store.close()
