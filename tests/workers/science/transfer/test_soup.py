"""Soups: a plain mean of weights, BatchNorm's statistics measured anew."""

import pytest
import torch
from torch import nn

from backend.domain.errors import BadInput
from workers.science.transfer.soup import make_soup, mean_state


def test_the_mean_of_states():
    states = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor(9)},
    ]
    mean = mean_state(states)
    assert mean["w"].tolist() == [2.0, 4.0]
    assert mean["n"] == 3


def test_one_student_is_its_own_soup():
    state = nn.Linear(3, 2).state_dict()
    mean = mean_state([state])
    assert all(torch.equal(mean[name], state[name]) for name in state)
    assert all(mean[name].data_ptr() != state[name].data_ptr() for name in state)


def test_statistics_are_those_of_the_soup_not_the_mean_of_statistics():
    torch.manual_seed(0)
    students = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(3)]
    views = [5 + torch.randn(8, 4) for _ in range(4)]
    for student in students:
        student.train()
        for view in views:
            student(view)
    soup = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    make_soup(soup, [student.state_dict() for student in students], views)
    outputs = torch.stack([soup[0](view).mean(0) for view in views]).mean(0)
    variances = torch.stack([soup[0](view).var(0) for view in views]).mean(0)
    torch.testing.assert_close(soup[1].running_mean, outputs.detach())
    torch.testing.assert_close(soup[1].running_var, variances.detach())
    assert soup[1].momentum == 0.1
    assert soup.training


def test_other_models_are_refused():
    with pytest.raises(BadInput, match="one architecture"):
        mean_state([nn.Linear(2, 2).state_dict(), nn.Linear(2, 3).state_dict()])
    with pytest.raises(BadInput, match="at least one"):
        mean_state([])
