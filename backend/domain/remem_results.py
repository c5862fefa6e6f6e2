"""What ReMem measures and finds, as records (Dong et al., arXiv:2506.23041).

R: reconstruction loss of the decoder (A.5); H_b: mean Bernoulli entropy of the pixels; e: expertness (Def. 5.3). Rates
are fractions, entropies nats, bounds bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from backend.domain.errors import BadInput
from backend.domain.records import Fraction, Name, Record, Seed, Text
from backend.domain.remem import Branch, Metric, Setting, StudentDistillation, TeacherTuning


class InformationResult(Record):
    """What a decoder could restore of the images from a model's last features.

    loss_nats R, floor_nats H_b, excess_nats R − H_b ≥ 0 per pixel and channel, on held-out images. `data` names the
    images (data set, split, subset), so that two results can be told apart.
    """

    model: Text
    data: Text
    loss_nats: float = Field(ge=0)
    floor_nats: float = Field(ge=0)
    excess_nats: float = Field(ge=0)
    feature_width: int = Field(ge=1)
    feature_grid: tuple[int, int]
    image_size: tuple[int, int]
    n_images: int = Field(ge=1)
    n_heldout: int = Field(ge=1)
    updates: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = 1e-3
    weight_decay: float = 1e-4
    seed: Seed = 0
    cached: bool = True

    def differences(self, other: InformationResult) -> tuple[str, ...]:
        """The names of the fields that make the two incomparable; empty when they may share a plane."""
        conditions = ("data", "feature_width", "feature_grid", "image_size", "n_images", "n_heldout", "updates",
                      "batch_size", "lr", "weight_decay")  # fmt: skip
        return tuple(name for name in conditions if getattr(self, name) != getattr(other, name))


def comparable(a: InformationResult, b: InformationResult) -> bool:
    """Whether two results measure the same thing: same feature size, same images, same decoder training."""
    return not a.differences(b)


def require_comparable(results: Sequence[InformationResult]) -> None:
    """Refuse to put results on one information plane that do not belong together.

    Raises:
        BadInput: names the first model that differs from the first one, and in what.
    """
    for other in results[1:]:
        names = results[0].differences(other)
        if names:
            first = ", ".join(f"{name} {getattr(results[0], name)}" for name in names)
            there = ", ".join(f"{name} {getattr(other, name)}" for name in names)
            raise BadInput(
                "model", other.model, f"its information ({there}) is not comparable with {results[0].model}'s ({first})"
            )


class CoCluster(Record):
    """One expert: how many neurons and inputs it holds."""

    neurons: int = Field(ge=0)
    inputs: int = Field(ge=0)


class BlockExpertness(Record):
    """One MLP block as experts.

    expertness: energy inside co-clusters / total, None when fewer than `n_clusters` clusters are non-empty (all in one
    cluster would give 1). complete_clusters counts those that hold neurons and inputs both. sparsity: share of the
    activations that are not positive. bound_bits: log₂ M + Σ_z |S_z| b over all M experts; expected_bound_bits weighs
    each expert by the share of inputs it serves.
    """

    block: int = Field(ge=0)
    name: Text
    expertness: Fraction | None
    n_clusters: int = Field(ge=1)
    nonempty_clusters: int = Field(ge=0)
    complete_clusters: int = Field(ge=0)
    cluster_sizes: tuple[CoCluster, ...]
    n_neurons: int = Field(ge=0)
    n_inputs: int = Field(ge=0)
    dead_neurons: int = Field(ge=0)
    dead_inputs: int = Field(ge=0)
    sparsity: Fraction
    zero_share: Fraction
    bound_bits: float = Field(ge=0)
    expected_bound_bits: float = Field(ge=0)


class ExpertnessResult(Record):
    """Expertness of every MLP block, bottom first (Fig. 5)."""

    model: Text
    data: Text
    n_images: int = Field(ge=1)
    n_clusters: int = Field(ge=1)
    seed: Seed = 0
    blocks: tuple[BlockExpertness, ...]


class InfluencedImage(Record):
    """An image (position in the data read) and ‖F(h←0) − F‖ / ‖F‖ on it."""

    index: int = Field(ge=0)
    influence: float = Field(ge=0)


class CriticalNeuron(Record):
    """A neuron, its criticality (its largest influence) and the images it influences most, strongest first."""

    block: int = Field(ge=0)
    neuron: int = Field(ge=0)
    criticality: float = Field(ge=0)
    images: tuple[InfluencedImage, ...]


class BlockCriticality(Record):
    """Criticality over one block's examined neurons (Figures 7–15)."""

    block: int = Field(ge=0)
    n_neurons: int = Field(ge=1)
    n_examined: int = Field(ge=1)
    mean: float = Field(ge=0)
    maximum: float = Field(ge=0)
    neurons: tuple[CriticalNeuron, ...]


