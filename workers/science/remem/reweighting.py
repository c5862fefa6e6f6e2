"""Reweighting the halves of transformer blocks: ReMem, arXiv:2506.23041, Eq. 2 and Table 8; pruning, Fig. 4.

α weight of the MLP branch, β of the attention branch:  x̃ = (2−β) x + β·attn(norm₁ x);  x' = (2−α) x̃ + α·mlp(norm₂ x̃),
LayerScale and drop-path inside the branches. L blocks. A pruned branch is left out and its input passes through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

from torch import Tensor, nn

from backend.domain.errors import BadInput
from backend.domain.remem import Branch
from workers.science.remem.blocks import attention_branch, local_half, mlp_branch, transformer_blocks


@dataclass(frozen=True)
class BranchWeights:
    """What one block does with its two branches; the default is the stock block."""

    mlp: float = 1.0
    attention: float = 1.0
    mlp_pruned: bool = False
    attention_pruned: bool = False


STOCK = BranchWeights()


def reweight(model: nn.Module, *, mlp_weight: float = 1.0, attention_weight: float = 1.0) -> nn.Module:
    """Give every block of the model these weights, in place; names and shapes of its parameters stay stock.

    Weights of 1 leave (or put back) the stock forward, so α = β = 1 is the stock model to the bit. Branches that were
    pruned stay pruned.

    Raises:
        BadInput: a weight outside (0, 2), or an architecture whose blocks are not pre-norm; names it.
    """
    for field, weight in (("mlp_weight", mlp_weight), ("attention_weight", attention_weight)):
        if not 0 < weight < 2:
            raise BadInput(field, weight, "between 0 and 2, both excluded; 1 is the stock model")
    for block in transformer_blocks(model):
        _install(block, replace(weights_of(block), mlp=mlp_weight, attention=attention_weight))
    return model


def prune(model: nn.Module, branch: Branch, count: int) -> nn.Module:
    """Leave out a branch in the top `count` blocks, in place; 0 puts all of that branch back."""
    blocks = transformer_blocks(model)
    if not 0 <= count <= len(blocks):
        raise BadInput("count", count, f"between 0 and {len(blocks)}, the model's blocks")
    for i, block in enumerate(blocks):
        left_out = i >= len(blocks) - count
        weights = weights_of(block)
        _install(
            block,
            replace(weights, mlp_pruned=left_out) if branch == "mlp" else replace(weights, attention_pruned=left_out),
        )
    return model


def restore(model: nn.Module) -> nn.Module:
    """Put the stock forward back in every block."""
    for block in transformer_blocks(model):
        _install(block, STOCK)
    return model


@contextmanager
def reweighted(model: nn.Module, *, mlp_weight: float = 1.0, attention_weight: float = 1.0) -> Iterator[nn.Module]:
    """Inside, the model is reweighted; afterwards every block has the weights it had."""
    blocks = transformer_blocks(model)
    before = [weights_of(block) for block in blocks]
    reweight(model, mlp_weight=mlp_weight, attention_weight=attention_weight)
    try:
        yield model
    finally:
        for block, weights in zip(blocks, before, strict=True):
            _install(block, weights)


def weights_of(block: nn.Module) -> BranchWeights:
    """The weights installed on one block; the stock ones where none were."""
    weights = block.__dict__.get("branch_weights", STOCK)
    assert isinstance(weights, BranchWeights)
    return weights


def effective_weights(n_blocks: int, mlp_weight: float, attention_weight: float = 1.0) -> list[float]:
    """How much of each block's MLP output reaches the end of the residual stream: α ((2−α)(2−β))^(L−l), l = 1..L."""
    residual = (2 - mlp_weight) * (2 - attention_weight)
    return [mlp_weight * residual ** (n_blocks - block) for block in range(1, n_blocks + 1)]


def _install(block: nn.Module, weights: BranchWeights) -> None:
    if weights == STOCK:
        block.__dict__.pop("branch_weights", None)
        block.__dict__.pop("forward", None)
    else:
        block.__dict__["branch_weights"] = weights
        block.__dict__["forward"] = MethodType(_reweighted_forward, block)


def _reweighted_forward(block: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    weights = weights_of(block)
    if not weights.attention_pruned:
        x = _mixed(x, attention_branch(block, x, *args, **kwargs), weights.attention)
    x = local_half(block, x, *args, **kwargs)
    if not weights.mlp_pruned:
        x = _mixed(x, mlp_branch(block, x), weights.mlp)
    return x


def _mixed(x: Tensor, branch: Tensor, weight: float) -> Tensor:
    return x + branch if weight == 1 else (2 - weight) * x + weight * branch
