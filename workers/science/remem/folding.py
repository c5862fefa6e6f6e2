"""A reweighted or pruned model as a stock timm checkpoint with the same outputs (follows from ReMem, Eq. 2).

Divide the residual stream before block i by s_i, the product of the (2−β)(2−α) below it. Pre-norms undo the division,
so dividing each branch's output the same way, and letting the final norm undo s_L, changes no logit: the attention
output (proj) is multiplied by β/(s_i (2−β)), the MLP output (fc2) by α/(s_i (2−β)(2−α)); γ takes the factor where there
is one. A norm's ε keeps it from being exactly blind to scale: the fold is exact at ε = 0 and close at the stock ε.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput
from workers.science.remem.adapters import has_adapters
from workers.science.remem.blocks import architecture, evaluating, probe_image, scale_parameter, transformer_blocks
from workers.science.remem.lora import has_lora
from workers.science.remem.reweighting import restore, weights_of

_HOMOGENEOUS_POOLS = ("", "token", "avg", "avgmax", "max")


@dataclass(frozen=True)
class Folded:
    """A stock state dict, and how far its logits are from the reweighted model's on one probe image."""

    state: dict[str, Tensor]
    max_logit: float
    max_difference: float


def fold(model: nn.Module) -> Folded:
    """The stock checkpoint of a reweighted or pruned model; the model itself is left as it is.

    Of an unweighted model the state dict is its own, to the bit. The fold is checked in float64 with ε → 0 before it is
    handed out.

    Raises:
        BadInput: names the architecture whose residual stream is read by more than norms (XCiT's class attention, a
            model without a final norm) or whose branches do not end in a linear layer.
    """
    if has_lora(model) or has_adapters(model):
        what = "merge LoRA first" if has_lora(model) else "adapters cannot be folded"
        raise BadInput("model", architecture(model), f"a model with stock parameters; {what}")
    return _checked(model, _folded_state(model))


def _folded_state(model: nn.Module) -> dict[str, Tensor]:
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    factors = fold_factors(model)
    if all(factor == 1 for pair in factors for factor in pair):
        return state
    _require_foldable(model)
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    for block, pair in zip(transformer_blocks(model), factors, strict=True):
        for which, factor in enumerate(pair, start=1):
            for parameter in _last_linear_map(model, block, which):
                state[names[id(parameter)]] = _times(parameter.detach(), factor)
    return state


def fold_factors(model: nn.Module) -> list[tuple[float, float]]:
    """What each block's attention and MLP outputs are multiplied by, bottom first."""
    scale, factors = 1.0, []
    for block in transformer_blocks(model):
        weights = weights_of(block)
        attention = mlp = 0.0
        if not weights.attention_pruned:
            scale *= 2 - weights.attention
            attention = weights.attention / scale
        if not weights.mlp_pruned:
            scale *= 2 - weights.mlp
            mlp = weights.mlp / scale
        factors.append((attention, mlp))
    return factors


def _times(parameter: Tensor, factor: float) -> Tensor:
    return parameter.clone() if factor == 1 else (parameter.double() * factor).to(parameter.dtype)


def _last_linear_map(model: nn.Module, block: nn.Module, which: int) -> list[nn.Parameter]:
    gamma = scale_parameter(block, which)
    if gamma is not None:
        return [gamma]
    branch, attribute = (block.attn, "proj") if which == 1 else (block.mlp, "fc2")
    last = getattr(branch, attribute, None)
    if not isinstance(last, (nn.Linear, nn.Conv2d)):
        raise BadInput(
            "model", architecture(model), f"branches that end in a linear layer; its {type(branch).__name__} does not"
        )
    return [p for p in (last.weight, last.bias) if isinstance(p, nn.Parameter)]


def _require_foldable(model: nn.Module) -> None:
    name = architecture(model)
    if hasattr(model, "cls_attn_blocks"):
        raise BadInput("model", name, "one that can be folded; its class attention adds normed tokens to the residual")
    if any(hasattr(block, "local_mp") for block in transformer_blocks(model)):
        raise BadInput("model", name, "one that can be folded; its local branch is not reweighted")
    norm, after_pool = getattr(model, "norm", None), getattr(model, "fc_norm", None)
    if _blind_to_scale(norm):
        return
    pooled = getattr(model, "attn_pool", None) is None and getattr(model, "global_pool", "") in _HOMOGENEOUS_POOLS
    if not (_blind_to_scale(after_pool) and pooled):
        raise BadInput("model", name, "one that can be folded; it has no final norm to undo the scale")


def _blind_to_scale(norm: object) -> bool:
    return isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity) and getattr(norm, "eps", None) is not None


def _checked(model: nn.Module, state: dict[str, Tensor]) -> Folded:
    """Compare the two models on a probe image, with the stock ε for the record and without it, in float64, as proof."""
    reweighted, stock = copy.deepcopy(model), restore(copy.deepcopy(model))
    stock.load_state_dict(state)
    with evaluating(reweighted), evaluating(stock), torch.no_grad():
        probe = probe_image(model)
        expected, got = reweighted(probe), stock(probe)
        for copied in (reweighted, stock):
            _make_exact(copied)
        stock.load_state_dict(_folded_state(reweighted))
        exact, folded = reweighted(probe.double()), stock(probe.double())
    if not float((exact - folded).abs().max()) <= 1e-8 * max(float(exact.abs().max()), 1.0):
        raise BadInput("model", architecture(model), "one that can be folded; folding the scale changes its outputs")
    return Folded(state, float(expected.abs().max()), float((expected - got).abs().max()))


def _make_exact(model: nn.Module) -> None:
    """float64, and norms with next to no ε; batch norm keeps its own, since it does not look at its input in eval."""
    model.double()
    for module in model.modules():
        if isinstance(getattr(module, "eps", None), float) and not isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 1e-30  # type: ignore[assignment]
