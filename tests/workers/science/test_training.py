"""The loop: steps, schedules, micro-batches, finite losses, and hooks for other objectives and steps."""

import math
from dataclasses import dataclass

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from backend.domain.errors import BadInput, NonFiniteLoss
from backend.domain.methods import TrainingParams
from workers.science.preprocessed import Preprocessed
from workers.science.tensor_batches import TensorBatches
from workers.science.training import Objective, Training, fit, learning_rate_factor


class Labels(Objective):
    """Plain cross-entropy."""

    def loss(self, student, batch):
        return {"loss": F.cross_entropy(student(batch.view), batch.labels)}


@dataclass
class Hungry(Labels):
    """Runs out of memory on more than `most` samples at once."""

    most: int

    def loss(self, student, batch):
        terms = super().loss(student, batch)
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("no room")
        return terms


IMAGES = torch.rand(22, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(22) % 4


def params_of(**settings):
    return TrainingParams(**{"batch_size": 8, "epochs": 2, "lr": 0.1} | settings)


def linear():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 4))


def conv(dropout=0.0):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(80, 4)
    )


def training_of(params, student=None, objective=None, **options):
    return Training(
        objective or Labels(), student or linear(), TensorBatches(IMAGES, LABELS, params), params, **options
    )


def test_one_progress_a_step():
    training = training_of(params_of(), log_every=2)
    seen = list(fit(training))
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert {progress.total for progress in seen} == {6}
    assert [progress.epoch for progress in seen] == [1, 1, 1, 2, 2, 2]
    assert [bool(progress.metrics) for progress in seen] == [False, True, True, True, False, True]
    assert training.epoch == 2
    assert list(fit(training)) == []


def test_metrics_are_means_since_the_last():
    params = params_of(epochs=1, lr=1e-9)
    (every, rare) = ([p.metrics for p in fit(training_of(params, log_every=n))] for n in (1, 3))
    assert rare[-1]["loss"] == pytest.approx(sum(metrics["loss"] for metrics in every) / 3)
    assert rare[-1]["lr"] == 1e-9


