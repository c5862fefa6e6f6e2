"""Several processes that train one model together: data parallelism over the ranks of one job.

Every rank runs the same training on its share of each batch. After the backward pass gradients and loss terms are
summed over the ranks in one collective, each weighted by its samples, so that every rank takes the very step that one
process would take with the whole batch; nothing is summed during the backward pass, so a rank that runs out of memory
can halve its micro-batch without the others. For a student without BatchNorm and dropout the result equals a single
process's up to rounding.

BatchNorm is not synchronised: it normalises with its own rank's share of the batch (as it does with a micro-batch), and
the running statistics are averaged over the ranks after every step, so they are the same everywhere. Dropout draws from
(seed, step, rank).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workers.science.batchnorm import batchnorm_layers

PATIENCE = timedelta(days=7)
"""Ranks wait for one that evaluates; one that died is noticed by the job, which ends them all."""


class Ranks(Protocol):
    """This process among those that train together; 0 is the one that reports, evaluates and keeps checkpoints."""

    rank: int
    size: int

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each; the argument may be changed."""
        ...

    def share(self, value: Any) -> Any:
        """What rank 0 gave (plain JSON values); the others wait for it."""
        ...


class Alone:
    """One process: what is summed is what it has."""

    rank, size = 0, 1

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def share(self, value: Any) -> Any:
        return value


ALONE = Alone()


class Joined:
    """A member of a group of processes on one machine that find each other through a folder.

    NCCL where every rank has a GPU of its own, else gloo over the loopback address.

    Args:
        folder: Empty, the same for all ranks.
        devices: One for each rank.
    """

    def __init__(self, folder: Path, rank: int, devices: Sequence[str]) -> None:
        self.rank, self.size = rank, len(devices)
        self.device = torch.device(devices[rank])
        self._shared = 0
        self._group: Any
        self._store = dist.FileStore(  # type: ignore[attr-defined]
            str(folder / "rendezvous"), self.size
        )
        self._store.set_timeout(PATIENCE)
        own_gpus = self.device.type == "cuda" and len(set(devices)) == self.size
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if own_gpus:
            dist.init_process_group(
                "nccl", store=self._store, rank=rank, world_size=self.size, timeout=PATIENCE, device_id=self.device
            )
            self._group = dist.group.WORLD
        else:
            options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
            options._timeout = PATIENCE
            store = dist.PrefixStore("gloo", self._store)  # type: ignore[attr-defined]
            self._group = dist.ProcessGroupGloo(store, rank, self.size, options)

    def sum(self, tensor: Tensor) -> Tensor:
        self._group.allreduce([tensor]).wait()
        return tensor

    def share(self, value: Any) -> Any:
        self._shared += 1
        key = f"shared/{self._shared}"
        if self.rank == 0:
            self._store.set(key, json.dumps(value))
        return json.loads(self._store.get(key))

    def leave(self) -> None:
        """Give the group back."""
        if dist.is_initialized():
            dist.destroy_process_group()


def sum_step(parameters: Sequence[nn.Parameter], terms: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Sum gradients (in place) and loss terms over the ranks; returns the terms, in float64.

    A gradient that no rank has stays None, as in one process: the optimizer leaves such a parameter alone.
    """
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        group = [parameter for parameter in parameters if parameter.dtype == dtype]
        parts = [torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in group]
        present = torch.tensor([0.0 if p.grad is None else 1.0 for p in group], dtype=dtype, device=group[0].device)
        flat = ranks.sum(torch.cat([*parts, present]))
        complete = all(parameter.grad is not None for parameter in group)
        there = [1.0] * len(group) if complete else flat[len(flat) - len(group) :].tolist()
        at = 0
        for parameter, count in zip(group, there, strict=True):
            if count:
                summed = flat[at : at + parameter.numel()].reshape(parameter.shape)
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(summed)
            at += parameter.numel()
    values = ranks.sum(torch.stack([term.double() for term in terms.values()]))
    return dict(zip(terms, values.unbind(), strict=True))


@torch.no_grad()
def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Running means and variances of BatchNorm: the plain mean over the ranks, whose shares are nearly equal."""
    found = [layer for layer in batchnorm_layers(model) if layer.running_mean is not None]
    buffers = [buffer for layer in found for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
    if not buffers:
        return
    mean = ranks.sum(torch.cat([buffer.reshape(-1).double() for buffer in buffers])) / ranks.size
    at = 0
    for buffer in buffers:
        buffer.copy_(mean[at : at + buffer.numel()].reshape(buffer.shape))
        at += buffer.numel()


@torch.no_grad()
def same_everywhere(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the weights and buffers of rank 0."""
    for tensor in (*model.parameters(), *model.buffers()):
        if ranks.rank:
            tensor.zero_()
        tensor.copy_(ranks.sum(tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.clone()))
