"""How ReMem prepares a teacher and takes its snapshots: arXiv:2506.23041, §6 and appendix.

SGD momentum .9, no weight decay, batch 512, warm-up and one cosine over all steps, gradients clipped to norm 1, a head
that starts at zero; full, LoRA or adapters; SAM and reweighting as the setting says; snapshots at the stop points.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from backend.domain.errors import BadInput
from backend.domain.remem import MLP_WEIGHT_GRID, RHO_GRID, SETTINGS, TEACHER_LR_GRID, Setting, TeacherTuning
from workers.science.preprocessed import Preprocessed, classifier_parameters
from workers.science.remem.adapters import add_adapters, has_adapters
from workers.science.remem.blocks import architecture
from workers.science.remem.folding import Folded, fold
from workers.science.remem.lora import add_lora, merged_copy
from workers.science.remem.reweighting import prune, reweight
from workers.science.remem.sam import sam_stepper
from workers.science.training import Stepper


def zero_head(model: nn.Module) -> nn.Module:
    """Set the classifier's weights and biases to zero, in place: at first every class is as likely as any other."""
    with torch.no_grad():
        for parameter in classifier_parameters(model):
            parameter.zero_()
    return model


def prepare_teacher(model: nn.Module, tuning: TeacherTuning) -> nn.Module:
    """Give a pretrained model (with its new head) what the tuning asks for, in place, and say what is trainable.

    A model that is only reweighted, pruned or nothing at all keeps its parameter names. At α = β = 1 with full tuning
    and no zero head it is the stock model to the bit.
    """
    inner = model.model if isinstance(model, Preprocessed) else model
    if tuning.tune == "lora":
        add_lora(inner, tuning.lora, seed=tuning.seed)
    elif tuning.tune == "adapters":
        add_adapters(inner, reduction=tuning.adapter_reduction, seed=tuning.seed)
    if (tuning.mlp_weight, tuning.attention_weight) != (1.0, 1.0):
        reweight(inner, mlp_weight=tuning.mlp_weight, attention_weight=tuning.attention_weight)
    if tuning.pruned_blocks:
        prune(inner, tuning.pruned_branch, tuning.pruned_blocks)
    if tuning.zero_init_head:
        zero_head(inner)
    for parameter in classifier_parameters(inner):
        parameter.requires_grad_(True)
    return model


def teacher_stepper(tuning: TeacherTuning) -> Stepper:
    """SAM of the tuning's radius, or the plain step at ρ = 0."""
    return sam_stepper(rho=tuning.rho, adaptive=tuning.adaptive)


def stock_checkpoint(model: nn.Module) -> Folded:
    """A prepared teacher as a stock timm state dict with the same outputs: LoRA merged, weights folded.

    Raises:
        BadInput: the model has adapters, or an architecture that cannot be folded; names it.
    """
    inner = model.model if isinstance(model, Preprocessed) else model
    if has_adapters(inner):
        raise BadInput("model", architecture(inner), "a model without adapters, which no stock checkpoint can hold")
    merged = merged_copy(inner)
    if any("branch_weights" in module.__dict__ for module in merged.modules()):
        return fold(merged)
    return Folded({name: value.detach().clone() for name, value in merged.state_dict().items()}, 0.0, 0.0)


def teacher_grid(base: TeacherTuning, settings: tuple[Setting, ...] = SETTINGS) -> Iterator[TeacherTuning]:
    """The paper's cells: every learning rate, and for each setting its radii and weights; none twice."""
    for setting in settings:
        for lr in TEACHER_LR_GRID:
            for rho in RHO_GRID if setting in ("sam", "both") else (0.0,):
                for weight in MLP_WEIGHT_GRID if setting in ("reweight", "both") else (1.0,):
                    yield base.model_copy(update={"lr": lr, "rho": rho, "mlp_weight": weight})
