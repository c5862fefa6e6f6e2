"""Why an attempt failed, and on which device it runs."""

import errno

import pytest

from backend.domain.errors import BadInput, MissingExtra, NonFiniteLoss, NotFound, StoreUnavailable
from backend.domain.jobs import Cause
from workers.inputs.checkpoints import NonFiniteState
from workers.runner import explain, resolve_devices
from workers.tasks.sleep import OutOfMemoryError


class ReadTimeout(Exception):
    """As httpx names it."""


def wrapped(inner: BaseException) -> BaseException:
    outer = RuntimeError("while saving")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (BadInput("lr", -1, "positive"), Cause.BAD_INPUT),
        (NotFound("model", "x"), Cause.NOT_FOUND),
        (MissingExtra("scan", "workers"), Cause.MISSING_EXTRA),
        (NonFiniteLoss(3, "kl", float("nan")), Cause.NONFINITE_LOSS),
        (NonFiniteState("NaN"), Cause.NONFINITE_LOSS),
        (StoreUnavailable("away"), Cause.STORE_UNAVAILABLE),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate"), Cause.CUDA_OOM),
        (RuntimeError("CUDA out of memory"), Cause.CUDA_OOM),
        (MemoryError(), Cause.HOST_OOM),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), Cause.HOST_OOM),
        (RuntimeError("DataLoader worker is out of insufficient shared memory (shm)"), Cause.HOST_OOM),
        (OSError(errno.ENOSPC, "No space left on device"), Cause.DISK_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Cause.DISK_FULL),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), Cause.DISK_FULL),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Cause.IO_TRANSIENT),
        (TimeoutError("slow"), Cause.IO_TRANSIENT),
        (OSError(errno.EIO, "I/O error"), Cause.IO_TRANSIENT),
        (ReadTimeout("hub"), Cause.IO_TRANSIENT),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), Cause.MISSING_EXTRA),
        (FileNotFoundError(errno.ENOENT, "gone"), Cause.ERROR),
        (ValueError("x"), Cause.ERROR),
        (KeyboardInterrupt(), Cause.ERROR),
        (SystemExit(3), Cause.ERROR),
    ],
)
def test_the_cause_of_an_error(error, cause):
    found, message = explain(error)
    assert found is cause
    assert message


def test_an_error_of_torch_keeps_its_cause():
    import torch

    assert explain(torch.OutOfMemoryError("CUDA out of memory"))[0] is Cause.CUDA_OOM


@pytest.mark.parametrize(
    ("wanted", "given", "device"),
    [
        ("auto", "cpu", "cpu"),
        ("auto", "cuda:0", "cuda:0"),
        ("cpu", "cuda:0", "cpu"),
        ("cuda", "cuda:0", "cuda:0"),
        ("cuda:3", "cuda:0", "cuda:0"),
    ],
)
def test_the_device_of_an_attempt(wanted, given, device):
    assert resolve_devices(wanted, given) == (device,)


def test_cuda_without_cuda_is_bad_input():
    with pytest.raises(BadInput, match=r"spec.device.*no CUDA"):
        resolve_devices("cuda", "cpu")


@pytest.mark.parametrize(
    ("wanted", "given", "n_given", "devices"),
    [
        ("cpu:2", "cpu", 1, ("cpu", "cpu")),
        ("cpu:2", "cuda:0", 1, ("cpu", "cpu")),
        ("cuda:2,5", "cuda:0", 2, ("cuda:0", "cuda:1")),
        ("cuda:all", "cuda:0", 3, ("cuda:0", "cuda:1", "cuda:2")),
    ],
)
def test_several_devices_are_numbered_as_the_process_sees_them(wanted, given, n_given, devices):
    assert resolve_devices(wanted, given, n_given) == devices


@pytest.mark.parametrize(("wanted", "given"), [("cuda:0,1", "cuda:0"), ("cuda:all", "cpu")])
def test_fewer_devices_than_asked_for_is_bad_input(wanted, given):
    with pytest.raises(BadInput, match=r"spec.device"):
        resolve_devices(wanted, given)
