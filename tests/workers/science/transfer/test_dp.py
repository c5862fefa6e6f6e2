"""KL+DP: the paper's partition and loss, for one teacher and for several in parallel."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.domain.errors import BadInput
from backend.domain.methods import KLDPParams
from workers.science.batch import Batch
from workers.science.transfer.dp import KLDP, kl_dp, kl_dp_parallel, pick_model, teacher_mask
from workers.science.transfer.kl import kl

ZS = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [1, 1, 1, 1]])
ZF = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 2], [1, 1, 1, 1]])
ZT = torch.tensor([[3.0, 0, 0, 0], [0, 1, 0, 0], [0, 4, 1, 0], [0, 0, 0, 0]])
Y = torch.tensor([0, 1, 2, 3])

PS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
PF = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 1], [0, 0, 0]])
PA = torch.tensor([[2.0, 0, 0], [0, 1, 0], [3, 0, 0], [0, 0, 0]])
PB = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 2], [2, 0, 0]])
PY = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    "labels, mask, at_1, at_4", [(Y, [1, 0, 0, 0], 0.114677, 0.144602), (None, [1, 0, 1, 0], 0.629435, 0.837896)]
)
def test_golden_values(labels, mask, at_1, at_4):
    assert teacher_mask(ZT, ZF, labels).int().tolist() == mask
    assert kl_dp(ZS, ZT, ZF, labels).item() == pytest.approx(at_1, abs=1e-6)
    assert kl_dp(ZS, ZT, ZF, labels, temperature=4.0).item() == pytest.approx(at_4, abs=1e-6)


@pytest.mark.parametrize("labels, picks, value", [(PY, [1, 0, 2, 0], 0.074164), (None, [1, 0, 1, 2], 0.442596)])
def test_golden_values_in_parallel(labels, picks, value):
    assert pick_model([PF, PA, PB], labels).tolist() == picks
    assert kl_dp_parallel(PS, [PA, PB], PF, labels).item() == pytest.approx(value, abs=1e-6)


def test_a_tie_keeps_the_student():
    assert not teacher_mask(ZF, ZF, Y).any()
    assert pick_model([ZF, ZF, ZF]).tolist() == [0, 0, 0, 0]


def test_the_partition_is_made_at_temperature_one():
    # max p of frozen is larger at T = 1 and smaller at T = 10.
    frozen, teacher = torch.tensor([[3.0, 0, 0, 0]]), torch.tensor([[5.0, 4.4, 0, 0]])
    assert frozen.softmax(1).max() > teacher.softmax(1).max()
    assert (frozen / 10).softmax(1).max() < (teacher / 10).softmax(1).max()
    student = torch.zeros(1, 4)
    assert kl_dp(student, teacher, frozen, temperature=10.0) == kl(student, frozen, temperature=10.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 6), st.booleans())
def test_laws(seed, n, c, supervised):
    generator = torch.Generator().manual_seed(seed)
    s, t, f, u = (3 * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(4))
    y = torch.randint(0, c, (n,), generator=generator) if supervised else None
    assert kl_dp(s, f, f, y) == kl(s, f)  # teacher and frozen student agree: self-distillation
    assert kl_dp(s, s, s, y).item() == pytest.approx(0, abs=1e-12)
    assert kl_dp_parallel(s, [t], f, y) == kl_dp(s, t, f, y)
    assert torch.equal(pick_model([f, t], y).bool(), teacher_mask(t, f, y))
    assert kl_dp_parallel(s, [t, t], f, y) == kl_dp(s, t, f, y)
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(c, generator=generator)
    moved = [logits[rows][:, columns] for logits in (s, t, u, f)]
    y_moved = None if y is None else columns.argsort()[y[rows]]
    value = kl_dp_parallel(s, [t, u], f, y)
    torch.testing.assert_close(kl_dp_parallel(moved[0], moved[1:3], moved[3], y_moved), value)


class Fixed(torch.nn.Module):
    """Answers the same whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits.clone())

    def forward(self, view):
        return self.logits


