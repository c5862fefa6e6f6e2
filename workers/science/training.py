"""Training as a generator: `for progress in fit(training): ...`; to cancel, do not ask for the next step.

    training = Training(objective, student, batches, params, device="cuda")
    training.load_state_dict(checkpoint)             # to go on where an earlier run was
    for progress in fit(training):
        if time_to_checkpoint:
            save(training.state_dict())              # valid between any two steps; refuses a non-finite state
    result = objective.evaluated(training.student)

The loop knows no method: what is learned from is an `Objective`, how gradients become a step is a `Stepper`.

*A new objective* (KDEP learns features, say) subclasses `Objective`: `loss` returns named terms with their total under
"loss"; modules that are trained along are returned by `parameters` and moved by `to`.

*A new step* (SAM takes two gradients) is a function `stepper(training, gradients)`:

    def sam(training, gradients):
        terms = gradients()                          # zero, forward, backward over all micro-batches
        perturb(training.trainable())
        gradients(freeze_statistics=True)            # again: same batch, same dropout, BatchNorm's statistics held
        restore(training.trainable())
        training.clip_gradients()
        training.optimizer.step()
        return terms

Every step seeds torch's generators from (seed, step) and batches are a pure function of (seed, epoch), so a run that
was interrupted anywhere ends in the same bits as one that was not (CPU, fixed number of threads).

Several processes train one model by `ranks`: each meets its share of every batch and the gradients are summed, so the
step is that of the whole batch (`workers.science.ranks` says where BatchNorm and dropout differ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput, NonFiniteLoss
from backend.domain.methods import TrainingParams
from backend.domain.progress import Progress
from workers.science.batch import Batch, Batches
from workers.science.batchnorm import batchnorm_layers, frozen_statistics
from workers.science.order import batch_bounds
from workers.science.prefetch import prefetched
from workers.science.preprocessed import classifier_parameters
from workers.science.ranks import ALONE, Ranks, average_statistics, same_everywhere, sum_step

Terms = dict[str, Tensor]


class Objective:
    """What a student learns from. Only `loss` must be written; the rest has defaults that do nothing."""

    per_sample = True
    """The loss is a mean over samples, so micro-batches change nothing. False where the batch itself is compared."""

    ranks: Ranks = ALONE
    """The processes that train together, set by the training; counts over samples are summed over them."""

    def loss(self, student: nn.Module, batch: Batch) -> Terms:
        """Named scalars with their total under "loss"; the rest are for people (detached or not)."""
        raise NotImplementedError

    def parameters(self) -> Iterable[nn.Parameter]:
        """What is trained beside the student."""
        return ()

    def to(self, device: torch.device) -> None:
        """Move everything the objective holds."""

    def begin_epoch(self, epoch: int) -> None:
        """Before the first step of an epoch (0-based); not called when training resumes within one."""

    def begin_pass(self) -> None:
        """Before each forward and backward over the batch; there may be several in a step, the last one counts."""

    def after_step(self, step: int) -> None:
        """After optimizer step number `step` (from 1)."""

    def evaluated(self, student: nn.Module) -> nn.Module:
        """The module that is evaluated and saved: the student, or what the objective makes of it."""
        return student

    def diagnostics(self) -> dict[str, float]:
        """Figures about the epoch so far, reported with its last step."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on exactly here: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""


class Gradients(Protocol):
    def __call__(self, *, freeze_statistics: bool = False) -> Terms:
        """Zero the gradients, then forward and backward over the whole batch; returns the mean terms, detached."""


Stepper = Callable[["Training", Gradients], Terms]


def plain_step(training: Training, gradients: Gradients) -> Terms:
    """One gradient, clipped if the params say so, one optimizer step."""
    terms = gradients()
    training.clip_gradients()
    training.optimizer.step()
    return terms


