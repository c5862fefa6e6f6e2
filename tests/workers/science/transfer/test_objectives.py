"""What every method must keep: one registry, exact resume, the same answer for the same seed, teachers untouched."""

from dataclasses import replace

import pytest
import torch

from backend.domain.errors import BadInput
from backend.domain.methods import METHODS, parse_method
from workers.science.training import fit
from workers.science.transfer import OBJECTIVES, Roles, build_objective

SETTINGS = {"batch_size": 8, "epochs": 2, "lr": 1e-2, "augment": "crop_flip"}
VARIANTS = [(name, {}) for name in METHODS] + [
    ("kl_dp", {"partition": "unsupervised"}),
    ("kl_dp", {"multi": "parallel", "kd_weight": 0.75}),
    ("mcl", {"tau": 0.9}),
    ("crd", {"negatives": 12, "micro_batch": 4}),
    ("soft_ce", {"kd_weight": 0.5, "temperature": 4.0}),
    ("cd", {"probe_epochs": 1}),
]
NAMES = [f"{name}-{'-'.join(map(str, extra.values()))}".rstrip("-") for name, extra in VARIANTS]


def test_every_method_has_an_objective():
    assert list(OBJECTIVES) == list(METHODS)


def make_training(scene, name, extra):
    params = parse_method(name, SETTINGS | extra)
    return replace(scene, teachers=2 if extra.get("multi") == "parallel" else 1).training(params)


def tensors(training):
    states = {
        "student": training.student.state_dict(),
        "seen": training.objective.evaluated(training.student).state_dict(),
    }
    flat = {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
    for name, value in training.objective.state_dict().items():
        values = value if isinstance(value, dict) else {"": value}
        flat |= {f"objective.{name}.{key}": tensor for key, tensor in values.items()}
    return flat


@pytest.mark.parametrize("name, extra", VARIANTS, ids=NAMES)
def test_resuming_ends_in_the_same_bits(scene, name, extra, tmp_path):
    whole = make_training(scene, name, extra)
    expected = list(fit(whole))
    assert len(expected) == 8

    first = make_training(scene, name, extra)
    steps = fit(first)
    seen = [next(steps) for _ in range(5)]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    next(steps)  # what happens after the checkpoint must not matter

    second = make_training(scene, name, extra)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    seen += list(fit(second))
    assert seen == expected
    ours, theirs = tensors(whole), tensors(second)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].max_teachers != 0])
def test_teachers_are_neither_trained_nor_adapted(scene, name):
    params = parse_method(name, SETTINGS | {"epochs": 1})
    roles = scene.roles()
    (teacher,) = roles.teachers.values()
    teacher.train()
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    objective = build_objective(params, roles)
    from workers.science.tensor_batches import TensorBatches
    from workers.science.training import Training

    training = Training(objective, roles.student, TensorBatches(scene.images, scene.labels, params), params)
    list(fit(training))
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("name", list(METHODS))
def test_the_student_learns_in_train_mode_and_its_statistics_adapt(scene, name):
    training = make_training(scene, name, {"epochs": 1})
    before = {key: tensor.clone() for key, tensor in training.student.named_buffers() if "running" in key}
    list(fit(training))
    assert training.student.training
    assert all(
        not torch.equal(before[key], tensor) for key, tensor in training.student.named_buffers() if key in before
    )


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_that_need_labels_say_so(scene, name):
    params = parse_method(name, SETTINGS | {"epochs": 1})
    roles = scene.roles()
    if params.max_teachers == 0:
        roles = Roles(roles.student)
    from workers.science.tensor_batches import TensorBatches
    from workers.science.training import Training

    def run():
        unlabelled = TensorBatches(scene.images, None, params)
        return list(fit(Training(build_objective(params, roles), roles.student, unlabelled, params)))

    if params.labels_needed:
        with pytest.raises(BadInput, match="labels"):
            run()
    else:
        assert len(run()) == 4


def test_the_teacher_sees_the_view_by_its_own_normalisation(scene):
    from workers.science.transfer.kl import kl

    params = parse_method("kl", SETTINGS)
    roles = scene.roles()
    (teacher,) = roles.teachers.values()
    assert not torch.equal(teacher.mean, roles.student.mean)
    student = roles.student.eval()
    batch = next(iter(scene.training(params).batches.epoch(0)))
    terms = build_objective(params, roles).loss(student, batch)
    by_hand = teacher.model((batch.view - 0.4) / 0.25)
    torch.testing.assert_close(terms["loss"], kl(student.model((batch.view - 0.5) / 0.25), by_hand))


@pytest.mark.parametrize("name", ["kl", "self_kl", "kl_dp", "topk_kl"])
def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(scene, name):
    """All equal, loss 0: in eval mode the student is what it is to learn."""
    from workers.science.preprocessed import frozen_copy

    params = parse_method(name, SETTINGS)
    student = scene.roles().student.eval()
    roles = Roles(student, {} if params.max_teachers == 0 else {"itself": frozen_copy(student)})
    batch = next(iter(scene.training(parse_method("ce", SETTINGS)).batches.epoch(0)))
    terms = build_objective(params, roles).loss(student, batch)
    assert terms["loss"].item() == pytest.approx(0, abs=1e-9)


def test_the_number_of_teachers_is_checked(scene):
    roles = scene.roles()
    with pytest.raises(BadInput, match="no teacher"):
        build_objective(METHODS["ce"](), roles)
    with pytest.raises(BadInput, match="1 teacher or more"):
        build_objective(METHODS["kl_dp"](), Roles(roles.student))
