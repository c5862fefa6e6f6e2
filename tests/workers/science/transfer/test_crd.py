"""CRD: noise-contrastive loss by hand, negatives of other classes, and a memory that follows."""

import math

import pytest
import torch
import torch.nn.functional as F

from backend.domain.errors import BadInput
from backend.domain.methods import CRDParams
from workers.science.training import fit
from workers.science.transfer import Roles
from workers.science.transfer.crd import ContrastiveDistillation, draw_negatives, nce_loss


def test_nce_by_hand():
    # one positive with s = .4, two negatives .1 and .2, N = 8: noise K/N = .25
    scores = torch.tensor([[0.4, 0.1, 0.2]])
    by_hand = -(math.log(0.4 / 0.65) + math.log(0.25 / 0.35) + math.log(0.25 / 0.45))
    assert nce_loss(scores, 8).item() == pytest.approx(by_hand, abs=1e-5)
    assert nce_loss(scores.repeat(3, 1), 8).item() == pytest.approx(by_hand, abs=1e-5)


def test_negatives_come_from_every_other_class_alike():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0, 4])  # no sample of class 3
    by_class, ends = labels.argsort(stable=True), labels.bincount().cumsum(0)
    torch.manual_seed(0)
    drawn = draw_negatives(torch.tensor([0, 1, 2, 4]), by_class, ends, 6000)
    for row, own in zip(drawn, [0, 1, 2, 4], strict=True):
        assert not (labels[row] == own).any()
        others = (labels != own).nonzero().flatten()
        counts = torch.bincount(row, minlength=8)[others]
        assert (counts / 6000 - 1 / len(others)).abs().max() < 0.03


def test_the_memory_takes_over_half_of_what_was_seen(scene):
    training = scene.training(CRDParams(batch_size=8, epochs=1, augment="none", negatives=16))
    objective = training.objective
    before = objective.student_memory.clone()
    batch = next(iter(training.batches.epoch(0)))
    training.advance(batch)
    seen = batch.indices
    unseen = torch.tensor(sorted(set(range(25)) - set(seen.tolist())))
    assert torch.equal(objective.student_memory[unseen], before[unseen])
    assert not torch.equal(objective.student_memory[seen], before[seen])
    torch.testing.assert_close(objective.student_memory[seen].norm(dim=1), torch.ones(len(seen)))
    assert (objective.scales > 0).all()


def test_the_memory_rule(scene):
    objective = scene.training(CRDParams(batch_size=8, augment="none", bank_momentum=0.25)).objective
    old = objective.student_memory[:2].clone()
    fresh = F.normalize(torch.randn(2, 128), dim=1)
    objective._pending = [(torch.tensor([0, 1]), fresh, fresh)]
    objective.after_step(1)
    torch.testing.assert_close(objective.student_memory[:2], F.normalize(0.25 * old + 0.75 * fresh, dim=1))


def test_the_normaliser_is_that_of_the_first_batch(scene):
    training = scene.training(CRDParams(batch_size=8, epochs=1, augment="none", negatives=16))
    steps = fit(training)
    next(steps)
    first = training.objective.scales.clone()
    next(steps)
    assert torch.equal(training.objective.scales, first)


def test_heads_are_trained_and_the_contrast_falls(scene):
    params = CRDParams(batch_size=25, epochs=15, lr=0.01, kd_weight=1.0, augment="none", negatives=24, weight_decay=0.0)
    training = scene.training(params)
    head = training.objective.student_head.weight.clone()
    losses = [progress.metrics["distillation"] for progress in fit(training) if progress.metrics]
    assert not torch.equal(head, training.objective.student_head.weight)
    assert losses[-1] < losses[0]


def test_what_it_cannot_do_without(scene):
    roles = scene.roles()
    with pytest.raises(BadInput, match="labelled"):
        ContrastiveDistillation(CRDParams(), Roles(roles.student, roles.teachers))
    with pytest.raises(BadInput, match="two classes"):
        ContrastiveDistillation(CRDParams(), Roles(roles.student, roles.teachers, torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(BadInput, match="the teacher itself"):
        ContrastiveDistillation(CRDParams(), Roles(roles.student, {"t": None}, scene.labels))
    assert ContrastiveDistillation(CRDParams(), roles).k == 24
