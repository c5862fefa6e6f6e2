"""One model from several students, each of which learned from another teacher: Roth et al., arXiv:2310.17653, §4.3.

A plain mean of weights (Wortsman et al., arXiv:2203.05482), with BatchNorm's statistics estimated anew, as those of a
mean of weights are not the mean of the statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput
from workers.science.batchnorm import reestimate_statistics


def mean_state(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of several state dicts, accumulated in float64; counters are those of the first.

    One state is returned as it is; the order changes nothing beyond rounding.

    Raises:
        BadInput: no state, or states of different models.
    """
    if not states:
        raise BadInput("students", [], "at least one student")
    shapes = {name: tensor.shape for name, tensor in states[0].items()}
    for state in states[1:]:
        if {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise BadInput("students", "different models", "students of one architecture")
    return {name: _mean([state[name] for state in states]) for name in shapes}


def make_soup(student: nn.Module, states: Sequence[Mapping[str, Tensor]], views: Iterable[Tensor]) -> None:
    """Give `student` the mean of `states` and BatchNorm statistics of the transfer set.

    Args:
        student: Takes views [B, 3, H, W]; changed in place.
        states: State dicts of `student`'s kind, one per teacher.
        views: The transfer set, [B, 3, H, W] each; not read by a student without BatchNorm.
    """
    student.load_state_dict(mean_state(states))
    reestimate_statistics(student, views)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if len(tensors) == 1 or not first.is_floating_point():
        return first.clone()
    total = torch.zeros_like(first, dtype=torch.float64)
    for tensor in tensors:
        total += tensor.to(total.device)
    return (total / len(tensors)).to(first.dtype)