def test_a_step_is_the_optimizers():
    """Two steps by hand: SGD with momentum and weight decay on the batches' mean loss."""
    params = params_of(steps=2, momentum=0.9, weight_decay=0.01)
    training, by_hand = training_of(params), linear()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for batch in list(training.batches.epoch(0))[:2]:
        optimizer.zero_grad()
        F.cross_entropy(by_hand(batch.view), batch.labels).backward()
        optimizer.step()
    assert len(list(fit(training))) == 2
    for ours, theirs in zip(training.student.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_batches_made_ahead_change_nothing():
    alone, ahead = (training_of(params_of(augment="paper"), conv(0.5), prefetch=n) for n in (0, 2))
    assert list(fit(alone)) == list(fit(ahead))
    for name, tensor in alone.student.state_dict().items():
        assert torch.equal(tensor, ahead.student.state_dict()[name])


def test_steps_override_epochs():
    assert [progress.step for progress in fit(training_of(params_of(steps=4, epochs=1)))] == [1, 2, 3, 4]


def test_cancelling_is_not_asking_for_the_next_step():
    training = training_of(params_of())
    steps = fit(training)
    next(steps)
    steps.close()
    assert training.step == 1
    assert [progress.step for progress in fit(training)] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("n_micro", [1, 3, 5])
def test_micro_batches_make_the_same_step(n_micro):
    whole, parts = training_of(params_of(steps=3)), training_of(params_of(steps=3, micro_batch=n_micro))
    losses = [[p.metrics["loss"] for p in fit(training) if p.metrics] for training in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(whole.student.parameters(), parts.student.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_out_of_memory_halves_the_micro_batch_and_goes_on():
    calm, hungry = training_of(params_of()), training_of(params_of(), objective=Hungry(3))
    list(fit(calm))
    seen = list(fit(hungry))
    assert hungry.micro_batch == 2
    assert seen[0].message == (
        "out of memory at step 1: micro-batch 7 → 4, same effective batch; "
        "out of memory at step 1: micro-batch 4 → 2, same effective batch"
    )
    assert [progress.message for progress in seen[1:]] == [None] * 5
    for a, b in zip(calm.student.parameters(), hungry.student.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_out_of_memory_with_batchnorm_is_told_apart_and_counts_no_sample_twice():
    training = training_of(params_of(steps=1), student=conv(), objective=Hungry(4))
    (progress,) = fit(training)
    assert "not equivalent: BatchNorm sees the micro-batch" in progress.message
    assert training.student[1].num_batches_tracked == 2  # two micro-batches; the failed pass was undone


def test_out_of_memory_at_the_floor_fails():
    training = training_of(params_of(), objective=Hungry(0))
    with pytest.raises(torch.OutOfMemoryError):
        next(fit(training))
    assert training.micro_batch == 1
    assert training.step == 0


class Explodes(Labels):
    """A term that is not finite from step `at` on (1-based)."""

    def __init__(self, at):
        self.at, self.passes = at, 0

    def begin_pass(self):
        self.passes += 1

    def loss(self, student, batch):
        loss = super().loss(student, batch)["loss"]
        extra = loss.new_tensor(math.inf if self.passes >= self.at else 0.0)
        return {"loss": loss + extra, "extra": extra}


def test_a_loss_that_is_not_finite_names_step_and_term():
    training = training_of(params_of(), objective=Explodes(3))
    steps = fit(training)
    next(steps), next(steps)
    good = {name: tensor.clone() for name, tensor in training.state_dict()["student"].items()}
    assert training.verified_step == 2
    with pytest.raises(NonFiniteLoss, match="'extra' became inf at step 3") as caught:
        next(steps)
    assert (caught.value.step, caught.value.term) == (3, "extra")
    assert training.verified_step == 2
    assert all(torch.isfinite(tensor).all() for tensor in good.values())


def test_a_state_that_is_not_finite_is_never_given_away():
    training = training_of(params_of())
    next(fit(training))
    with torch.no_grad():
        training.student[1].weight[0, 0] = math.nan
    with pytest.raises(NonFiniteLoss, match="weights"):
        training.state_dict()
    assert training.verified_step == 1


def test_weights_that_explode_in_the_last_step_fail_the_training():
    class LastStep(Labels):
        def after_step(self, step):
            if step == 6:
                with torch.no_grad():
                    training.student[1].weight.fill_(math.inf)

    training = training_of(params_of(), objective=LastStep())
    with pytest.raises(NonFiniteLoss, match="weights"):
        list(fit(training))


def test_schedules():
    def factors(steps, **settings):
        params = params_of(**settings)
        return [learning_rate_factor(params, step, 10, 2) for step in steps]

    assert factors([0, 9]) == [1.0, 1.0]
    assert factors([0, 1, 3, 4], warmup_steps=4) == [0.25, 0.5, 1.0, 1.0]
    assert factors([0, 5], schedule="cosine") == pytest.approx([1.0, 0.5])
    assert factors([4, 7], schedule="cosine", warmup_steps=4) == pytest.approx([1.0, 0.5])
    assert factors([0, 3, 4, 8], schedule="step", step_epochs=2) == pytest.approx([1.0, 1.0, 0.1, 0.01])


def test_the_schedule_reaches_the_optimizer():
    training = training_of(params_of(schedule="cosine", lr=1.0), log_every=1)
    rates = [progress.metrics["lr"] for progress in fit(training)]
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])


def test_groups_of_a_given_optimizer_keep_their_ratio():
    student = linear()
    optimizer = torch.optim.SGD([{"params": [student[1].weight], "lr": 1.0}, {"params": [student[1].bias], "lr": 0.1}])
    training = training_of(params_of(schedule="cosine"), student, optimizer=optimizer)
    steps = fit(training)
    for _ in range(4):
        next(steps)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.05])


def test_gradients_are_clipped_to_a_global_norm():
    training = training_of(params_of(grad_clip=1e-3, lr=1.0, momentum=0.0, weight_decay=0.0, steps=1))
    before = [parameter.detach().clone() for parameter in training.trainable()]
    list(fit(training))
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, training.trainable(), strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_caller_keeps_its_random_numbers_and_the_training_its_own(optimizer):
    ends = []
    for seed in (1, 2):
        student = conv(dropout=0.5)
        torch.manual_seed(seed)
        expected = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        training = training_of(params_of(optimizer=optimizer, lr=1e-2), student)
        list(fit(training))
        assert torch.equal(torch.rand(3), expected)
        ends.append(student.state_dict())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_other_seeds_give_other_trainings():
    ends = []
    for seed in (0, 1):
        training = training_of(params_of(seed=seed))
        list(fit(training))
        ends.append(training.student[1].weight)
    assert not torch.equal(*ends)


@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"schedule": "cosine", "warmup_steps": 2}, {"amp": True}])
@pytest.mark.parametrize("at", [1, 3, 4])
def test_resuming_ends_in_the_same_bits(settings, at, tmp_path):
    params = params_of(augment="crop_flip", micro_batch=4, **settings)
    whole = training_of(params, conv(0.5), log_every=2)
    expected = list(fit(whole))

    first = training_of(params, conv(0.5), log_every=2)
    steps = fit(first)
    seen = [next(steps) for _ in range(at)]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = training_of(params, conv(0.3), log_every=2)
    second.student[3].p = 0.5
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    seen += list(fit(second))
    assert seen == expected
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, second.student.state_dict()[name]), name


def test_a_checkpoint_of_another_training_is_refused():
    state = training_of(params_of()).state_dict()
    with pytest.raises(BadInput, match="checkpoint: '6 steps in all' is not valid; one of 9 steps"):
        training_of(params_of(epochs=3)).load_state_dict(state)


