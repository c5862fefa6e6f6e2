"""Sharpness-aware minimization around any optimizer: Foret et al., arXiv:2010.01412; adaptive: Kwon et al., 2102.11600.

w weights, g gradient at w, ρ radius:  e = ρ g / (‖g‖₂ + 1e-12), one norm over all trainable weights; the optimizer
steps at w with the gradient taken at w + e.  Adaptive: T = |w| + η, e = ρ T² g / (‖T g‖₂ + 1e-12).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from backend.domain.errors import BadInput
from workers.science.batchnorm import frozen_statistics
from workers.science.training import Gradients, Stepper, Terms, Training, plain_step

_NORM_FLOOR = 1e-12


class Sam:
    """Two passes, one step of the wrapped optimizer; ρ = 0 is the wrapped optimizer to the bit (one pass).

    Only weights that an optimizer's group holds, that want a gradient and got one, are perturbed, so LoRA and adapters
    stay in their subspace. The weights are put back from a copy, not by subtraction. In the second pass batch norm
    normalises as ever but leaves its running statistics alone, and dropout and drop-path draw the masks of the first,
    so both gradients are of one loss. The optimizer's own state (momentum) moves once. Runs under bf16 autocast as it
    is; a loss scaler is neither needed nor supported (it would rescale g between the passes).

    Under DistributedDataParallel both passes must synchronise, so that every rank perturbs by the same e; wrapping the
    first pass in `no_sync` gives each rank its own e (the paper's m-sharpness) and is just as safe, since the weights
    are put back before the step. With micro-batches `closure` covers the whole effective batch.

    Args:
        optimizer: Any torch optimizer; its learning rate, groups and state stay its own.
        model: Where batch norm is looked for.
        rho: ρ ≥ 0.
        adaptive: Scale the perturbation by the weights (ASAM).
        eta: η of ASAM, so that zero weights can move too.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, *, rho: float, adaptive: bool = False, eta: float = 0.01
    ) -> None:
        _check(rho, eta)
        self.optimizer, self.model, self.rho, self.adaptive, self.eta = optimizer, model, rho, adaptive, eta

    def step(self, closure: Callable[[], Tensor], before_step: Callable[[], object] | None = None) -> Tensor:
        """One optimizer step; returns the loss at w.

        Args:
            closure: Clears the gradients, runs forward and backward over the effective batch, returns the loss. It is
                called twice when ρ > 0.
            before_step: Runs once on the gradient that will be applied: clipping, for one.
        """
        if self.rho == 0:
            loss = closure()
        else:
            random = _random_state()
            loss = closure()
            with self._perturbed(), frozen_statistics(self.model), _replayed(random):
                closure()
        if before_step is not None:
            before_step()
        self.optimizer.step()
        return loss

    def _perturbed(self) -> AbstractContextManager[None]:
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        return perturbed(weights, self.rho, self.eta if self.adaptive else None)


@contextmanager
def perturbed(weights: list[Tensor], rho: float, adaptive_eta: float | None = None) -> Iterator[None]:
    """Inside, the weights are w + e for the gradients they carry on entry; on leaving, w to the bit."""
    moved = [(weight, weight.grad) for weight in weights if weight.requires_grad and weight.grad is not None]
    chosen, gradients = [weight for weight, _ in moved], [gradient for _, gradient in moved]
    kept = [weight.detach().clone() for weight in chosen]
    try:
        with torch.no_grad():
            for weight, step in zip(chosen, perturbations(chosen, gradients, rho, adaptive_eta), strict=True):
                weight.add_(step)
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(chosen, kept, strict=True):
                weight.copy_(original)


def perturbations(
    weights: list[Tensor], gradients: list[Tensor], rho: float, adaptive_eta: float | None = None
) -> list[Tensor]:
    """e for each weight: ρ g / (‖g‖₂ + 1e-12) with one global norm, or ASAM's form when `adaptive_eta` is given.

    Norms are taken in float32 at least, whatever the weights' type. Zero gradients give zero.
    """
    if not weights:
        return []
    scales: list[Tensor | None] = [None] * len(weights)
    if adaptive_eta is not None:
        scales = [weight.detach().abs().add(adaptive_eta) for weight in weights]
    scaled = [g if t is None else t * g for g, t in zip(gradients, scales, strict=True)]
    home = scaled[0].device
    norm = torch.linalg.vector_norm(torch.stack([_norm(part).to(home) for part in scaled]))
    factor = rho / (norm + _NORM_FLOOR)
    steps = []
    for weight, part, scale in zip(weights, scaled, scales, strict=True):
        step = part * factor.to(part.device, part.dtype if part.dtype == torch.float64 else torch.float32)
        steps.append((step if scale is None else scale * step).to(weight.dtype))
    return steps


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return norm


def sam_stepper(*, rho: float, adaptive: bool = False, eta: float = 0.01) -> Stepper:
    """The step of `fit` under SAM; ρ = 0 is the plain step. `fit` repeats the dropout masks and clips."""
    _check(rho, eta)
    if rho == 0:
        return plain_step

    def sam_step(training: Training, gradients: Gradients) -> Terms:
        terms = gradients()
        with perturbed(list(training.trainable()), rho, eta if adaptive else None):
            gradients(freeze_statistics=True)
        training.clip_gradients()
        training.optimizer.step()
        return terms

    return sam_step


def _check(rho: float, eta: float) -> None:
    if rho < 0:
        raise BadInput("rho", rho, "zero (the plain optimizer) or a positive radius")
    if eta < 0:
        raise BadInput("eta", eta, "zero or positive")


def _random_state() -> tuple[Tensor, list[Tensor]]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), cuda


@contextmanager
def _replayed(state: tuple[Tensor, list[Tensor]]) -> Iterator[None]:
    """Inside, random draws repeat from `state` on; a pass that draws alike ends where the first ended."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
    yield
