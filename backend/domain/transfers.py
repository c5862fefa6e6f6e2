"""What a transfer reports: how far the student came, what it gained and lost, and how much of it was the teacher's.

Rates and differences are fractions; `_low` and `_high` bound 95 % bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from backend.domain.records import Record

TOP_P = (2, 5, 20, 50, 100)
NOTHING_TO_TRANSFER = 0.005
"""Below this rate of positive flips on the transfer set a teacher has next to nothing to show the student there."""


class TeacherComparison(Record):
    """Student and one teacher, before and after.

    A teacher whose head speaks another label space than the data set expresses `n_classes_expressed` of its classes and
    could be right on `n_samples_expressed` of the samples; elsewhere it counts as wrong. None: all of them.
    """

    teacher_accuracy: float
    positive_flip_rate_before: float
    negative_flip_rate_before: float
    positive_flip_rate_delta: float
    positive_flip_rate_delta_low: float | None = None
    positive_flip_rate_delta_high: float | None = None
    negative_flip_rate_delta: float
    negative_flip_rate_delta_low: float | None = None
    negative_flip_rate_delta_high: float | None = None
    n_classes_expressed: int | None = None
    n_samples_expressed: int | None = None


class EpochResult(Record):
    """The student after one epoch (from 1) on the evaluation set, against the initial student.

    The same figures as at the end; `positive_flips_to_teacher` and `negative_flips_to_teacher` are KL+DP's, over the
    epoch's samples of the transfer set.
    """

    epoch: int
    student_accuracy: float
    student_accuracy_low: float | None = None
    student_accuracy_high: float | None = None
    transfer_delta: float
    transfer_delta_low: float | None = None
    transfer_delta_high: float | None = None
    knowledge_gain: float
    knowledge_gain_low: float | None = None
    knowledge_gain_high: float | None = None
    knowledge_loss: float
    knowledge_loss_low: float | None = None
    knowledge_loss_high: float | None = None
    positive_flip_rate_delta: float | None = None
    positive_flip_rate_delta_low: float | None = None
    positive_flip_rate_delta_high: float | None = None
    negative_flip_rate_delta: float | None = None
    negative_flip_rate_delta_low: float | None = None
    negative_flip_rate_delta_high: float | None = None
    transfer_rate: dict[int, float | None] = Field(default_factory=dict)
    transfer_rate_low: dict[int, float | None] = Field(default_factory=dict)
    transfer_rate_high: dict[int, float | None] = Field(default_factory=dict)
    positive_flips_to_teacher: float | None = None
    negative_flips_to_teacher: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class TransferResult(Record):
    """The outcome of one transfer on the evaluation set.

    transfer_delta = knowledge_gain - knowledge_loss = accuracy after - before. With several teachers a sample counts as
    known to the teacher if any of them has it right; `teachers` has each for itself. Fields about a teacher are None
    for a control without one, a transfer rate is None where there was no positive flip to learn from.
    """

    n_samples: int
    n_classes: int
    student_accuracy_before: float
    student_accuracy_after: float
    student_accuracy_after_low: float
    student_accuracy_after_high: float
    transfer_delta: float
    transfer_delta_low: float
    transfer_delta_high: float
    control_delta: float | None = None
    delta_above_control: float | None = None
    delta_above_control_low: float | None = None
    delta_above_control_high: float | None = None
    knowledge_gain: float
    knowledge_gain_low: float
    knowledge_gain_high: float
    knowledge_loss: float
    knowledge_loss_low: float
    knowledge_loss_high: float
    positive_flip_rate_delta: float | None = None
    positive_flip_rate_delta_low: float | None = None
    positive_flip_rate_delta_high: float | None = None
    negative_flip_rate_delta: float | None = None
    negative_flip_rate_delta_low: float | None = None
    negative_flip_rate_delta_high: float | None = None
    transfer_rate: dict[int, float | None] = Field(default_factory=dict)
    transfer_rate_low: dict[int, float | None] = Field(default_factory=dict)
    transfer_rate_high: dict[int, float | None] = Field(default_factory=dict)
    positive_flips_to_teacher: float | None = None
    negative_flips_to_teacher: float | None = None
    positive_flip_rate_on_transfer_set: float | None = None
    teachers: dict[str, TeacherComparison] = Field(default_factory=dict)
    epochs: tuple[EpochResult, ...] = ()
    warnings: tuple[str, ...] = ()


def precondition_warning(positive_flip_rate_on_transfer_set: float) -> str | None:
    """What to tell before training if the pair hardly differs on the transfer set."""
    if positive_flip_rate_on_transfer_set >= NOTHING_TO_TRANSFER:
        return None
    return (
        f"positive flips on the transfer set: {positive_flip_rate_on_transfer_set:.4%}; the student has almost "
        "everything right there that the teacher has, so there is next to nothing to transfer"
    )


def success_rates(deltas: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """Per student the share of its transfers with Δ > 0; Δ = 0 is no success. Students without any are left out."""
    listed = {student: list(values) for student, values in deltas.items()}
    return {student: sum(delta > 0 for delta in values) / len(values) for student, values in listed.items() if values}
