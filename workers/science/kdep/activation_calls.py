"""Activations that a network calls as functions (`F.relu(x)`), counted and skipped by their place in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

ACTIVATION_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset({
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.gelu, F.silu, F.hardswish, F.mish, F.elu, F.selu, F.celu, F.softplus,
    torch.relu, torch.relu_, torch.selu, torch.celu, Tensor.relu, Tensor.relu_,
})  # fmt: skip


class ActivationCalls(TorchFunctionMode):
    """While it is entered, counts calls of activation functions from 0 and lets some of them do nothing.

    A module like `nn.ReLU` calls its function too, so it is counted as well.

    Args:
        skipped: Numbers of the calls that return their input.
        calls: How many calls a forward pass makes; numbers start again after so many. None: they go on.
        nodes: Filled with graph node of an activation's output → number of the call.
    """

    def __init__(
        self, skipped: Iterable[int] = (), calls: int | None = None, nodes: dict[object, int] | None = None
    ) -> None:
        super().__init__()
        self.skipped, self.calls, self.nodes = frozenset(skipped), calls, nodes
        self.counted = 0

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func not in ACTIVATION_FUNCTIONS:
            return func(*args, **named)
        call = self.counted if self.calls is None else self.counted % self.calls
        self.counted += 1
        if call in self.skipped:
            return args[0] if args else named["input"]
        output = func(*args, **named)
        if self.nodes is not None and isinstance(output, Tensor) and output.grad_fn is not None:
            self.nodes[output.grad_fn] = call
        return output