def test_probing_trains_the_classifier_alone_then_everything():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=4, img_size=16, patch_size=8)
    student = Preprocessed(model, 16, (0.5,) * 3, (0.5,) * 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = training_of(params_of(probe_epochs=1), student)
    steps = fit(training)
    for _ in range(3):
        next(steps)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
    for _ in steps:
        pass
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("mlp.fc1" in name for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_probing_leaves_batchnorm_alone():
    model = timm.create_model("test_resnet", num_classes=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    list(fit(training_of(params_of(probe_epochs=2), Preprocessed(model, 16, (0.5,) * 3, (0.5,) * 3))))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_stepper_may_take_two_gradients():
    """SAM on a quadratic, f = ½ wᵀ diag(1, 10) w from (1, 1), lr .1: ρ = .05 gives (.899502, -.049752)."""

    class Quadratic(Objective):
        def loss(self, student, batch):
            return {"loss": 0.5 * (torch.tensor([1.0, 10.0]) * student.weight[0] ** 2).sum()}

    student = nn.Linear(2, 1, bias=False)
    nn.init.ones_(student.weight)
    frozen_passes = []

    def sam(training, gradients):
        terms = gradients()
        (weight,) = training.trainable()
        kick = 0.05 * weight.grad / weight.grad.norm()
        with torch.no_grad():
            weight += kick
        frozen_passes.append(gradients(freeze_statistics=True))
        with torch.no_grad():
            weight -= kick
        training.optimizer.step()
        return terms

    params = params_of(steps=1, momentum=0.0, weight_decay=0.0)
    (progress,) = fit(training_of(params, student, Quadratic(), stepper=sam))
    assert student.weight[0].tolist() == pytest.approx([0.899502, -0.049752], abs=1e-6)
    assert progress.metrics["loss"] == pytest.approx(5.5)
    assert len(frozen_passes) == 1


def test_the_second_pass_sees_the_same_dropout_and_leaves_statistics_alone():
    losses = []

    def twice(training, gradients):
        first = gradients()
        tracked = training.student[1].running_mean.clone()
        losses.append((first, gradients(freeze_statistics=True)))
        assert torch.equal(tracked, training.student[1].running_mean)
        training.optimizer.step()
        return first

    list(fit(training_of(params_of(), conv(0.5), stepper=twice)))
    assert all(torch.equal(first["loss"], second["loss"]) for first, second in losses)
    assert len(losses) == 6


def test_an_objective_may_bring_its_own_modules():
    class Aligned(Objective):
        def __init__(self):
            self.aligner = nn.Linear(4, 2)

        def parameters(self):
            return self.aligner.parameters()

        def to(self, device):
            self.aligner.to(device)

        def loss(self, student, batch):
            return {"loss": self.aligner(student(batch.view)).square().mean()}

        def diagnostics(self):
            return {"norm": float(self.aligner.weight.norm())}

    objective = Aligned()
    before = objective.aligner.weight.detach().clone()
    seen = list(fit(training_of(params_of(epochs=1), objective=objective)))
    assert not torch.equal(before, objective.aligner.weight)
    assert seen[-1].metrics["norm"] == objective.aligner.weight.detach().norm().item()


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(BadInput, match="at least 2, because the student has BatchNorm"):
        training_of(params_of(batch_size=1), conv())
    with pytest.raises(BadInput, match="micro_batch: 1 is not valid; at least 2"):
        training_of(params_of(micro_batch=1), conv())
    one = TensorBatches(IMAGES[:1], LABELS[:1], params_of())
    with pytest.raises(BadInput, match="two at least, because the student has BatchNorm"):
        list(fit(Training(Labels(), conv(), one, params_of())))
    with pytest.raises(BadInput, match="parameters that can be trained"):
        training_of(params_of(), linear().requires_grad_(False))
    with pytest.raises(BadInput, match="get_classifier"):
        training_of(params_of(probe_epochs=1))
    assert list(fit(training_of(params_of(batch_size=1, epochs=1))))


def test_frozen_parts_of_a_student_stay_frozen_through_a_probe():
    model = timm.create_model("test_resnet", num_classes=4)
    model.conv1.requires_grad_(False)
    list(fit(training_of(params_of(probe_epochs=1), Preprocessed(model, 16, (0.5,) * 3, (0.5,) * 3))))
    assert not any(parameter.requires_grad for parameter in model.conv1.parameters())


def test_bfloat16_and_channels_last_train():
    losses = []
    for settings in ({}, {"amp": True, "channels_last": True}):
        training = training_of(params_of(lr=0.01, **settings), conv(), log_every=1)
        losses.append([progress.metrics["loss"] for progress in fit(training)])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    assert training.student[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert training.student[0].weight.dtype == torch.float32
