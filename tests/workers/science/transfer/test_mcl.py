"""MCL: the slow weights are a copy, follow slowly, and are what is evaluated."""

import torch
from torch import nn

from backend.domain.methods import MCLParams
from workers.science.training import fit
from workers.science.transfer.mcl import update_slow_weights


def test_golden_values():
    slow, fast = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        slow.weight.copy_(torch.tensor([[1.0, 2.0]]))
        fast.weight.copy_(torch.tensor([[3.0, 0.0]]))
    for expected in ([1.2, 1.8], [1.38, 1.62], [1.542, 1.458]):
        update_slow_weights(slow, fast, 0.9)
        torch.testing.assert_close(slow.weight.detach(), torch.tensor([expected]))
    assert fast.weight.tolist() == [[3.0, 0.0]]


def test_buffers_follow_and_counters_are_copied():
    slow, fast = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    fast.running_mean.fill_(10.0)
    fast.num_batches_tracked.fill_(7)
    update_slow_weights(slow, fast, 0.75)
    assert slow.running_mean.tolist() == [2.5, 2.5]
    assert slow.num_batches_tracked == 7
    update_slow_weights(slow, fast, 1.0)
    assert slow.running_mean.tolist() == [2.5, 2.5]
    update_slow_weights(slow, fast, 0.0)
    assert slow.running_mean.tolist() == [10.0, 10.0]


def test_the_slow_weights_share_no_memory(scene):
    training = scene.training(MCLParams(batch_size=8, epochs=1))
    slow = training.objective.evaluated(training.student)
    fast_memory = {tensor.data_ptr() for tensor in training.student.state_dict().values()}
    assert fast_memory.isdisjoint(tensor.data_ptr() for tensor in slow.state_dict().values())
    for name, tensor in slow.state_dict().items():
        assert torch.equal(tensor, training.student.state_dict()[name])


def test_slow_weights_move_every_interval_after_the_step(scene):
    training = scene.training(MCLParams(batch_size=8, epochs=1, interval=2, tau=0.5, augment="none"))
    slow = training.objective.evaluated(training.student)
    name, start = next((n, t.clone()) for n, t in slow.state_dict().items() if t.is_floating_point())
    steps = fit(training)
    next(steps)
    assert torch.equal(slow.state_dict()[name], start)
    next(steps)
    torch.testing.assert_close(slow.state_dict()[name], (start + training.student.state_dict()[name]) / 2)


def test_evaluating_leaves_the_fast_weights_alone(scene):
    params = MCLParams(batch_size=8, epochs=1, tau=0.5, augment="none")
    plain, watched = scene.training(params), scene.training(params)
    for _ in fit(plain):
        pass
    for _ in fit(watched):
        module = watched.objective.evaluated(watched.student).eval()
        module(torch.rand(3, 3, 16, 16))
    for name, tensor in plain.student.state_dict().items():
        assert torch.equal(tensor, watched.student.state_dict()[name])
    slow = watched.objective.evaluated(watched.student)
    assert slow is not watched.student
