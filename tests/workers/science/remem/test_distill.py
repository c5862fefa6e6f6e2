"""Distilling the prepared teacher: golden values, laws, and training through `fit`."""

import copy
from typing import get_args

import pytest
import torch
from torch import nn

from backend.domain.errors import BadInput
from backend.domain.remem import StudentDistillation
from workers.science.batch import Batch
from workers.science.remem.distill import DISTILLATIONS, dist_relations, mixed
from workers.science.training import Training, fit
from workers.science.transfer.kl import kl
from workers.science.transfer.roles import Roles

STUDENT = torch.tensor([[1.0, 2, 0], [0, 1, 3], [2, 0, 0]])
TEACHER = torch.tensor([[2.0, 1, 0], [0, 0, 3], [1, 1, 0]])


def test_dist_golden():
    inter, intra = dist_relations(STUDENT, TEACHER)
    assert inter.item() == pytest.approx(0.500393, abs=1e-6)
    assert intra.item() == pytest.approx(0.533077, abs=1e-6)


def test_dist_scales_with_the_square_of_temperature():
    for at_4, at_1 in zip(
        dist_relations(STUDENT, TEACHER, temperature=4), dist_relations(STUDENT / 4, TEACHER / 4), strict=True
    ):
        assert at_4.item() == pytest.approx(16 * at_1.item())


def test_dist_laws():
    assert [part.item() for part in dist_relations(TEACHER, TEACHER)] == pytest.approx([0, 0], abs=1e-6)
    order = torch.tensor([2, 0, 1])
    for a, b in zip(
        dist_relations(STUDENT, TEACHER),
        dist_relations(STUDENT[order][:, order], TEACHER[order][:, order]),
        strict=True,
    ):
        assert a.item() == pytest.approx(b.item())


def test_dist_survives_equal_rows():
    logits = torch.zeros(3, 3, requires_grad=True)
    inter, intra = dist_relations(logits, TEACHER)
    (inter + intra).backward()
    assert torch.isfinite(logits.grad).all()


class Flat(nn.Module):
    """Pixels to logits."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(12, 3)
        self.seen = []

    def forward(self, view):
        self.seen.append(view)
        return self.linear(view.flatten(1))


def batch(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.rand(n, 3, 2, 2, generator=generator),
        torch.randint(3, (n,), generator=generator),
        torch.arange(n),
    )


def objective(method, **options):
    student, teacher = Flat(0), Flat(1)
    params = StudentDistillation(method=method, **options)
    return DISTILLATIONS[method](params, Roles(student, {"teacher": teacher})), student, teacher


def test_every_method_has_its_objective():
    assert set(DISTILLATIONS) == set(get_args(StudentDistillation.model_fields["method"].annotation))


@pytest.mark.parametrize("method", ["kd", "dist"])
def test_weight_mixes_cross_entropy_and_distillation(method):
    b = batch()
    whole, student, teacher = objective(method, kd_weight=0.3, temperature=2.0)
    loss = whole.loss(student, b)["loss"].item()
    s, t = student(b.view).detach(), teacher(b.view).detach()
    inter, intra = dist_relations(s, t, temperature=2.0)
    distillation = kl(s, t, temperature=2.0) if method == "kd" else inter + intra
    expected = 0.7 * nn.functional.cross_entropy(s, b.labels) + 0.3 * distillation
    assert loss == pytest.approx(expected.item(), rel=1e-6)


def test_dist_weights_its_relations():
    b = batch()
    whole, student, teacher = objective("dist", kd_weight=1.0, inter_weight=2.0, intra_weight=0.5)
    inter, intra = dist_relations(student(b.view), teacher(b.view))
    assert whole.loss(student, b)["loss"].item() == pytest.approx((2 * inter + 0.5 * intra).item())


def test_patient_shows_both_the_same_mixed_view_and_needs_no_labels():
    b = batch()
    patient, student, teacher = objective("patient")
    outputs = {"teacher": torch.zeros(8, 3)}
    terms = patient.loss(student, Batch(b.view, None, b.indices, outputs))
    assert torch.equal(student.seen[-1], teacher.seen[-1])
    assert not torch.equal(student.seen[-1], b.view)
    assert terms["loss"].item() == pytest.approx(
        kl(student(student.seen[-1]), teacher(teacher.seen[-1])).item(), rel=1e-6
    )


def test_mixing_keeps_the_mean_and_the_range():
    x = batch(64).view
    torch.manual_seed(0)
    y = mixed(x)
    assert torch.allclose(x.mean(0), y.mean(0), atol=1e-6)
    assert y.min() >= 0
    assert y.max() <= 1
    torch.manual_seed(0)
    assert torch.equal(y, mixed(x))


def test_labels_are_asked_for_when_needed():
    kd, student, _ = objective("kd", kd_weight=0.5)
    with pytest.raises(BadInput, match="labels"):
        kd.loss(student, Batch(batch().view, None, torch.arange(8)))


class Two:
    steps_per_epoch = 2

    def epoch(self, epoch, *, start=0):
        yield from [batch(8, seed=10 * epoch + i) for i in range(2)][start:]


@pytest.mark.parametrize("method", sorted(DISTILLATIONS))
def test_fit_brings_the_student_to_the_teacher_and_resumes_to_the_bit(method):
    def run(steps=60):
        learned, student, teacher = objective(
            method, kd_weight=1.0, steps=steps, warmup_steps=2, lr=1.0, batch_size=8, weight_decay=0.0
        )
        return Training(learned, student, Two(), learned.params.training), teacher

    whole, teacher = run()
    x = batch(32, seed=99).view
    # correlations are blind to the scale of probabilities, so DIST is judged by its own measure
    distance = (lambda s, t: sum(dist_relations(s, t))) if method == "dist" else kl
    before = distance(whole.student(x), teacher(x)).item()
    state = None
    for progress in fit(whole):
        if progress.step == 33:
            state = copy.deepcopy(whole.state_dict())
    assert distance(whole.student(x), teacher(x)).item() < 0.8 * before
    resumed, _ = run()
    resumed.load_state_dict(state)
    for _ in fit(resumed):
        pass
    assert torch.equal(whole.student.linear.weight, resumed.student.linear.weight)
