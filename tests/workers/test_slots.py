"""One job per GPU, in a fresh interpreter that sees only that GPU."""

import os
import secrets

import pytest

from backend.settings import Settings
from backend.store import jobs
from backend.store.job_records import new_id
from backend.store.session import Store
from workers.devices import GPU
from workers.slots import Slot, make_slots, slots_for
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


@pytest.fixture
def gpus():
    found = [GPU(index, f"GPU-test-{secrets.token_hex(8)}", "pretended", 2**30) for index in (0, 1, 2)]
    yield found
    for one in found:
        path = f"/tmp/zoograft-{one.uuid}.lock"
        if os.path.exists(path):
            os.unlink(path)


def test_a_job_names_the_slots_it_takes(gpus):
    slots = make_slots(("gpu", "cpu"), gpus)
    by_index = {slot.gpu.index: slot for slot in slots if slot.gpu is not None}
    assert slots_for("cuda:2,0", slots) == [by_index[2], by_index[0]]
    assert slots_for("cuda:all", slots) == [by_index[0], by_index[1], by_index[2]]
    assert slots_for("cuda:0,7", slots) == []
    assert slots_for("cuda:all", make_slots(("cpu",), [])) == []


def test_several_gpus_are_held_all_or_none(gpus):
    first, second, third = make_slots(("gpu",), gpus)
    other = Slot(("gpu",), gpus[2])
    assert other.seize()
    assert not first.seize_with([second, third])
    assert (first.idle, second.idle, first.others) == (True, True, [])
    assert Slot(("gpu",), gpus[1]).seize(), "what was held for nothing was let go"
    other.free()


def test_a_job_of_several_gpus_has_them_alone_and_gives_them_back(tmp_path, sqlite_url, gpus, monkeypatch):
    monkeypatch.setattr("workers.processes.HEAVY", ())
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url, poll_s=0.05, min_free_bytes=0)
    store = Store.open(sqlite_url)
    small, wide, later = new_id(), new_id(), new_id()
    spec = {"steps": 20, "step_s": 0.05}
    with store.write() as connection:
        jobs.add(connection, [jobs.NewJob("sleep", "gpu", spec, small, device="cuda:0", priority=9)])
        asked = {**spec, "device": "cuda:1,0"}
        jobs.add(connection, [jobs.NewJob("sleep", "gpu", asked, wide, device="cuda:set", priority=5)])
        jobs.add(connection, [jobs.NewJob("sleep", "gpu", spec, later, device="cuda")])
    seen = {}

    class Watched(Supervisor):
        def _turn(self):
            super()._turn()
            for slot in self.slots:
                attempt = slot.attempt
                if attempt is not None and attempt.child.ready and attempt.id not in seen:
                    with open(f"/proc/{attempt.child.pid}/environ", "rb") as file:
                        environment = file.read().split(b"\0")
                    visible = next(one for one in environment if one.startswith(b"CUDA_VISIBLE_DEVICES="))
                    running = {other.attempt.id for other in self.slots if other.attempt is not None}
                    seen[attempt.id] = (visible.decode().partition("=")[2], running, attempt.n_devices)

    ended = []

    def all_ended():
        with store.read() as connection:
            ended[:] = [jobs.get(connection, one) for one in (small, wide, later)]
        return all(job.state in ("succeeded", "failed") for job in ended)

    assert Watched(settings, gpus=gpus[:2], draining=all_ended).serve() == 0
    # `wide` asks for a device the sleep job does not know: it fails, after it was given both GPUs in its order.
    assert [job.state for job in ended] == ["succeeded", "failed", "succeeded"]
    assert seen[wide][0] == f"{gpus[1].uuid},{gpus[0].uuid}"
    assert seen[wide][2] == 2
    assert seen[wide][1] == {wide}
    assert seen[small][1] == {small}, "the first in line keeps its other GPU free"
    assert seen[later][0] in (gpus[0].uuid, gpus[1].uuid)
    assert all(Slot(("gpu",), one).seize() for one in gpus)
    store.close()
