"""Downstream evaluation: the learning rate comes from validation alone, scores of all seeds, resumable."""

from collections.abc import Generator

import pytest
import timm
import torch
from scipy.stats import t as student_t

from backend.domain.errors import BadInput
from backend.domain.kdep import DownstreamParams, DownstreamResult, estimate
from backend.domain.progress import Progress
from workers.science.kdep.downstream import (
    DownstreamRun,
    DownstreamTask,
    Scores,
    accuracy,
    best_learning_rate,
    classification_task,
)
from workers.science.preprocessed import Preprocessed
from workers.science.tensor_batches import TensorBatches

PARAMS = DownstreamParams(lrs=(0.1, 0.01), seeds=(0, 1, 2), epochs=1)


def _task(name: str, table: dict[float, tuple[float, float]], calls: list[tuple[str, float, int]]) -> DownstreamTask:
    """A fine-tuning whose scores are looked up: lr → (validation, test), the seed adds a hundredth to the test."""

    def fine_tune(lr: float, seed: int) -> Generator[Progress, None, Scores]:
        calls.append((name, lr, seed))
        yield Progress(step=1, total=1)
        validation, test = table[lr]
        return Scores(validation, test + seed / 100)

    return DownstreamTask(name, fine_tune)


def _finish(run: DownstreamRun) -> tuple[list[Progress], DownstreamResult]:
    steps, progress = run.steps(), []
    while True:
        try:
            progress.append(next(steps))
        except StopIteration as end:
            return progress, end.value


def test_validation_chooses_and_test_is_only_reported() -> None:
    calls: list[tuple[str, float, int]] = []
    tasks = [
        _task("a", {0.1: (0.5, 0.9), 0.01: (0.6, 0.4)}, calls),
        _task("b", {0.1: (0.8, 0.2), 0.01: (0.1, 0.7)}, calls),
    ]
    progress, result = _finish(DownstreamRun("student", tasks, PARAMS))
    assert [entry.lr for entry in result.sets] == [0.01, 0.1]
    assert result.sets[0].validation == {"0.1": 0.5, "0.01": 0.6}
    assert result.sets[0].test.values == pytest.approx((0.4, 0.41, 0.42))
    assert result.average.values == pytest.approx((0.3, 0.31, 0.32))
    assert result.average.mean == pytest.approx(0.31)
    assert len(calls) == len(set(calls)) == 8, "no fine-tuning twice"
    assert [step.step for step in progress if step.message] == list(range(1, 9))
    assert [step.step for step in progress if not step.message] == list(range(8))
    assert {step.total for step in progress} == {8}


def test_a_run_goes_on_from_known_scores() -> None:
    calls: list[tuple[str, float, int]] = []
    table = {0.1: (0.5, 0.9), 0.01: (0.6, 0.4)}
    run = DownstreamRun("student", [_task("a", table, calls)], PARAMS)
    steps = run.steps()
    for _ in range(6):  # a step and an end of each of three fine-tunings
        next(steps)
    steps.close()
    again: list[tuple[str, float, int]] = []
    _, result = _finish(DownstreamRun("student", [_task("a", table, again)], PARAMS, known=dict(run.known)))
    assert again == [("a", 0.01, 2)]
    assert result == _finish(DownstreamRun("student", [_task("a", table, [])], PARAMS))[1]


def test_the_interval_is_students_t() -> None:
    found = estimate((0.7, 0.74, 0.72))
    half = student_t.ppf(0.975, 2) * 0.02 / 3**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((0.72, 0.72 - half, 0.72 + half))
    assert estimate((0.5,)).low is None
    with pytest.raises(BadInput, match="at least one"):
        estimate(())


def test_of_equal_learning_rates_the_smallest() -> None:
    assert best_learning_rate({0.1: 0.5, 0.01: 0.5, 1.0: 0.2}) == 0.01


def test_sets_need_different_names() -> None:
    with pytest.raises(BadInput, match="named once"):
        DownstreamRun("student", [_task("a", {}, []), _task("a", {}, [])], PARAMS)


def test_a_classification_is_learnt_and_the_student_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = 0.2 * torch.rand(60, 3, 32, 32, generator=generator)
    images[torch.arange(60), labels] += 0.7  # the class is the colour
    torch.manual_seed(0)
    student = Preprocessed(timm.create_model("test_resnet", num_classes=11), (3, 32, 32), [0.5] * 3, [0.5] * 3)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    params = DownstreamParams(lrs=(0.05,), epochs=6, batch_size=20)

    def held_out() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(images[40:], labels[40:])]

    task = classification_task(
        "colours",
        student,
        3,
        lambda seed: TensorBatches(images[:40], labels[:40], _training(params, seed)),
        held_out,
        held_out,
        params,
    )
    _, result = _finish(DownstreamRun("student", [task], params))
    assert result.average.mean > 0.9
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def _training(params: DownstreamParams, seed: int) -> object:
    from backend.domain.methods import TrainingParams

    return TrainingParams(epochs=params.epochs, batch_size=params.batch_size, seed=seed)


def test_mean_per_class_weighs_classes_alike() -> None:
    class Constant(Preprocessed):
        def forward(self, view: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(view), 2)

    student = Constant(torch.nn.Identity(), 4, [0.5] * 3, [0.5] * 3)
    labels = torch.tensor([0, 0, 0, 1])
    split = [(torch.zeros(4, 3, 4, 4), labels)]
    assert accuracy(student, lambda: split) == 0.75
    assert accuracy(student, lambda: split, "mean_per_class") == 0.5
    with pytest.raises(BadInput, match="no images"):
        accuracy(student, lambda: [])