def learning_rate_factor(params: TrainingParams, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied with in optimizer step `step` (0-based).

    Linear warm-up from 1 / warmup_steps, then constant; or a cosine from 1 to 0 over the rest; or × step_factor every
    step_epochs epochs.
    """
    if step < params.warmup_steps:
        return (step + 1) / params.warmup_steps
    if params.schedule == "cosine":
        rest = max(1, total_steps - params.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - params.warmup_steps) / rest)))
    if params.schedule == "step":
        return float(params.step_factor ** (step // (params.step_epochs * steps_per_epoch)))
    return 1.0


class Training:
    """A training between two steps: student, optimizer, objective and how far they are.

    Args:
        objective: What is learned from.
        student: The model in training, in train mode during steps (its BatchNorm keeps adapting).
        batches: The epochs; moved to `device` one by one.
        params: Optimizer, schedule, seed and so on; all that is not about the objective.
        stepper: How gradients become a step.
        optimizer: In place of the one `params` describe; its groups' learning rates are scaled by the schedule.
        log_every: Steps between metrics. Losses are checked each step on CPU, else with the metrics, which then is
            the only time the device is waited for.
        prefetch: Batches made ahead in a thread; none on CPU and 2 elsewhere, if not given.
        ranks: The processes that train together, each with its share of every batch (`workers.science.ranks`).

    Raises:
        BadInput: nothing to train, batches that BatchNorm cannot use, a student without a classifier to probe.
    """

    def __init__(
        self,
        objective: Objective,
        student: nn.Module,
        batches: Batches,
        params: TrainingParams,
        *,
        device: torch.device | str = "cpu",
        stepper: Stepper = plain_step,
        optimizer: torch.optim.Optimizer | None = None,
        log_every: int = 10,
        prefetch: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.objective, self.student, self.batches, self.params = objective, student, batches, params
        self.device, self.stepper, self.log_every = torch.device(device), stepper, log_every
        self.prefetch = (0 if self.device.type == "cpu" else 2) if prefetch is None else prefetch
        self.has_batchnorm = bool(batchnorm_layers(student))
        for name in ("batch_size", "micro_batch"):
            if self.has_batchnorm and getattr(params, name) == 1:
                raise BadInput(name, 1, "at least 2, because the student has BatchNorm")
        if batches.steps_per_epoch < 1:
            raise BadInput("transfer set", "no samples", "at least one batch")
        student.to(self.device)
        if params.channels_last:
            student.to(memory_format=torch.channels_last)
        objective.to(self.device)
        self.ranks = ranks
        if ranks.size > 1:
            self._join()
        self._head = {id(p) for p in classifier_parameters(student)} if params.probe_epochs else set()
        self._student_parameters = [p for p in student.parameters() if p.requires_grad]
        if not self.trainable():
            raise BadInput("student", type(student).__name__, "a model with parameters that can be trained")
        self.optimizer = optimizer or _optimizer(self.trainable(), params)
        for group in self.optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])
        if params.compile:
            student.compile()
        self.step = 0
        self.verified_step = 0
        self.micro_batch = min(params.micro_batch or params.batch_size + 1, params.batch_size + 1)
        self._unverified: list[tuple[int, Terms]] = []
        self._window: list[dict[str, float]] = []
        self._messages: list[str] = []

    def _join(self) -> None:
        """Begin where rank 0 begins; refuse what cannot be split."""
        if not self.objective.per_sample or getattr(self.params, "compares_samples", False):
            raise BadInput("device", self.ranks.size, "one device: the loss compares the samples of a batch")
        least = 2 if self.has_batchnorm else 1
        share = getattr(self.batches, "smallest_share", lambda: least)()
        if share < least:
            raise BadInput(
                "batch_size",
                self.params.batch_size,
                f"batches of at least {least} samples for each of {self.ranks.size} devices; one would get {share}",
            )
        same_everywhere(self.student, self.ranks)
        self.objective.ranks = self.ranks

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.params.steps or self.params.epochs * self.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    @property
    def epoch_ended(self) -> bool:
        """True just after the last step of an epoch, and of the training."""
        return self.step > 0 and (self.step % self.steps_per_epoch == 0 or self.step == self.total_steps)

    def trainable(self) -> list[nn.Parameter]:
        """The student's trainable parameters, then the objective's."""
        return [*self._student_parameters, *self.objective.parameters()]

    def clip_gradients(self) -> None:
        """Scale all gradients so that their global norm is at most `params.grad_clip`, if that is given."""
        if self.params.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.trainable(), self.params.grad_clip)

    def advance(self, batch: Batch) -> Progress:
        """One optimizer step on `batch`.

        Raises:
            NonFiniteLoss: a loss of this or a recent step is NaN or infinite.
            BadInput: a batch of one sample for a student with BatchNorm.
        """
        if self.has_batchnorm and len(batch) == 1:
            raise BadInput("transfer set", "a batch of one sample", "two at least, because the student has BatchNorm")
        epoch = self.epoch
        if self.step % self.steps_per_epoch == 0:
            self.objective.begin_epoch(epoch)
        probing = epoch < self.params.probe_epochs
        for parameter in self._student_parameters if probing else ():
            parameter.requires_grad_(id(parameter) in self._head)
        self.student.train(not probing)
        factor = learning_rate_factor(self.params, self.step, self.total_steps, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

        batch = self._on_device(batch)

        def gradients(*, freeze_statistics: bool = False) -> Terms:
            return self._gradients(batch, freeze_statistics=freeze_statistics)

        terms = self.stepper(self, gradients)
        if self.ranks.size > 1 and self.has_batchnorm:
            average_statistics(self.student, self.ranks)
        for parameter in self._student_parameters if probing else ():
            parameter.requires_grad_(True)
        self.step += 1
        self.objective.after_step(self.step)
        self._unverified.append((self.step, terms))
        logging = self.step % self.log_every == 0 or self.epoch_ended
        if logging or self.device.type == "cpu":
            self._check_losses()
        if self.step == self.total_steps:
            self.verify()
        message, self._messages = "; ".join(self._messages) or None, []
        metrics = self._metrics() if logging else {}
        return Progress(step=self.step, total=self.total_steps, epoch=epoch + 1, metrics=metrics, message=message)

    def verify(self) -> None:
        """Wait for the device and make sure that every loss so far and every weight is finite.

        Raises:
            NonFiniteLoss: names the first step and term that is not; "weights" where only those are.
        """
        self._check_losses()
        tensors = [*self.student.parameters(), *self.student.buffers(), *self.objective.parameters()]
        finite = [torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()]
        if not bool(torch.stack(finite).all()):
            raise NonFiniteLoss(self.step, "weights", math.nan)
        self.verified_step = self.step

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly here; tensors and plain values, loadable with `weights_only=True`.

        Its tensors are the live ones: write it, or copy it, before the next step. Raises NonFiniteLoss rather than
        return a state from which training cannot go on, so the last state returned is always a good one.
        """
        self.verify()
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "micro_batch": self.micro_batch,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "window": [dict(terms) for terms in self._window],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same training.

        Raises:
            BadInput: it belongs to a training of another length.
        """
        if state["total_steps"] != self.total_steps:
            raise BadInput("checkpoint", f"{state['total_steps']} steps in all", f"one of {self.total_steps} steps")
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.step = self.verified_step = state["step"]
        self.micro_batch = state["micro_batch"]
        self._window = [dict(terms) for terms in state["window"]]
        self._unverified = []

    def _gradients(self, batch: Batch, *, freeze_statistics: bool) -> Terms:
        """Over micro-batches; where CUDA runs out of memory, again with half as many samples at a time.

        Down to one sample, or two where BatchNorm needs them; then it fails.
        """
        buffers = list(self.student.buffers())
        before = [buffer.detach().clone() for buffer in buffers]
        floor = 2 if self.has_batchnorm else 1
        while True:
            try:
                sums = self._accumulate(batch, freeze_statistics=freeze_statistics)
                return sums if self.ranks.size == 1 else sum_step(self.trainable(), sums, self.ranks)
            except torch.OutOfMemoryError:
                size = min(self.micro_batch, len(batch))
                if size <= floor:
                    raise
            with torch.no_grad():
                for buffer, old in zip(buffers, before, strict=True):
                    buffer.copy_(old)
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_batch = max(floor, -(-size // 2))
            exact = not self.has_batchnorm and self.objective.per_sample
            self._messages.append(
                f"out of memory at step {self.step + 1}: micro-batch {size} → {self.micro_batch}, same effective batch"
                + ("" if exact else "; not equivalent: " + self._why_not_equivalent())
            )

    def _why_not_equivalent(self) -> str:
        return "BatchNorm sees the micro-batch" if self.has_batchnorm else "the loss compares samples of a micro-batch"

    def _accumulate(self, batch: Batch, *, freeze_statistics: bool) -> Terms:
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.begin_pass()
        devices = [self.device] if self.device.type == "cuda" else []
        amp = torch.autocast(self.device.type, torch.bfloat16) if self.params.amp else nullcontext()
        hold = frozen_statistics(self.student) if freeze_statistics else nullcontext()
        sums: Terms = {}
        with torch.random.fork_rng(devices), hold:
            torch.manual_seed(_step_seed(self.params.seed, self.step, self.ranks.rank))
            for part in _parts(batch, self.micro_batch):
                weight = len(part) / batch.n_step
                with amp:
                    terms = self.objective.loss(self.student, part)
                (terms["loss"] * weight).backward()  # type: ignore[no-untyped-call]
                for name, term in terms.items():
                    value = term.detach().float() * weight
                    sums[name] = sums[name] + value if name in sums else value
        return sums

    def _check_losses(self) -> None:
        for step, terms in self._unverified:
            values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
            for name, value in sorted(values.items(), key=lambda item: item[0] == "loss"):  # parts before their total
                if not math.isfinite(value):
                    raise NonFiniteLoss(step, name, value)
            self._window.append(values)
            self.verified_step = step
        self._unverified = []

    def _metrics(self) -> dict[str, float]:
        names = self._window[-1] if self._window else {}
        metrics = {name: math.fsum(terms[name] for terms in self._window) / len(self._window) for name in names}
        self._window = []
        if self.epoch_ended:
            with torch.no_grad():
                figures = self.objective.diagnostics()
            metrics |= {name: value for name, value in figures.items() if math.isfinite(value)}
        return metrics | {"lr": float(self.optimizer.param_groups[0]["lr"])}

    def _on_device(self, batch: Batch) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        view = move(batch.view)
        if self.params.channels_last:
            view = view.contiguous(memory_format=torch.channels_last)
        labels = None if batch.labels is None else move(batch.labels)
        outputs = {name: move(out) for name, out in batch.outputs.items()}
        return Batch(view, labels, move(batch.indices), outputs, batch.whole)


def fit(training: Training) -> Iterator[Progress]:
    """Train to the end, one Progress per optimizer step, metrics on every `log_every`-th and at the end of epochs."""
    while training.step < training.total_steps:
        begun = training.step
        stream = training.batches.epoch(training.epoch, start=training.step % training.steps_per_epoch)
        if training.prefetch:
            stream = prefetched(stream, training.prefetch)
        for batch in stream:
            yield training.advance(batch)
            if training.step >= training.total_steps or training.step % training.steps_per_epoch == 0:
                break
        assert training.step > begun, "batches ended before steps_per_epoch"


def _optimizer(parameters: list[nn.Parameter], params: TrainingParams) -> torch.optim.Optimizer:
    if params.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=params.lr, weight_decay=params.weight_decay)
    return torch.optim.SGD(parameters, lr=params.lr, momentum=params.momentum, weight_decay=params.weight_decay)


def _step_seed(seed: int, step: int, rank: int = 0) -> int:
    return int(np.random.SeedSequence([seed, step, rank] if rank else [seed, step]).generate_state(1, np.uint64)[0])


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in nearly equal slices of at most `size`, none of a single sample if that can be."""
    bounds = batch_bounds(len(batch), size)
    if len(bounds) == 1:
        yield batch
        return
    for start, stop in bounds:
        labels = None if batch.labels is None else batch.labels[start:stop]
        outputs = {name: out[start:stop] for name, out in batch.outputs.items()}
        yield Batch(batch.view[start:stop], labels, batch.indices[start:stop], outputs)