def fixed_objective(params, student=ZS, teachers=None, frozen=ZF):
    from workers.science.transfer.roles import FROZEN_STUDENT, Roles

    teachers = teachers or {"t": ZT}
    live = Fixed(student)
    objective = KLDP(params, Roles(live, dict.fromkeys(teachers)))
    outputs = teachers | {FROZEN_STUDENT: frozen}
    return objective, live, Batch(torch.zeros(4, 3, 2, 2), Y, torch.arange(4), outputs)


def test_the_objective_gives_the_golden_values_from_cached_outputs():
    for partition, value in (("supervised", 0.114677), ("unsupervised", 0.629435)):
        objective, student, batch = fixed_objective(KLDPParams(partition=partition))
        terms = objective.loss(student, batch)
        assert terms["loss"].item() == pytest.approx(value, abs=1e-6)
        assert set(terms) == {"loss", "distillation", "teacher_share"}  # no cross-entropy


def test_auxiliary_cross_entropy_only_below_weight_one():
    objective, student, batch = fixed_objective(KLDPParams(kd_weight=0.75))
    assert objective.loss(student, batch)["loss"].item() == pytest.approx(0.75 * 0.114677 + 0.25 * 1.091861, abs=1e-6)


def test_it_counts_the_flips_it_gives_to_the_teacher():
    # frozen has 0, 1 right; teacher 0, 1, and (ties to class 0) not 3: no flips with ZT; here teacher wins 2, loses 1.
    teacher = torch.tensor([[3.0, 0, 0, 0], [5, 0, 0, 0], [0, 0, 4, 0], [9, 0, 0, 8.0]])
    objective, student, batch = fixed_objective(KLDPParams(partition="unsupervised"), teachers={"t": teacher})
    objective.begin_epoch(0)
    objective.begin_pass()
    objective.loss(student, batch)
    objective.after_step(1)
    assert objective.diagnostics() == {
        "teacher_share": 1.0,
        "positive_flips_to_teacher": 1.0,
        "negative_flips_to_teacher": 1.0,
    }
    supervised, student, batch = fixed_objective(KLDPParams(), teachers={"t": teacher})
    supervised.begin_pass()
    supervised.loss(student, batch)
    supervised.begin_pass()  # a second pass of the same step counts once
    supervised.loss(student, batch)
    supervised.after_step(1)
    assert supervised.diagnostics() == {
        "teacher_share": 0.75,
        "positive_flips_to_teacher": 1.0,
        "negative_flips_to_teacher": 0.0,
    }


def test_the_frozen_student_is_the_initial_one(scene):
    training = scene.training(KLDPParams(batch_size=8, lr=1e-2, epochs=1, augment="none"))
    frozen = training.objective.frozen._models["frozen_student"]
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    from workers.science.training import fit

    assert list(fit(training))
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen.state_dict().items())
    assert not frozen.training
    assert any(not torch.equal(before[name], tensor) for name, tensor in training.student.state_dict().items())


def test_unlabelled_sets_only_without_labels():
    objective, student, batch = fixed_objective(KLDPParams())
    with pytest.raises(BadInput, match="labels"):
        objective.loss(student, replace(batch, labels=None))
    objective, student, batch = fixed_objective(KLDPParams(partition="unsupervised"))
    objective.begin_pass()
    assert objective.loss(student, replace(batch, labels=None))["loss"].item() == pytest.approx(0.629435, abs=1e-6)
    objective.after_step(1)
    assert objective.diagnostics() == {"teacher_share": 0.5}


def test_several_teachers_only_in_parallel(scene):
    with pytest.raises(BadInput, match="multi: 'sequential'"):
        replace(scene, teachers=2).training(KLDPParams())
    assert replace(scene, teachers=2).training(KLDPParams(multi="parallel")).objective.teachers == [
        "teacher0",
        "teacher1",
    ]


def test_a_teacher_known_by_its_cache_alone_must_be_in_it():
    objective, student, batch = fixed_objective(KLDPParams())
    with pytest.raises(BadInput, match="no cached outputs"):
        objective.loss(student, replace(batch, outputs={"frozen_student": ZF}))
