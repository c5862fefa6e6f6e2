"""Lines over a socket, processes forked from a warm one, and groups that are gone for certain."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from backend.settings import environment
from workers.processes import NICENESS, Channel, ForkServer, Spare


@pytest.fixture
def pair():
    left, right = (Channel(end) for end in socket.socketpair())
    yield left, right
    left.close()
    right.close()


def test_lines_arrive_whole_in_order_and_never_block(pair):
    left, right = pair
    assert right.receive() == []
    left.send({"a": 1})
    left.send({"b": "ä" * 1000})
    assert right.receive() == [{"a": 1}, {"b": "ä" * 1000}]
    left.socket.send(b'{"half"')
    assert right.receive() == []
    left.socket.send(b": 2}\n")
    assert right.receive() == [{"half": 2}]


def test_a_reader_that_does_not_read_costs_messages_not_time(pair):
    left, right = pair
    began = time.monotonic()
    sent = sum(left.send({"step": number}) for number in range(100_000))
    assert time.monotonic() - began < 10
    assert sent < 100_000
    received = right.receive()
    assert [one["step"] for one in received] == list(range(len(received)))
    assert left.send({"again": True}, wait_s=1.0)


def test_the_other_end_is_gone(pair):
    left, right = pair
    right.close()
    assert left.send({"a": 1}, wait_s=1.0) is False
    assert left.wait(1.0) is None
    assert left.closed


def test_waiting_ends_in_time(pair):
    began = time.monotonic()
    assert pair[0].wait(0.1) is None
    assert 0.05 < time.monotonic() - began < 5


def until(server, true, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        server.poll()
        if true():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def server():
    made = ForkServer(("workers.runner",), environment(OMP_NUM_THREADS="1"))
    forked = []
    plain = made.fork

    def fork():
        forked.append(plain())
        return forked[-1]

    made.fork = fork
    yield made
    made.stop()
    for child in forked:
        child.close()


def test_each_child_leads_a_group_of_its_own_and_its_end_is_told(server):
    children = [server.fork() for _ in range(3)]
    assert until(server, lambda: all(child.pid for child in children))
    assert until(server, lambda: all(_ready(child) for child in children))
    assert all(os.getpgid(child.pid) == child.pid != os.getpgrp() for child in children)
    assert [os.getpriority(os.PRIO_PROCESS, child.pid) for child in children] == [min(NICENESS + mine(), 19)] * 3
    children[0].kill()
    os.kill(children[1].pid, signal.SIGTERM)
    children[2].channel.close()  # no job will come: it ends by itself
    assert until(server, lambda: all(child.exited() for child in children))
    assert [child.status for child in children] == [-9, -15, 0]


def test_stop_signals_that_come_early_do_not_end_a_child(server):
    child = server.fork()
    assert until(server, lambda: bool(child.pid))
    os.kill(child.pid, signal.SIGUSR1)
    assert until(server, lambda: _ready(child))
    assert not child.exited()


def test_a_dead_server_takes_its_children_with_it(server):
    child = server.fork()
    assert until(server, lambda: _ready(child))
    server.process.kill()
    assert until(server, child.exited)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and os.path.exists(f"/proc/{child.pid}"):
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{child.pid}")


def mine():
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_a_fresh_interpreter_steps_back_too():
    spare = Spare(environment(OMP_NUM_THREADS="1"))
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any("ready" in one for one in spare.child.channel.receive()):
            time.sleep(0.02)
        assert os.getpriority(os.PRIO_PROCESS, spare.child.pid) == min(NICENESS + mine(), 19)
        group = Path(f"/proc/{spare.child.pid}/autogroup")
        assert not group.exists() or group.read_text().split()[-1] in ("10", "0")
    finally:
        spare.stop()


def _ready(child):
    child.ready = child.ready or any("ready" in message for message in child.channel.receive())
    return child.ready and child.pid is not None
