"""Processes of a job: born clean, watched, and gone for certain.

Every job runs in a process group (session) of its own, so that ending it ends its data loaders too. CPU jobs are forked
from a single-threaded server that has imported what they need (`ForkServer`; importing torch and timm costs 3.5 CPU
seconds); GPU jobs get a fresh interpreter that was started and warmed beforehand (`Spare`), because CUDA does not
survive a fork. Kernel and polling both see to it that no process outlives its supervisor: PR_SET_PDEATHSIG (Linux)
follows the parent, and a watching thread compares `getppid`.

A child speaks newline-delimited JSON over a socket; the supervisor never blocks on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CANCEL, DRAIN = signal.SIGUSR1, signal.SIGUSR2
PR_SET_PDEATHSIG = 1
NICENESS = 10
# What every torch job imports. Not pyarrow: it starts a thread, and a server that forks must have one only.
HEAVY = ("torch", "timm", "safetensors.torch", "workers.inputs.checkpoints")
LIGHT = ("backend.store.jobs", "backend.store.artifacts", "workers.runner")


class Channel:
    """One end of a socket carrying JSON lines."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.closed = False
        self._buffer = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Mapping[str, Any], *, wait_s: float | None = None) -> bool:
        """Send a line; False where the other end is gone or does not read.

        Without `wait_s` nothing ever blocks and a full buffer drops the message (progress is worth no waiting).
        """
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            self.socket.settimeout(wait_s or 0.0)
            if wait_s is None:
                # A short line is sent whole or not at all; a torn one would garble the next.
                return self.socket.send(data) == len(data)
            self.socket.sendall(data)
        except (OSError, ValueError):
            return False
        return True

    def receive(self) -> list[dict[str, Any]]:
        """The whole lines that have arrived; never blocks."""
        self.socket.setblocking(False)
        while not self.closed:
            try:
                data = self.socket.recv(65_536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.closed = True
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines if line]

    def wait(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next message, or None when the other end is gone or time is up."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            head, mark, rest = self._buffer.partition(b"\n")
            if mark:
                self._buffer = rest
                message: dict[str, Any] = json.loads(head)
                return message
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            if not select.select([self.socket], [], [], left)[0]:
                return None
            self.socket.setblocking(True)
            data = self.socket.recv(65_536)
            if not data:
                self.closed = True
                return None
            self._buffer += data

    def close(self) -> None:
        self.socket.close()


class Child:
    """A job's process: leader of its own group."""

    def __init__(self, channel: Channel, process: subprocess.Popen[bytes] | None = None) -> None:
        self.channel = channel
        self.pid: int | None = process.pid if process else None
        self.ready = False
        self.status: int | None = None
        self._process = process

    def exited(self) -> bool:
        """Whether the process has ended; `status` then holds its exit code, negative for a signal."""
        if self._process is not None and self.status is None and _has_ended(self._process.pid):
            # The group goes before its leader is reaped: as long as the leader is a zombie its number is not reused.
            kill_group(self._process.pid)
            self.status = self._process.wait()
        return self.status is not None

    def ask(self, number: signal.Signals) -> bool:
        """Tell the job to stop at its next step (CANCEL, DRAIN); False before it is listening."""
        if not self.ready or self.pid is None or self.status is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return True

    def kill(self) -> None:
        """End the whole group at once."""
        if self.pid is not None and self.status is None:
            kill_group(self.pid)

    def close(self) -> None:
        self.channel.close()


class ForkServer:
    """A single-threaded process that has imported `modules` and forks a job's process on request."""

    def __init__(self, modules: tuple[str, ...], environment: Mapping[str, str], *, pdeathsig: bool = True) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self.children: dict[int, Child] = {}
        self._waiting: list[Child] = []
        arguments = [str(theirs.fileno()), str(os.getpid()), "1" if pdeathsig else "0", *modules]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.forkserver", *arguments],
            pass_fds=[theirs.fileno()],
            env=dict(environment),
            start_new_session=True,
        )
        theirs.close()

    def alive(self) -> bool:
        return self.process.poll() is None

    def fork(self) -> Child:
        """Ask for a process; its number arrives with a later `poll`, the work can be sent at once."""
        ours, theirs = socket.socketpair()
        child = Child(Channel(ours))
        self._waiting.append(child)
        try:
            self.channel.socket.settimeout(10.0)
            socket.send_fds(self.channel.socket, [b"f"], [theirs.fileno()])
        except OSError:
            child.status = -signal.SIGKILL
            self._waiting.remove(child)
        finally:
            theirs.close()
        return child

    def poll(self) -> None:
        """Take in births and deaths. A dead server's children are dead too (parent-death signal)."""
        for message in self.channel.receive():
            if "forked" in message:
                child = self._waiting.pop(0)
                child.pid = message["forked"]
                self.children[message["forked"]] = child
            elif "exited" in message:
                gone = self.children.pop(message["exited"], None)
                if gone is not None:
                    gone.status = message["status"]
        if self.channel.closed or not self.alive():
            for child in (*self.children.values(), *self._waiting):
                child.kill()
                child.status = -signal.SIGKILL
            self.children.clear()
            self._waiting.clear()

    def stop(self) -> None:
        """End the server and whatever it still has."""
        for child in self.children.values():
            child.kill()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.channel.close()


class Spare:
    """A fresh interpreter that has imported everything and waits for its one job."""

    def __init__(
        self, environment: Mapping[str, str], descriptors: Sequence[int] = (), *, pdeathsig: bool = True
    ) -> None:
        ours, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), str(os.getpid()), "1" if pdeathsig else "0", *LIGHT, *HEAVY]
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.runner", *arguments],
            pass_fds=[theirs.fileno(), *descriptors],
            env=dict(environment),
            start_new_session=True,
        )
        theirs.close()
        self.child = Child(Channel(ours), process=process)

    def stop(self) -> None:
        self.child.kill()
        while not self.child.exited():
            time.sleep(0.01)
        self.child.close()


def kill_group(pid: int) -> None:
    """SIGKILL to a process group; a group that is gone is what we wanted."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends; exits at once if that has happened already.

    The signal follows the thread that forked, so a parent forks from a thread that lives as long as it does.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def step_back() -> None:
    """Let the pages, the supervisor and everything else on this machine go first; costs nothing where nobody waits.

    Call it in a process that leads its session: where Linux shares the cores by sessions (autogroup), niceness counts
    only within one, and the session has its own.
    """
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def watch_parent(parent: int, every_s: float = 1.0, then: Callable[[], None] | None = None) -> threading.Thread:
    """End this process's group when its parent is no longer `parent`; where the kernel does not do it for us."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        if then is not None:
            then()
        kill_group(os.getpgrp())
        os._exit(1)

    thread = threading.Thread(target=watch, name="parent-watch", daemon=True)
    thread.start()
    return thread


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
