"""Bottleneck adapters behind the attention and the MLP of every block: Houlsby et al., arXiv:1902.00751.

y → y + up(gelu(down(y))), D → D / reduction → D; `up` starts at zero, so the outputs start as they were. An adapted
model is no stock model: its checkpoint has extra names, and export refuses it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.domain.errors import BadInput
from workers.science.remem.blocks import architecture, transformer_blocks


class Adapter(nn.Module):
    """[.., D] → [.., D], the identity at first."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, max(1, width // reduction))
        self.up = nn.Linear(max(1, width // reduction), width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        return y + self.up(F.gelu(self.down(y)))  # type: ignore[no-any-return]


def add_adapters(model: nn.Module, *, reduction: int = 16, seed: int = 0) -> nn.Module:
    """Adapt every block, in place; all but the adapters is frozen. Stock parameters keep their names.

    Raises:
        BadInput: the blocks are not a pre-norm transformer's, or have adapters already; names the architecture.
    """
    if has_adapters(model):
        raise BadInput("model", architecture(model), "a model without adapters")
    blocks = transformer_blocks(model)
    model.requires_grad_(False)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for block in blocks:
            for branch in (block.attn, block.mlp):
                assert isinstance(branch, nn.Module)
                home = next(block.norm1.parameters()) if isinstance(block.norm1, nn.Module) else None
                assert home is not None
                branch.add_module("adapter", Adapter(home.numel(), reduction).to(home))
                branch.register_forward_hook(_adapted)
    return model


def has_adapters(model: nn.Module) -> bool:
    return any(isinstance(module, Adapter) for module in model.modules())


def _adapted(branch: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    adapted: Tensor = branch.adapter(output)
    return adapted
