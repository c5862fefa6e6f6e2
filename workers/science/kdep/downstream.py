"""What pre-training is worth: fine-tune on several sets, learning rate by validation, mean over seeds with an interval.

KDEP, He et al., CVPR 2022, §4.1. The first seed tries every learning rate; the one that is best on validation is used
for all seeds, and only its test scores count. Test scores never choose anything.

B images, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backend.domain.downstream import DownstreamParams, DownstreamResult, DownstreamSet, Metric, Task, estimate
from backend.domain.errors import BadInput
from backend.domain.methods import TrainingParams
from backend.domain.progress import Progress
from workers.science.batch import Batches
from workers.science.kdep.objective import SupervisedObjective
from workers.science.preprocessed import Preprocessed
from workers.science.training import Training, fit


@dataclass(frozen=True)
class Scores:
    """One fine-tuning, measured on both splits; fractions. `others`: further scores on test, by name."""

    validation: float
    test: float
    others: Mapping[str, float] = field(default_factory=dict)


FineTune = Callable[[float, int], Generator[Progress, None, Scores]]
"""(learning rate, seed) → a generator of progress that returns the scores."""


@dataclass(frozen=True)
class DownstreamTask:
    """A data set to fine-tune on, and how."""

    name: str
    fine_tune: FineTune
    metric: Metric = "top1"
    task: Task = "classification"


def best_learning_rate(validation: Mapping[float, float]) -> float:
    """The learning rate with the best validation score; of equals the smallest."""
    if not validation:
        raise BadInput("lrs", [], "expected at least one learning rate")
    return min(validation, key=lambda lr: (-validation[lr], lr))


@dataclass
class DownstreamRun:
    """An evaluation that can be left and taken up between two fine-tunings: `known` holds the scores so far.

    Keys of `known` are (task, learning rate, seed). The result is a function of the scores alone.
    """

    model: str
    tasks: Sequence[DownstreamTask]
    params: DownstreamParams
    known: dict[tuple[str, float, int], Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) != len(names):
            raise BadInput("tasks", names, "expected at least one downstream set, each named once")

    @property
    def total(self) -> int:
        """Fine-tunings in all."""
        return len(self.tasks) * (len(self.params.lrs) + len(self.params.seeds) - 1)

    def steps(self) -> Generator[Progress, None, DownstreamResult]:
        """Fine-tune what is not known yet; yields Progress at every step and returns the result.

        `step` counts finished fine-tunings; the Progress that ends one has a message and its validation score.
        """
        first, *others = self.params.seeds
        sets = []
        done = 0
        for task in self.tasks:
            validation: dict[float, float] = {}
            for lr in self.params.lrs:
                validation[lr] = (yield from self._score(task, lr, first, done)).validation
                done += 1
                yield self._progress(done, task, lr, first)
            lr = best_learning_rate(validation)
            scores = [self.known[(task.name, lr, first)]]
            for seed in others:
                scores.append((yield from self._score(task, lr, seed, done)))
                done += 1
                yield self._progress(done, task, lr, seed)
            sets.append(
                DownstreamSet(
                    dataset=task.name,
                    task=task.task,
                    metric=task.metric,
                    lr=lr,
                    validation={f"{rate:g}": score for rate, score in validation.items()},
                    test=estimate([one.test for one in scores], self.params.level),
                    others={
                        name: estimate([one.others[name] for one in scores], self.params.level)
                        for name in scores[0].others
                    },
                )
            )
        alike = [entry for entry in sets if entry.task == "classification"] or sets
        by_seed = [
            math.fsum(entry.test.values[i] for entry in alike) / len(alike) for i in range(len(self.params.seeds))
        ]
        average = estimate(by_seed, self.params.level)
        return DownstreamResult(model=self.model, seeds=self.params.seeds, sets=tuple(sets), average=average)

    def _score(self, task: DownstreamTask, lr: float, seed: int, done: int) -> Generator[Progress, None, Scores]:
        """The scores of one fine-tuning; its steps are passed on as signs of life, without counting."""
        key = (task.name, lr, seed)
        if key not in self.known:
            steps = task.fine_tune(lr, seed)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    self.known[key] = end.value
                    break
                yield Progress(step=done, total=self.total, unit="fine-tunings")
        return self.known[key]

    def _progress(self, done: int, task: DownstreamTask, lr: float, seed: int) -> Progress:
        scores = self.known[(task.name, lr, seed)]
        return Progress(
            step=done,
            total=self.total,
            unit="fine-tunings",
            metrics={"validation": scores.validation},
            message=f"{task.name}: lr {lr:g}, seed {seed}: validation {scores.validation:.4f}",
        )


Evaluation = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Yields (view [B, 3, H, W] in [0, 1], labels [B]) of a split, in the same order each time."""


@torch.no_grad()
def accuracy(student: Preprocessed, evaluation: Evaluation, metric: Metric = "top1", device: str = "cpu") -> float:
    """Share of images that are right, or its mean over the classes that occur (`mean_per_class`)."""
    student.eval()
    right: dict[int, list[bool]] = {}
    for view, labels in evaluation():
        top1 = student(view.to(device)).argmax(1).cpu()
        for label, hit in zip(labels.tolist(), (top1 == labels.cpu()).tolist(), strict=True):
            right.setdefault(int(label), []).append(bool(hit))
    if not right:
        raise BadInput("dataset", "no images", "expected at least one image to evaluate on")
    if metric == "mean_per_class":
        return math.fsum(sum(hits) / len(hits) for hits in right.values()) / len(right)
    return sum(map(sum, right.values())) / sum(map(len, right.values()))


def classification_task(
    name: str,
    student: Preprocessed,
    n_classes: int,
    batches_of: Callable[[int], Batches],
    validation: Evaluation,
    test: Evaluation,
    params: DownstreamParams,
    *,
    metric: Metric = "top1",
    device: str = "cpu",
) -> DownstreamTask:
    """Fine-tune all weights of a copy of `student` with a fresh head, cosine schedule; `student` itself stays as it is.

    Args:
        batches_of: seed → the training batches of a run with that seed.
    """

    def fine_tune(lr: float, seed: int) -> Generator[Progress, None, Scores]:
        tuned = copy.deepcopy(student)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tuned.model.reset_classifier(n_classes)  # type: ignore[operator]
        settings = TrainingParams(
            epochs=params.epochs,
            batch_size=params.batch_size,
            lr=lr,
            momentum=params.momentum,
            weight_decay=params.weight_decay,
            schedule="cosine",
            seed=seed,
        )
        training = Training(SupervisedObjective(), tuned, batches_of(seed), settings, device=device)
        yield from fit(training)
        return Scores(accuracy(tuned, validation, metric, device), accuracy(tuned, test, metric, device))

    return DownstreamTask(name, fine_tune, metric)
