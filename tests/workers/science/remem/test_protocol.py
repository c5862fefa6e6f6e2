"""The whole protocol on real digits: four settings, killed anywhere and resumed to the same bits."""

import copy

import pytest
import timm
import torch
from sklearn.datasets import load_digits

from backend.domain.errors import NonFiniteLoss
from backend.domain.remem import ExpertnessParams, InformationParams, RememParams, StudentDistillation, TeacherTuning
from backend.domain.remem_protocol import best_teacher, information_plane, setting_table
from workers.science.preprocessed import Preprocessed
from workers.science.remem.protocol import Bench, RememRun

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}


class Digits:
    """Some of scikit-learn's digits, 16 × 16."""

    def __init__(self, first, last):
        digits = load_digits()
        images = torch.tensor(digits.images[first:last] / 16 * 255).round().to(torch.uint8)
        self.pixels = images[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)
        self.labels = torch.tensor(digits.target[first:last])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, chosen):
        return self.pixels[chosen]


def build_teacher():
    torch.manual_seed(0)
    return Preprocessed(timm.create_model("vit_tiny_patch16_224", **VIT, in_chans=3), 16, (0.5,) * 3, (0.5,) * 3)


def build_student(seed):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 10),
    )
    return Preprocessed(net, 16, (0.5,) * 3, (0.5,) * 3)


def bench():
    train, validation, test = Digits(0, 200), Digits(200, 260), Digits(260, 360)
    both = lambda images: {"teacher": images, "student": images}  # noqa: E731
    return Bench(build_teacher, build_student, train, both(validation), both(test), 10, 16, "vit", "digits")


def tuning(**changes):
    defaults = {
        "lr": 0.3,
        "steps": 24,
        "warmup_steps": 2,
        "stop_points": (12, 24),
        "batch_size": 64,
        "augment": "none",
    }
    return TeacherTuning(**{**defaults, **changes})


def distillation(**changes):
    defaults = {"lr": 0.05, "steps": 10, "warmup_steps": 1, "batch_size": 64, "augment": "none"}
    return StudentDistillation(**{**defaults, **changes})


PARAMS = RememParams(
    tunings=(tuning(), tuning(rho=0.05, mlp_weight=0.8)),
    distillations=(distillation(), distillation(method="dist", kd_weight=0.5)),
    information=InformationParams(updates=6, batch_size=16, images=64, heldout_images=32),
    expertness=ExpertnessParams(images=40),
)


def finished(run):
    steps = []
    for progress in run.run():
        steps.append(progress.step)
        assert progress.total == run.total_steps
    assert steps == sorted(steps)
    assert steps[-1] == run.total_steps == 2 * (24 + 2 * (6 + 20))
    return run


@pytest.fixture(scope="module")
def whole():
    return finished(RememRun(bench(), PARAMS))


def test_every_cell_is_measured_and_a_pair_chosen(whole):
    assert [teacher.setting for teacher in whole.teachers] == ["baseline", "both"]
    for teacher in whole.teachers:
        assert [snapshot.stop_point for snapshot in teacher.snapshots] == [12, 24]
        for snapshot in teacher.snapshots:
            assert len(snapshot.students) == 2
            assert [student.test_error is not None for student in snapshot.students].count(True) == 1
            assert snapshot.information.n_heldout == 32
            assert len(snapshot.expertness.blocks) == 2
            assert 0 < snapshot.test_error < 1
        assert teacher.best_student.test_error < 0.8  # a class in ten by chance is .9
    table = setting_table(whole.teachers)
    assert [row.setting for row in table] == ["baseline", "both"]
    assert len(information_plane(whole.teachers)) == 4
    assert not whole.failures


def test_the_weights_kept_are_the_chosen_pair_s(whole):
    best = whole.teachers[best_teacher(whole.teachers)]
    student = build_student(0)
    student.load_state_dict(whole.best_student)
    assert whole._error(student, Digits(260, 360)) == best.best_student.test_error
    teacher = whole.tuned(best.tuning)
    teacher.load_state_dict(whole.best_teacher)
    assert whole._error(teacher, Digits(260, 360)) == best.best_snapshot.test_error


def _counting(stage, begun, name):
    def run(*arguments):
        begun[name] += 1
        return stage(*arguments)

    return run


def _left(state):
    """Stages of the 2 × 2 stops that a state has not finished, of 1 decoder, 1 expertness and 2 students each."""
    snapshots = [*state["snapshots"], *(one for teacher in state["teachers"] for one in teacher["snapshots"])]
    at_stop = state["at_stop"]
    return {
        "_inform": 4 - len(snapshots) - (at_stop["information"] is not None),
        "_expertness": 4 - len(snapshots) - (at_stop["expertness"] is not None),
        "_distil": 8 - 2 * len(snapshots) - at_stop["tried"],
    }


@pytest.mark.parametrize("stop_after", [7, 16, 30, 80])
def test_killed_anywhere_it_ends_in_the_same_bits(whole, stop_after, monkeypatch):
    first = RememRun(bench(), PARAMS)
    state = None
    for i, _ in enumerate(first.run()):
        if i == stop_after:
            state = copy.deepcopy(first.state_dict())
            break
    second = RememRun(bench(), PARAMS)
    second.load_state_dict(state)
    assert second.state_dict()["done"] == state["done"]
    begun = {"_inform": 0, "_expertness": 0, "_distil": 0}
    for name in begun:
        monkeypatch.setattr(second, name, _counting(getattr(second, name), begun, name))
    finished(second)
    assert begun == _left(state), "no finished stage is done again"
    assert second.teachers == whole.teachers
    for name, value in whole.best_student.items():
        assert torch.equal(value, second.best_student[name]), name
    for name, value in whole.best_teacher.items():
        assert torch.equal(value, second.best_teacher[name]), name


def test_a_teacher_that_diverges_is_noted_and_left_out():
    params = PARAMS.model_copy(
        update={
            "tunings": (tuning(lr=100.0, clip_norm=None, mlp_weight=1.9), tuning()),
            "distillations": (distillation(),),
            "information": None,
            "expertness": None,
        }
    )
    run = RememRun(bench(), params)
    for _ in run.run():
        pass
    assert len(run.teachers) == 1
    assert run.teachers[0].setting == "baseline"
    assert "lr 100" in run.failures[0]
    alone = RememRun(bench(), params.model_copy(update={"tunings": params.tunings[:1]}))
    with pytest.raises(NonFiniteLoss):
        for _ in alone.run():
            pass


def test_a_student_that_diverges_is_noted_and_left_out():
    params = PARAMS.model_copy(
        update={
            "tunings": (tuning(stop_points=(12,)),),
            "distillations": (distillation(lr=100.0, temperature=1000.0), distillation()),
            "information": None,
            "expertness": None,
        }
    )
    run = RememRun(bench(), params)
    for _ in run.run():
        pass
    (teacher,) = run.teachers
    if run.failures:
        assert [student.distillation.lr for student in teacher.snapshots[0].students] == [0.05]
    assert teacher.best_distillation == params.distillations[1]
