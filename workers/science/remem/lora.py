"""LoRA on the q and v projections of timm's attention, by peft: Hu et al., arXiv:2106.09685.

peft adapts whole linear layers, timm fuses q, k and v into one: the fused layer is split into three, q and v are
adapted, and on export the updates are merged and the three fused again. r rank, s scale: W' = W + (s / r) B A; B
starts at 0.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput
from backend.domain.remem import LoraParams
from workers.science.remem.blocks import architecture, transformer_blocks

_UNFUSED = (("q_proj", "v_proj"), ("q", "v"))


class SplitQkv(nn.Module):
    """A fused q, k, v projection as three: [.., D] → [.., 3 · D'], the same numbers in the same places."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        if fused.out_features % 3:
            raise BadInput("qkv", fused.out_features, "a fused projection of three equal parts")
        size = fused.out_features // 3
        self.q, self.k, self.v = (_part(fused, slice(i * size, (i + 1) * size)) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def add_lora(model: nn.Module, params: LoraParams, *, seed: int = 0) -> nn.Module:
    """Adapt q and v of every block, in place; all but the updates is frozen. The outputs stay what they were.

    Raises:
        BadInput: the architecture's blocks have no q and v projections that can be told apart; names it.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if has_lora(model):
        raise BadInput("model", architecture(model), "a model without LoRA; merge it first")
    targets = []
    for block in transformer_blocks(model):
        targets += _targets(model, block.attn)
    names = {id(module): name for name, module in model.named_modules()}
    config = LoraConfig(
        r=params.rank,
        lora_alpha=params.scale,  # type: ignore[arg-type]
        lora_dropout=params.dropout,
        target_modules=[names[id(target)] for target in targets],
        bias="none",
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    return model


def has_lora(model: nn.Module) -> bool:
    """Whether updates are waiting to be merged."""
    return any(isinstance(module, SplitQkv) or hasattr(module, "lora_A") for module in model.modules())


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the updates to the weights they belong to and fuse q, k, v again, in place: the stock module tree.

    Everything wants gradients afterwards. Reduces to nothing for a model without LoRA.
    """
    if not has_lora(model):
        return model
    for block in transformer_blocks(model):
        attn: Any = block.attn
        if isinstance(getattr(attn, "qkv", None), SplitQkv):
            parts = [_merged(part) for part in (attn.qkv.q, attn.qkv.k, attn.qkv.v)]
            attn.qkv = _fused(parts)
            if "split_bias_separate" in attn.__dict__:
                attn.qkv_bias_separate = attn.__dict__.pop("split_bias_separate")
        for name in (name for pair in _UNFUSED for name in pair):
            if hasattr(getattr(attn, name, None), "lora_A"):
                setattr(attn, name, _merged(getattr(attn, name)))
    model.__dict__.pop("peft_config", None)
    model.requires_grad_(True)
    return model


def merged_copy(model: nn.Module) -> nn.Module:
    """A stock copy with the updates merged; the model itself goes on training."""
    return merge_lora(copy.deepcopy(model))


def _targets(model: nn.Module, attn: Any) -> list[nn.Module]:
    """The q and v layers, after splitting the fused projection where there is one."""
    fused = getattr(attn, "qkv", None)
    if isinstance(fused, nn.Linear):
        if getattr(attn, "q_bias", None) is not None:
            # BEiT and EVA keep q and v biases apart and read qkv.weight themselves, unless told to call the layer
            attn.__dict__["split_bias_separate"] = attn.qkv_bias_separate
            attn.qkv_bias_separate = True
        attn.qkv = SplitQkv(fused)
        return [attn.qkv.q, attn.qkv.v]
    for q, v in _UNFUSED:
        if isinstance(getattr(attn, q, None), nn.Linear) and isinstance(getattr(attn, v, None), nn.Linear):
            return [getattr(attn, q), getattr(attn, v)]
    raise BadInput("model", architecture(model), f"attention with q and v projections; {type(attn).__name__} has none")


def _part(fused: nn.Linear, rows: slice) -> nn.Linear:
    part = nn.Linear(fused.in_features, rows.stop - rows.start, bias=fused.bias is not None, device="meta")
    part.weight = nn.Parameter(fused.weight.detach()[rows].clone())
    if fused.bias is not None:
        part.bias = nn.Parameter(fused.bias.detach()[rows].clone())
    return part


def _merged(layer: Any) -> nn.Linear:
    if not hasattr(layer, "lora_A"):
        assert isinstance(layer, nn.Linear)
        return layer
    base: nn.Linear = layer.get_base_layer()
    with torch.no_grad():
        for adapter in layer.active_adapters:
            base.weight.add_(layer.get_delta_weight(adapter))
    return base


def _fused(parts: list[nn.Linear]) -> nn.Linear:
    has_bias = parts[0].bias is not None
    fused = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), bias=has_bias, device="meta")
    fused.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
    if has_bias:
        fused.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))
    return fused
