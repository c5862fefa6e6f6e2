"""SAM: the paper's numbers, and the law that ρ = 0 is the wrapped optimizer."""

import copy

import pytest
import torch
from torch import nn

from backend.domain.errors import BadInput
from backend.domain.methods import TrainingParams
from workers.science.batch import Batch
from workers.science.batchnorm import frozen_statistics
from workers.science.remem.sam import Sam, perturbations, perturbed, sam_stepper
from workers.science.training import Objective, Training, fit


def quadratic_step(rho, **options):
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (torch.tensor([1.0, 10.0], dtype=torch.float64) * w**2).sum()
        loss.backward()
        return loss

    loss = Sam(optimizer, nn.Module(), rho=rho, **options).step(closure)
    assert loss.item() == 5.5
    return w.detach().tolist()


@pytest.mark.parametrize(
    ("rho", "expected"),
    [(0.05, (0.899502, -0.049752)), (0.5, (0.895025, -0.497519)), (0.0, (0.9, 0.0))],
)
def test_golden(rho, expected):
    assert quadratic_step(rho) == pytest.approx(expected, abs=1e-6)


def test_adaptive_scales_by_weights():
    w, g = [torch.tensor([2.0, 0.0])], [torch.tensor([3.0, 4.0])]
    # T = (2, 0): T g = (6, 0), norm 6; e = T² g ρ / 6 = (12, 0) ρ / 6
    assert perturbations(w, g, 0.5, 0.0)[0].tolist() == pytest.approx([1.0, 0.0])
    assert perturbations(w, g, 0.5, 0.01)[0][1] > 0


def test_one_norm_over_all_weights():
    steps = perturbations([torch.zeros(1), torch.zeros(1)], [torch.tensor([3.0]), torch.tensor([4.0])], 1.0)
    assert [step.item() for step in steps] == pytest.approx([0.6, 0.8])


def test_zero_gradient_moves_nothing():
    assert perturbations([torch.ones(3)], [torch.zeros(3)], 0.5)[0].tolist() == [0, 0, 0]


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def train(model, rho, make, steps=5, *, plain=False):
    optimizer = make(model.parameters())
    sam = Sam(optimizer, model, rho=rho)
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    for _ in range(steps):
        x, y = torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        if plain:
            closure()
            optimizer.step()
        else:
            sam.step(closure)
    return model, optimizer


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
        lambda p: torch.optim.AdamW(p, lr=0.01),
    ],
)
def test_rho_zero_is_the_optimizer_to_the_bit(make):
    a, _ = train(net(0.3), 0.0, make)
    b, _ = train(net(0.3), 0.0, make, plain=True)
    for (name, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_running_statistics_see_one_pass():
    a, _ = train(net(), 0.5, lambda p: torch.optim.SGD(p, lr=0.0), steps=3)
    b, _ = train(net(), 0.0, lambda p: torch.optim.SGD(p, lr=0.0), steps=3)
    assert a[1].num_batches_tracked.item() == 3
    assert torch.equal(a[1].running_mean, b[1].running_mean)
    assert torch.equal(a[1].running_var, b[1].running_var)
    assert a[1].track_running_stats


def test_frozen_statistics_normalises_alike():
    model = net().train()
    other = copy.deepcopy(model)
    x = torch.randn(16, 6)
    with frozen_statistics(model):
        frozen = model(x)
    assert torch.equal(frozen, other(x))
    assert model[1].running_mean.abs().sum() == 0


def test_weights_come_back_to_the_bit_and_momentum_moves_once():
    model = net()
    before = copy.deepcopy(model.state_dict())
    model, optimizer = train(model, 0.5, lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9), steps=1)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name
        assert torch.equal(optimizer.state[value]["momentum_buffer"], value.grad)


def test_only_trainable_weights_are_perturbed():
    model = net()
    model[0].requires_grad_(False)
    model(torch.randn(16, 6)).square().sum().backward()
    frozen, moved = model[0].weight.clone(), model[4].weight.clone()
    with perturbed(list(model.parameters()), 0.5):
        assert torch.equal(model[0].weight, frozen)
        assert not torch.equal(model[4].weight, moved)
    assert torch.equal(model[4].weight, moved)


def test_both_passes_draw_the_same_dropout_masks():
    model = net(0.5).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = []
    model[3].register_forward_hook(lambda m, i, out: masks.append((out == 0) & (i[0] != 0)))
    x = torch.randn(64, 6)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    Sam(optimizer, model, rho=1e-6).step(closure)
    assert len(masks) == 2
    assert torch.equal(*masks)


def test_runs_under_bf16_autocast():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(16, 6)).float().square().mean()
        loss.backward()
        return loss

    before = model[0].weight.clone()
    Sam(optimizer, model, rho=0.05).step(closure)
    assert model[0].weight.dtype == torch.float32
    assert torch.isfinite(model[0].weight).all()
    assert not torch.equal(before, model[0].weight)


def test_restores_weights_when_the_second_pass_fails():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, calls = model[0].weight.clone(), []

    def closure():
        optimizer.zero_grad()
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        loss = model(torch.randn(16, 6)).square().sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="out of memory"):
        Sam(optimizer, model, rho=0.5).step(closure)
    assert torch.equal(before, model[0].weight)
    assert model[1].track_running_stats


def test_negative_radius_is_refused():
    with pytest.raises(BadInput, match="rho"):
        Sam(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), nn.Module(), rho=-0.1)


class CrossEntropy(Objective):
    def loss(self, student, batch):
        return {"loss": nn.functional.cross_entropy(student(batch.view), batch.labels)}


class Vectors:
    steps_per_epoch = 4

    def epoch(self, epoch, *, start=0):
        generator = torch.Generator().manual_seed(epoch)
        for i in range(self.steps_per_epoch):
            view, labels = torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)
            if i >= start:
                yield Batch(view, labels, torch.arange(16))


def training(model, rho, **options):
    params = TrainingParams(epochs=2, lr=0.1, momentum=0.9, grad_clip=1.0, batch_size=16, seed=3, **options)
    return Training(CrossEntropy(), model, Vectors(), params, stepper=sam_stepper(rho=rho))


def trained(model, rho, **options):
    run = training(model, rho, **options)
    for _ in fit(run):
        pass
    return run.student.state_dict()


def test_stepper_with_radius_zero_is_the_plain_step():
    a, b = trained(net(0.3), 0.0), trained(net(0.3), 0.0)
    c = trained(net(0.3), 0.05)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["0.weight"], c["0.weight"])
    assert a["1.num_batches_tracked"] == c["1.num_batches_tracked"] == 8


def test_stepper_agrees_with_the_wrapped_optimizer():
    model, generator_run = net(), training(net(), 0.05)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=generator_run.params.weight_decay
    )
    sam = Sam(optimizer, model, rho=0.05)
    for _ in fit(generator_run):
        pass
    for epoch in range(2):
        for batch in Vectors().epoch(epoch):

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(batch.view), batch.labels)
                loss.backward()
                return loss

            sam.step(closure, lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    for name, value in generator_run.student.state_dict().items():
        assert torch.allclose(value.float(), model.state_dict()[name].float(), atol=1e-6), name


def test_an_interrupted_run_ends_in_the_same_bits():
    whole, first = trained(net(0.3), 0.05), training(net(0.3), 0.05)
    for progress in fit(first):
        if progress.step == 3:
            break
    second = training(net(0.3), 0.05)
    second.load_state_dict(first.state_dict())
    for _ in fit(second):
        pass
    assert all(torch.equal(whole[name], value) for name, value in second.student.state_dict().items())
