"""A teacher of another label space: its logits are read class by class, and what it cannot express is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from workers.science.preprocessed import ABSENT, Preprocessed
from workers.science.transfer.dp import kl_dp, teacher_mask
from workers.science.transfer.kl import kl, xe_kl
from workers.science.transfer.soft_targets import soft_cross_entropy
from workers.science.transfer.topk import top_k_kl

OUTPUTS = [3, -1, 0, 6, -1]
KNOWN = [0, 2, 3]


class Head(nn.Module):
    """Seven logits a sample, its own whatever the image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x):
        return self.logits[: len(x)]


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(6, 5, generator=generator), torch.randn(6, 7, generator=generator) * 3


def read(head):
    return Preprocessed(Head(head), 4, (0.5,) * 3, (0.5,) * 3, outputs=OUTPUTS)(torch.zeros(len(head), 3, 4, 4))


def test_outputs_are_read_in_the_data_sets_space(logits):
    _, head = logits
    found = read(head)
    assert torch.equal(found[:, KNOWN], head[:, [3, 0, 6]])
    assert (found[:, [1, 4]] == ABSENT).all()
    assert torch.isfinite(found).all()
    assert set(found.argmax(dim=1).tolist()) <= set(KNOWN)
    assert (found.softmax(dim=1)[:, [1, 4]] == 0).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("loss", [kl, soft_cross_entropy], ids=["kl", "soft_ce"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_softmaxes_run_over_the_shared_classes(logits, loss, temperature, dtype):
    student, head = logits
    student.requires_grad_(True)
    teacher = read(head).detach().to(dtype)
    value = loss(student, teacher, temperature=temperature)
    assert value.item() == pytest.approx(
        loss(student[:, KNOWN], teacher[:, KNOWN], temperature=temperature).item(), rel=1e-9
    )
    value.backward()
    assert (student.grad[:, [1, 4]] == 0).all()
    assert (student.grad[:, KNOWN] != 0).any()


def test_the_other_losses_agree(logits):
    student, head = logits
    teacher = read(head)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    assert top_k_kl(student, teacher, k=5).item() == pytest.approx(kl(student, teacher).item())
    assert torch.isfinite(xe_kl(student, teacher, labels))
    assert teacher_mask(teacher, student, labels)[[1, 4]].tolist() == [False, False]
    # Where the frozen student is the target, it is so over all classes.
    everywhere = kl_dp(
        student * 2, torch.full_like(teacher, ABSENT).index_fill(1, torch.tensor([0, 2]), 0.0), student, labels
    )
    assert torch.isfinite(everywhere)
    stays = [1, 4]
    alone = kl_dp(student[stays] * 2, teacher[stays], student[stays], labels[stays])
    assert alone.item() == pytest.approx(kl(student[stays] * 2, student[stays]).item())
