"""The process that CPU jobs are forked from: imports once, stays single-threaded, forks a clean group per job.

    python -m workers.forkserver FD PARENT PDEATHSIG MODULE...

Each byte on the socket `FD` comes with the job's own socket; the answer is `{"forked": pid}`, and later
`{"exited": pid, "status": code}`, after the group of the dead process was killed. Ends with its parent.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys

from workers.processes import CANCEL, DRAIN, Channel, die_with_parent, kill_group, step_back


def main() -> None:
    fd, parent, pdeathsig = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
    if pdeathsig:
        die_with_parent(parent)
    server = socket.socket(fileno=fd)
    channel = Channel(server)
    # A supervisor stopped from a terminal stops its jobs itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wake_r, wake_w = os.pipe()
    for end in (wake_r, wake_w):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    for module in sys.argv[4:]:
        # A base install has no torch; the task that needs it says so by its name.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    while True:
        readable = select.select([server.fileno(), wake_r], [], [])[0]
        if wake_r in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_r, 4096)
            _reap(channel)
        if server.fileno() in readable:
            request, descriptors, _, _ = socket.recv_fds(server, 1, 1)
            if not request:
                return
            # One descriptor per byte; both arrive together.
            pid = _fork(descriptors[0], pdeathsig, (server, wake_r, wake_w))
            channel.send({"forked": pid}, wait_s=30.0)


def _fork(descriptor: int, pdeathsig: bool, ours: tuple[socket.socket, int, int]) -> int:
    parent = os.getpid()
    # Stop signals that come before the job listens stay pending instead of ending it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {CANCEL, DRAIN})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {CANCEL, DRAIN})
        os.close(descriptor)
        return pid
    try:
        os.setsid()
        step_back()
        if pdeathsig:
            die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        server, wake_r, wake_w = ours
        server.close()
        os.close(wake_r)
        os.close(wake_w)
        from workers.runner import work

        code = work(Channel(socket.socket(fileno=descriptor)), parent=parent, pdeathsig=pdeathsig)
    except BaseException:  # the rim of a process: whatever it is, it must not unwind into the server's loop
        sys.excepthook(*sys.exc_info())
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _reap(channel: Channel) -> None:
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        kill_group(ended.si_pid)
        _, status = os.waitpid(ended.si_pid, 0)
        channel.send({"exited": ended.si_pid, "status": os.waitstatus_to_exitcode(status)}, wait_s=30.0)


if __name__ == "__main__":
    main()
