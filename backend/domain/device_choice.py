"""Which devices a job asks for: `auto`, `cpu`, `cuda`, `cuda:1`; a training also several, which it then has alone.

Several: `cuda:0,1` (those two), `cuda:all` (every GPU of the worker that takes it), `cpu:2` (two processes on the CPU).
GPU numbers are the machine's, as nvidia-smi shows them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

SHAPE = re.compile(r"(auto)|cpu(?::(\d{1,2}))?|cuda(?::(all|\d{1,2}(?:,\d{1,2})*))?")
MOST = 64
ONE = "auto, cpu, cuda or cuda:N"
SEVERAL = f"{ONE}; or several: cuda:0,1, cuda:all or cpu:2"


@dataclass(frozen=True)
class DeviceChoice:
    """`family` auto, cpu or cuda; `indices` of GPUs (None: any); `every`: all there are; `processes` on the CPU."""

    family: str
    indices: tuple[int, ...] | None = None
    every: bool = False
    processes: int = 1

    @property
    def several(self) -> bool:
        return self.every or self.processes > 1 or len(self.indices or ()) > 1


def read_device(text: str) -> DeviceChoice:
    """What a device string asks for.

    Raises:
        ValueError: it says what would be right.
    """
    found = SHAPE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no device; use {SEVERAL}")
    auto, processes, gpus = found.groups()
    if auto:
        return DeviceChoice("auto")
    if text.startswith("cpu"):
        number = 1 if processes is None else int(processes)
        if not 1 <= number <= MOST:
            raise ValueError(f"{text!r}: from 1 to {MOST} processes")
        return DeviceChoice("cpu", processes=number)
    if gpus in (None, "all"):
        return DeviceChoice("cuda", every=gpus == "all")
    indices = tuple(int(part) for part in gpus.split(","))
    if len(set(indices)) != len(indices):
        raise ValueError(f"{text!r} names a device twice")
    return DeviceChoice("cuda", indices)


def _one(text: str) -> str:
    if read_device(text).several:
        raise ValueError(f"{text!r} asks for several devices, which transfer and finetune alone can use; use {ONE}")
    return text


def _any(text: str) -> str:
    read_device(text)
    return text


Device = Annotated[str, AfterValidator(_one), Field(json_schema_extra={"pattern": r"^(auto|cpu|cuda(:\d{1,2})?)$"})]
Devices = Annotated[str, AfterValidator(_any), Field(json_schema_extra={"pattern": f"^({SHAPE.pattern})$"})]


def one_of(text: str) -> str:
    """One device of the same family, for the jobs beside a training that use one."""
    choice = read_device(text)
    return choice.family if choice.several else text
