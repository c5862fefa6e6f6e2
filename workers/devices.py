"""Which accelerators this machine has, found without importing torch in the process that asks.

    python -m workers.devices         prints one JSON object: torch version, devices, and what went wrong if anything

The index is the machine's (nvidia-smi's), not the process's, so that `cuda:1` and the exclusive use of a device mean
the same to every supervisor on a host, whatever CUDA_VISIBLE_DEVICES each was started with.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DRIVER_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/dxg", "/dev/kfd")


@dataclass(frozen=True)
class GPU:
    """A CUDA device: its number on this machine, its permanent id, name and memory."""

    index: int
    uuid: str
    name: str
    memory_bytes: int


def find_gpus(timeout_s: float = 120.0) -> list[GPU]:
    """The CUDA devices that torch can use here; none where there is no driver, without starting anything."""
    if not any(Path(name).exists() for name in DRIVER_FILES):
        return []
    return [GPU(**one) for one in ask(timeout_s).get("devices", ())]


def ask(timeout_s: float = 120.0) -> dict[str, Any]:
    """What `python -m workers.devices` says; `error` when it could not."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.devices"], capture_output=True, text=True, timeout=timeout_s, check=False
        )
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return {"torch": None, "devices": [], "error": f"{type(error).__name__}: {error}"}


def describe() -> dict[str, Any]:
    """Ask torch, in this process."""
    try:
        import torch
    except ImportError as error:
        return {"torch": None, "devices": [], "error": str(error)}
    try:
        found = [_gpu(torch, number) for number in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:
        return {"torch": torch.__version__, "devices": [], "error": str(error)}
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "devices": [asdict(one) for one in found]}


def _gpu(torch: Any, number: int) -> GPU:
    properties = torch.cuda.get_device_properties(number)
    uuid = f"GPU-{properties.uuid}" if getattr(properties, "uuid", None) else f"cuda:{number}"
    return GPU(_numbers().get(uuid, number), uuid, properties.name, int(properties.total_memory))


def _numbers() -> dict[str, int]:
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False).stdout.splitlines()
    except subprocess.TimeoutExpired:
        return {}
    pairs = [line.split(",") for line in lines if "," in line]
    return {uuid.strip(): int(index) for index, uuid in pairs if index.strip().isdigit()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe()) + "\n")
