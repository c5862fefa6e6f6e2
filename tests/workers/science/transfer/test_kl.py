"""KL and XE-KL: the paper's numbers, the right direction, cross-entropy on logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.domain.errors import BadInput
from workers.science.transfer.kl import kl, mix, xe_kl

ZS = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [1, 1, 1, 1]])
ZT = torch.tensor([[3.0, 0, 0, 0], [0, 1, 0, 0], [0, 4, 1, 0], [0, 0, 0, 0]])
Y = torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("temperature, value, wrong_way", [(1.0, 0.600897, 0.731023), (4.0, 0.810031, 0.753818)])
def test_golden_values(temperature, value, wrong_way):
    assert kl(ZS, ZT, temperature=temperature).item() == pytest.approx(value, abs=1e-6)
    assert kl(ZT, ZS, temperature=temperature).item() == pytest.approx(wrong_way, abs=1e-6)


def test_cross_entropy_takes_logits():
    assert F.cross_entropy(ZS, Y).item() == pytest.approx(1.091861, abs=1e-6)
    assert xe_kl(ZS, ZT, Y, kd_weight=0.7).item() == pytest.approx(0.748186, abs=1e-6)
    on_probabilities = 0.7 * kl(ZS, ZT) + 0.3 * F.cross_entropy(ZS.softmax(1), Y)
    assert abs(on_probabilities.item() - 0.748186) > 1e-2


def test_reductions():
    assert xe_kl(ZS, ZT, Y, kd_weight=1.0) == kl(ZS, ZT)
    assert xe_kl(ZS, ZT, Y, kd_weight=0.0) == F.cross_entropy(ZS.double(), Y)
    assert kl(ZS, ZS).item() == pytest.approx(0, abs=1e-7)
    assert mix(kl(ZS, ZT), ZS, None, 1.0)["loss"] == kl(ZS, ZT)


def test_the_gradient_goes_to_the_student_alone():
    student, teacher = ZS.clone().requires_grad_(), ZT.clone()
    kl(student, teacher, temperature=2.0).backward()
    expected = 2.0 * ((ZS / 2).softmax(1) - (ZT / 2).softmax(1)) / 4  # T² · 1/T · (σ(z_s/T) - σ(z_t/T)) / B
    torch.testing.assert_close(student.grad, expected)


def test_half_precision_is_widened_first():
    half = kl(ZS.bfloat16(), ZT.bfloat16())
    assert half.item() == pytest.approx(0.600897, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 7), st.sampled_from([0.1, 1.0, 4.0]))
def test_never_negative_and_blind_to_order(seed, n, c, temperature):
    generator = torch.Generator().manual_seed(seed)
    s, t = (3 * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2))
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(c, generator=generator)
    value = kl(s, t, temperature=temperature)
    assert value >= -1e-12
    torch.testing.assert_close(kl(s[rows][:, columns], t[rows][:, columns], temperature=temperature), value)
    torch.testing.assert_close(kl(s + 5, t - 7, temperature=temperature), value)  # logits are known up to a constant


def test_a_teacher_with_other_classes_is_refused(scene):
    from backend.domain.methods import KLParams
    from workers.science.transfer import Roles, build_objective

    roles = scene.roles()
    objective = build_objective(KLParams(), Roles(roles.student, {"six": torch.nn.Flatten()}))
    batch = next(iter(scene.training(KLParams(batch_size=4)).batches.epoch(0)))
    with pytest.raises(BadInput, match="six: '768 outputs' is not valid; as many as the student has, 5"):
        objective.loss(roles.student, batch)


def test_several_teachers_at_once_are_refused(scene):
    from dataclasses import replace

    from backend.domain.methods import KLParams

    with pytest.raises(BadInput, match="one at a time"):
        replace(scene, teachers=2).training(KLParams())