class CriticalityResult(Record):
    """The critical neurons of each block looked at, most critical first."""

    model: Text
    data: Text
    n_images: int = Field(ge=1)
    blocks: tuple[BlockCriticality, ...]


class StudentScore(Record):
    """One student: how it was distilled and how wrong it is on validation (and on test, once chosen)."""

    distillation: StudentDistillation
    validation_error: Fraction
    test_error: Fraction | None = None
    artifact: Text | None = None


class TeacherSnapshot(Record):
    """A teacher stopped after `stop_point` steps, with what was measured of it and the students it taught."""

    stop_point: int = Field(ge=0)
    validation_error: Fraction
    test_error: Fraction | None = None
    information: InformationResult | None = None
    expertness: ExpertnessResult | None = None
    students: tuple[StudentScore, ...] = ()
    artifact: Text | None = None


class TunedTeacher(Record):
    """One tuning's snapshots, and the student chosen on validation among all of theirs, with its teacher.

    Without students the teacher's own validation error chooses, and `best_distillation` is null.
    """

    tuning: TeacherTuning
    setting: Setting
    snapshots: tuple[TeacherSnapshot, ...] = Field(min_length=1)
    best_stop_point: int
    best_distillation: StudentDistillation | None

    @property
    def best_snapshot(self) -> TeacherSnapshot:
        return next(one for one in self.snapshots if one.stop_point == self.best_stop_point)

    @property
    def best_student(self) -> StudentScore | None:
        return next((one for one in self.best_snapshot.students if one.distillation == self.best_distillation), None)

    @property
    def choosing_error(self) -> float:
        """What tunings are compared by: the chosen student's validation error, else the teacher's."""
        student = self.best_student
        return self.best_snapshot.validation_error if student is None else student.validation_error


class SettingRow(Record):
    """One row of Table 1: the students of one setting chosen on validation, one a seed.

    Rates on test, mean over seeds; intervals are 95 %, Student's t, null with fewer than two seeds. `gain` is the
    student's accuracy above the baseline's of the same seed; null without a baseline or a student.
    """

    setting: Setting
    n_seeds: int = Field(ge=1)
    student_accuracy: float | None
    student_accuracy_low: float | None = None
    student_accuracy_high: float | None = None
    teacher_accuracy: float
    teacher_accuracy_low: float | None = None
    teacher_accuracy_high: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    excess_nats: float | None = None


class SweepRow(Record):
    """Chosen students at one value of one thing that was varied: ρ (Fig. 3), α, pruned blocks (Fig. 4 and 6), …

    As in a `SettingRow`: test, mean over seeds, 95 % intervals; the rest of the hyperparameters chosen on validation.
    """

    parameter: Literal["rho", "mlp_weight", "attention_weight", "pruned_blocks", "lr"]
    value: float
    branch: Branch | None = None
    n_seeds: int = Field(ge=1)
    student_accuracy: float | None
    student_accuracy_low: float | None = None
    student_accuracy_high: float | None = None
    teacher_accuracy: float
    teacher_accuracy_low: float | None = None
    teacher_accuracy_high: float | None = None
    excess_nats: float | None = None


class PlanePoint(Record):
    """A teacher on the information plane: x test error, y excess (down is more information), size student error."""

    setting: Setting
    seed: Seed
    lr: float
    rho: float
    mlp_weight: float
    stop_point: int
    teacher_error: Fraction
    excess_nats: float
    student_error: Fraction | None
    on_front: bool


class RememResult(Record):
    """What a run of the protocol found: every teacher, the table of settings, the information plane, the choice.

    `best` is the position of the teacher whose chosen student is best on validation. `failures` says which trainings
    diverged; they are left out.
    """

    model: Name
    student: Name | None
    dataset: Name
    metric: Metric
    n_train: int = Field(ge=1)
    n_validation: int = Field(ge=1)
    n_test: int = Field(ge=1)
    failures: tuple[Text, ...] = ()
    teachers: tuple[TunedTeacher, ...]
    table: tuple[SettingRow, ...]
    plane: tuple[PlanePoint, ...]
    best: int = Field(ge=0)
