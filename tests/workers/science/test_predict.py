"""Scores from logits: laws and exact values."""

import math

import pytest
import torch
from torch import nn

from workers.science.predict import NonFiniteLogits, forward, score_logits


def test_exact_values() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.4, 0.15, 0.1, 0.05]]))
    scores = score_logits(logits, torch.tensor([1]))
    assert scores.top1.tolist() == [2]
    assert scores.top5.tolist() == [[2, 1, 3, 0, 4]]  # of equals the lower index first
    torch.testing.assert_close(scores.p_top5, torch.tensor([[0.4, 0.2, 0.15, 0.1, 0.1]]))
    torch.testing.assert_close(scores.p_label, torch.tensor([0.2]))
    torch.testing.assert_close(scores.p_top1, torch.tensor([0.4]))


def test_ties_go_to_the_lower_index() -> None:
    scores = score_logits(torch.zeros(3, 40), torch.tensor([0, 1, 2]))
    assert scores.top5.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_fewer_than_five_classes() -> None:
    assert score_logits(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([0])).top5.tolist() == [[1, 2, 0]]


def test_the_identity_map_changes_nothing() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(20, 7), torch.randint(0, 7, (20,))
    plain, mapped = score_logits(logits, labels), score_logits(logits, labels, list(range(7)))
    for name in ("top1", "p_top1", "p_label", "top5", "p_top5", "logits"):
        assert torch.equal(getattr(plain, name), getattr(mapped, name))


def test_the_argmax_runs_over_the_whole_space_of_the_data_set() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0, 3.0]])
    # Output 0 means no class of the space; class 1 has no output.
    scores = score_logits(logits, torch.tensor([1]), [3, -1, 1])
    assert scores.top1.tolist() == [0]
    assert scores.p_label.tolist() == [0.0]
    assert scores.logits.tolist() == [[3.0, -math.inf, 1.0]]
    torch.testing.assert_close(scores.p_top1, torch.softmax(torch.tensor([3.0, 1.0]), 0)[:1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_logits_are_never_ranked(value: float) -> None:
    logits = torch.zeros(4, 3)
    logits[2, 1] = value
    with pytest.raises(NonFiniteLogits, match=r"^nonfinite_logits: 1 of 12 .* row 2$") as error:
        score_logits(logits, torch.zeros(4, dtype=torch.long))
    assert error.value.row == 2


class Hungry(nn.Module):
    """Runs out of memory above a batch size, as a GPU would."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.sizes = limit, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.flatten(1)


def test_out_of_memory_halves_the_batch() -> None:
    batch = torch.arange(28.0).reshape(7, 4)
    model = Hungry(2)
    assert torch.equal(forward(model, batch), batch)
    assert model.sizes == [7, 3, 1, 2, 4, 2, 2]
    with pytest.raises(torch.OutOfMemoryError):
        forward(Hungry(0), batch)


def test_amp_is_bfloat16_inside_and_float32_outside() -> None:
    torch.manual_seed(0)
    layer, batch = nn.Linear(64, 8), torch.randn(4, 64)
    plain, amp = forward(layer, batch), forward(layer, batch, amp=True)
    assert amp.dtype == torch.float32
    assert not torch.equal(plain, amp)
    torch.testing.assert_close(plain, amp, atol=0.05, rtol=0.05)
