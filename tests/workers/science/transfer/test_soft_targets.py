"""Soft-target cross-entropy is KL plus the teacher's entropy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.science.transfer.kl import kl
from workers.science.transfer.soft_targets import soft_cross_entropy


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 7), st.sampled_from([0.5, 1.0, 4.0]))
def test_laws(seed, n, c, temperature):
    generator = torch.Generator().manual_seed(seed)
    s, t = (3 * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2))
    p = (t / temperature).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    value = soft_cross_entropy(s, t, temperature=temperature)
    torch.testing.assert_close(value, kl(s, t, temperature=temperature) + temperature**2 * entropy)
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(c, generator=generator)
    moved = soft_cross_entropy(s[rows][:, columns], t[rows][:, columns], temperature=temperature)
    torch.testing.assert_close(moved, value)


def test_a_certain_teacher_is_a_label():
    s = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [1, 1, 1, 1]])
    assert soft_cross_entropy(s, 1e4 * torch.eye(4)).item() == pytest.approx(1.091861, abs=1e-6)
