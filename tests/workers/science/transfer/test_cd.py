"""CD compares which samples of a batch are alike, whatever the widths of the features."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.science.transfer.cd import CosineDistillation, cosine_distillation


def test_golden_value():
    student = torch.tensor([[1.0, 0], [1, 1], [0, 2]])
    teacher = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 1]])
    assert cosine_distillation(student, teacher).item() == pytest.approx(0.029602, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
def test_laws(seed, n, d_s, d_t):
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(n, d_s, generator=generator, dtype=torch.float64)
    t = torch.randn(n, d_t, generator=generator, dtype=torch.float64)
    value = cosine_distillation(s, t)
    assert value >= -1e-12
    rows = torch.randperm(n, generator=generator)
    torch.testing.assert_close(cosine_distillation(s[rows], t[rows]), value)
    rotation = torch.linalg.qr(torch.randn(d_s, d_s, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(cosine_distillation(3 * s @ rotation, t), value)
    assert cosine_distillation(s, 2 * s).item() == pytest.approx(0, abs=1e-12)


def test_micro_batches_are_not_the_batch():
    assert not CosineDistillation.per_sample
