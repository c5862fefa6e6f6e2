"""Top-k KL renormalises both sides on the teacher's k classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.science.transfer.kl import kl
from workers.science.transfer.topk import top_k_kl


def test_golden_value():
    s, t = torch.tensor([[2.0, 1, 0, -1]]), torch.tensor([[0.0, 3, 1, -2]])
    assert top_k_kl(s, t, k=2).item() == pytest.approx(0.067131, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 7))
def test_laws(seed, n, c):
    generator = torch.Generator().manual_seed(seed)
    s, t = (3 * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(top_k_kl(s, t, k=c), kl(s, t))
    torch.testing.assert_close(top_k_kl(s, t, k=c + 5), kl(s, t))
    assert top_k_kl(s, t, k=1).item() == pytest.approx(0, abs=1e-12)
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(c, generator=generator)
    torch.testing.assert_close(top_k_kl(s[rows][:, columns], t[rows][:, columns], k=2), top_k_kl(s, t, k=2))
    assert top_k_kl(t, t, k=2).item() == pytest.approx(0, abs=1e-12)
