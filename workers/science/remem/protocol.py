"""ReMem's protocol as one resumable computation: tune, stop, measure, distil, choose (arXiv:2506.23041, §6).

For every tuning of the teacher: train to a stop point; there measure it (validation error, information, expertness),
distil a fresh student from it in every way listed, and go on to the next stop point of the same training. Validation
chooses; test is scored for each teacher and for its best student, and no choice reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from backend.domain.errors import NonFiniteLoss
from backend.domain.progress import Progress
from backend.domain.remem import Metric, RememParams, StudentDistillation, TeacherTuning
from backend.domain.remem_protocol import error_rate, tuned_teacher
from backend.domain.remem_results import (
    ExpertnessResult,
    InformationResult,
    StudentScore,
    TeacherSnapshot,
    TunedTeacher,
)
from workers.science.augment import as_images
from workers.science.expertness import measure_expertness
from workers.science.information.features import ModelFeatures
from workers.science.information.reconstruction import Reconstruction, kept_when_they_fit
from workers.science.preprocessed import Preprocessed, frozen_copy
from workers.science.remem.distill import DISTILLATIONS
from workers.science.remem.recipe import prepare_teacher, teacher_stepper
from workers.science.tensor_batches import TensorBatches
from workers.science.top1 import Pixels, predict_top1
from workers.science.training import Training, fit
from workers.science.transfer.cross_entropy import CrossEntropy
from workers.science.transfer.roles import Roles

R = TypeVar("R")


class Labelled(Pixels, Protocol):
    """Images with labels [N]."""

    labels: Tensor


@dataclass(frozen=True)
class Bench:
    """What the protocol works with.

    Args:
        teacher: A fresh copy of the pretrained teacher with its new head.
        student: A fresh student for a seed; not called when there are no distillations.
        train: Images both learn from, one view for both; validation and test are the same samples as `teacher` and
            `student` want to see them.
        view_size: Side of the training views.
        data: Names the images, for telling results apart.
    """

    teacher: Callable[[], Preprocessed]
    student: Callable[[int], Preprocessed]
    train: Labelled
    validation: Mapping[str, Labelled]
    test: Mapping[str, Labelled]
    n_classes: int
    view_size: int
    teacher_name: str
    data: str
    metric: Metric = "top1"


@dataclass
class _AtStop:
    """What is known of the teacher at the current stop point."""

    validation_error: float | None = None
    information: InformationResult | None = None
    expertness: ExpertnessResult | None = None
    students: list[StudentScore] = field(default_factory=list)
    tried: int = 0
    kept: dict[str, Tensor] | None = None

    def best_error(self) -> float:
        return min((student.validation_error for student in self.students), default=float("inf"))


class RememRun:
    """A run of the protocol between two steps; `state_dict` at any of them is enough to go on to the same bits.

    After `run`: `teachers`, `failures`, and the weights of the chosen pair, `best_teacher` and `best_student`.
    """

    def __init__(self, bench: Bench, params: RememParams, *, device: torch.device | str = "cpu") -> None:
        self.bench, self.params, self.device = bench, params, torch.device(device)
        self.teachers: list[TunedTeacher] = []
        self.failures: list[str] = []
        self.best_teacher: dict[str, Tensor] | None = None
        self.best_student: dict[str, Tensor] | None = None
        self._best: tuple[float, int] | None = None
        self._done = self._finished = 0
        self._snapshots: list[TeacherSnapshot] = []
        self._at_stop = _AtStop()
        self._best_of_tuning: tuple[float, dict[str, Tensor], dict[str, Tensor] | None] | None = None
        self._training: Training | None = None
        self._inner: Training | Reconstruction | None = None
        self._resume: dict[str, Any] = {}

    @property
    def total_steps(self) -> int:
        """Optimizer steps of teachers, decoders and students in all, if none diverges."""
        return sum(self._steps_of(tuning) for tuning in self.params.tunings)

    def run(self) -> Iterator[Progress]:
        """Everything that is left to do, one Progress per optimizer step or measured part.

        Raises:
            NonFiniteLoss: every tuning diverged; single ones are noted among the failures.
        """
        tunings = self.params.tunings
        while self._finished < len(tunings):
            tuning = tunings[self._finished]
            try:
                yield from self._tune(tuning)
            except NonFiniteLoss as error:
                self.failures.append(f"teacher {_shown(tuning)}: {error}")
                if not self.teachers and self._finished + 1 == len(tunings) and not self._usable():
                    raise
            self._close(tuning)
            yield self._progress(f"tuning {self._finished} of {len(tunings)} is done")

    def state_dict(self) -> dict[str, Any]:
        """Finished parts as JSON values, weights and trainings in progress as tensors."""
        at_stop = self._at_stop
        return {
            "done": self._done,
            "finished": self._finished,
            "teachers": [one.model_dump(mode="json") for one in self.teachers],
            "failures": list(self.failures),
            "snapshots": [one.model_dump(mode="json") for one in self._snapshots],
            "at_stop": {
                "validation_error": at_stop.validation_error,
                "information": _dumped(at_stop.information),
                "expertness": _dumped(at_stop.expertness),
                "students": [one.model_dump(mode="json") for one in at_stop.students],
                "tried": at_stop.tried,
                "kept": at_stop.kept,
            },
            "best": None if self._best is None else list(self._best),
            "best_teacher": self.best_teacher,
            "best_student": self.best_student,
            "best_of_tuning": None if self._best_of_tuning is None else list(self._best_of_tuning),
            "training": None if self._training is None else self._training.state_dict(),
            "inner": None if self._inner is None else self._inner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same run."""
        self._done, self._finished = int(state["done"]), int(state["finished"])
        self.teachers = [TunedTeacher.model_validate(one) for one in state["teachers"]]
        self.failures = list(state["failures"])
        self._snapshots = [TeacherSnapshot.model_validate(one) for one in state["snapshots"]]
        at_stop = state["at_stop"]
        self._at_stop = _AtStop(
            at_stop["validation_error"],
            None if at_stop["information"] is None else InformationResult.model_validate(at_stop["information"]),
            None if at_stop["expertness"] is None else ExpertnessResult.model_validate(at_stop["expertness"]),
            [StudentScore.model_validate(one) for one in at_stop["students"]],
            int(at_stop["tried"]),
            at_stop["kept"],
        )
        self._best = None if state["best"] is None else (float(state["best"][0]), int(state["best"][1]))
        self.best_teacher, self.best_student = state["best_teacher"], state["best_student"]
        self._best_of_tuning = None if state["best_of_tuning"] is None else tuple(state["best_of_tuning"])
        self._resume = {name: state[name] for name in ("training", "inner") if state[name] is not None}

    def tuned(self, tuning: TeacherTuning) -> Preprocessed:
        """A fresh teacher prepared as the tuning says, to load weights into."""
        teacher = self.bench.teacher()
        prepare_teacher(teacher, tuning)
        return teacher

    # --- one tuning ------------------------------------------------------------------------------------------------

    def _tune(self, tuning: TeacherTuning) -> Iterator[Progress]:
        teacher = self.tuned(tuning)
        bench, params = self.bench, tuning.training
        batches = TensorBatches(
            bench.train,  # type: ignore[arg-type]
            bench.train.labels,
            params,
            size=None if params.augment == "none" else bench.view_size,
            n_classes=bench.n_classes,
        )
        objective = CrossEntropy(params, Roles(teacher))  # type: ignore[arg-type]
        training = Training(objective, teacher, batches, params, device=self.device, stepper=teacher_stepper(tuning))
        if "training" in self._resume:
            training.load_state_dict(self._resume.pop("training"))
        self._training = training
        for stop in tuning.stop_points[len(self._snapshots) :]:
            if training.step < stop:
                for progress in fit(training):
                    yield self._counted("teacher", progress)
                    if progress.step == stop:
                        break
            yield from self._measure(tuning, stop, teacher)

    def _measure(self, tuning: TeacherTuning, stop: int, teacher: Preprocessed) -> Iterator[Progress]:
        bench, params, at_stop = self.bench, self.params, self._at_stop
        observed = frozen_copy(teacher)
        assert isinstance(observed, Preprocessed)
        if at_stop.validation_error is None:
            at_stop.validation_error = self._error(observed, bench.validation["teacher"])
            message = f"{_shown(tuning)} stopped at {stop}: validation error {at_stop.validation_error:.4f}"
            yield self._progress(message, {"teacher/validation_error": at_stop.validation_error})
        if params.information is not None and at_stop.information is None:
            at_stop.information = yield from self._inform(observed)
            self._inner = None
            yield self._progress(None, {"information/excess_nats": at_stop.information.excess_nats})
        if params.expertness is not None and at_stop.expertness is None:
            at_stop.expertness = yield from self._expertness(observed)
        for distillation in params.distillations[at_stop.tried :]:
            yield from self._distil(tuning, distillation, observed)
        student_error = None
        if at_stop.kept is not None:
            best = bench.student(_seed(tuning, params.distillations[0]))
            best.load_state_dict(at_stop.kept)
            student_error = self._error(best, bench.test["student"])
        self._snapshots.append(
            TeacherSnapshot(
                stop_point=stop,
                validation_error=at_stop.validation_error,
                test_error=self._error(observed, bench.test["teacher"]),
                information=at_stop.information,
                expertness=at_stop.expertness,
                students=tuple(_with_test(at_stop.students, at_stop.best_error(), student_error)),
            )
        )
        error = at_stop.best_error() if params.distillations else at_stop.validation_error
        if error < (float("inf") if self._best_of_tuning is None else self._best_of_tuning[0]):
            self._best_of_tuning = (error, _weights(teacher), at_stop.kept)
        self._at_stop = _AtStop()

    def _distil(
        self, tuning: TeacherTuning, distillation: StudentDistillation, teacher: Preprocessed
    ) -> Iterator[Progress]:
        bench, at_stop = self.bench, self._at_stop
        seed = _seed(tuning, distillation)
        student = bench.student(seed)
        params = distillation.training.model_copy(update={"seed": seed})
        batches = TensorBatches(
            bench.train,  # type: ignore[arg-type]
            bench.train.labels,
            params,
            size=None if params.augment == "none" else bench.view_size,
            n_classes=bench.n_classes,
        )
        objective = DISTILLATIONS[distillation.method](distillation, Roles(student, {"teacher": teacher}))
        self._inner = training = Training(objective, student, batches, params, device=self.device)
        if "inner" in self._resume:
            training.load_state_dict(self._resume.pop("inner"))
        try:
            for progress in fit(training):
                yield self._counted("student", progress)
            error = self._error(student, bench.validation["student"])
            if error < at_stop.best_error():
                at_stop.kept = _weights(student)
            at_stop.students.append(StudentScore(distillation=distillation, validation_error=error))
        except NonFiniteLoss as failure:
            self.failures.append(f"student {distillation.method} lr {distillation.lr:g} of {_shown(tuning)}: {failure}")
        self._inner = None
        at_stop.tried += 1
        yield self._progress(None, {"student/validation_error": at_stop.best_error()} if at_stop.students else {})

    def _inform(self, teacher: Preprocessed) -> Generator[Progress, None, InformationResult]:
        params = self.params.information
        assert params is not None
        n_train = min(params.images, len(self.bench.train))
        heldout = self.bench.validation["teacher"]
        n_heldout = min(params.heldout_images, len(heldout))
        features = ModelFeatures(teacher, _views(self.bench.train), n_train, self.device)
        kept = yield from self._uncounted(kept_when_they_fit(features, params.cache_bytes))
        reconstruction = Reconstruction(kept, params, self.device)
        if "inner" in self._resume:
            reconstruction.load_state_dict(self._resume.pop("inner"))
        self._inner = reconstruction
        for progress in reconstruction.fit():
            yield self._counted("information", progress)
        scored = ModelFeatures(teacher, _views(heldout), n_heldout, self.device)
        return reconstruction.result(scored, model=self.bench.teacher_name, data=self.bench.data)

    def _expertness(self, teacher: Preprocessed) -> Generator[Progress, None, ExpertnessResult]:
        params = self.params.expertness
        assert params is not None
        n_images = min(params.images, len(self.bench.train))
        return (
            yield from self._uncounted(
                measure_expertness(
                    teacher,
                    _views(self.bench.train),
                    n_images,
                    params.clusters or self.bench.n_classes,
                    name=self.bench.teacher_name,
                    data=self.bench.data,
                    batch_size=params.batch_size,
                    seed=params.seed,
                    bits=params.activation_bits,
                    device=self.device,
                )
            )
        )

    def _close(self, tuning: TeacherTuning) -> None:
        """The tuning is over: choose among its snapshots, compare with the best of the tunings before."""
        if self._usable():
            self.teachers.append(tuned_teacher(tuning, self._snapshots))
            if self._best_of_tuning is not None and (self._best is None or self._best_of_tuning[0] < self._best[0]):
                error, self.best_teacher, self.best_student = self._best_of_tuning
                self._best = (error, len(self.teachers) - 1)
        self._snapshots, self._at_stop, self._best_of_tuning = [], _AtStop(), None
        self._training = self._inner = None
        self._finished += 1
        self._done = sum(self._steps_of(one) for one in self.params.tunings[: self._finished])

    def _usable(self) -> bool:
        """Whether the tuning has something to choose: a student where there should be one, else a snapshot."""
        return any(snapshot.students or not self.params.distillations for snapshot in self._snapshots)

    # --- counting --------------------------------------------------------------------------------------------------

    def _steps_of(self, tuning: TeacherTuning) -> int:
        per_stop = sum(one.steps for one in self.params.distillations)
        if self.params.information is not None:
            per_stop += self.params.information.updates
        return tuning.stop_points[-1] + len(tuning.stop_points) * per_stop

    def _counted(self, stage: str, progress: Progress) -> Progress:
        self._done += 1
        return self._progress(progress.message, {f"{stage}/{name}": value for name, value in progress.metrics.items()})

    def _uncounted(self, steps: Generator[Progress, None, R]) -> Generator[Progress, None, R]:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: R = end.value
                return result
            yield self._progress()

    def _progress(self, message: str | None = None, metrics: dict[str, float] | None = None) -> Progress:
        return Progress(step=self._done, total=self.total_steps, metrics=metrics or {}, message=message)

    def _error(self, model: nn.Module, images: Labelled) -> float:
        top1 = predict_top1(model, images, device=self.device)
        return error_rate(top1, images.labels.cpu().numpy(), self.bench.metric)


def _seed(tuning: TeacherTuning, distillation: StudentDistillation) -> int:
    """The student's seed: another one for every seed of its teacher, so that repeats are independent."""
    return (distillation.seed + tuning.seed) % 2**31


def _views(images: Labelled) -> Callable[[Tensor], Tensor]:
    return lambda positions: as_images(images[positions])  # type: ignore[index]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _with_test(students: list[StudentScore], best_error: float, test_error: float | None) -> Iterator[StudentScore]:
    """The students, the first of the best on validation with its test error."""
    found = test_error is None
    for student in students:
        if not found and student.validation_error == best_error:
            student, found = student.model_copy(update={"test_error": test_error}), True
        yield student


def _dumped(record: InformationResult | ExpertnessResult | None) -> Any:
    return None if record is None else record.model_dump(mode="json")


def _shown(tuning: TeacherTuning) -> str:
    return f"{tuning.setting} (lr {tuning.lr:g}, ρ {tuning.rho:g}, α {tuning.mlp_weight:g}, seed {tuning.seed})"
