"""Cached frozen outputs: computed once, and the same as asking the model on the same view."""

import pytest
import timm
import torch

from backend.domain.errors import BadInput
from backend.domain.methods import parse_method
from workers.science.cached_outputs import CachedOutputs
from workers.science.preprocessed import Preprocessed, frozen_copy
from workers.science.tensor_batches import TensorBatches
from workers.science.training import Training, fit
from workers.science.transfer import FROZEN_STUDENT, Roles, build_objective

N, C, V = 21, 4, 2
IMAGES = torch.randint(0, 256, (N, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(N) % C
PARAMS = parse_method("kl_dp", {"batch_size": 8, "epochs": 4, "views": V, "augment": "paper", "lr": 1e-2})


def make_model(seed):
    torch.manual_seed(seed)
    return Preprocessed(timm.create_model("test_resnet", num_classes=C, drop_rate=0.2), 16, (0.5,) * 3, (0.25,) * 3)


def cache(folder, **other):
    keys = {"t": "hash of t", FROZEN_STUDENT: "hash of s", "t/features": "features of t"}
    options = {"n_samples": N, "views": V, "data_key": "digits", "view_key": "paper-0-16"} | other
    return CachedOutputs(folder, keys, **options)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Folder, teacher, student, and the progress of filling."""
    folder = tmp_path_factory.mktemp("outputs")
    teacher, student = make_model(1).train(), make_model(2).train()
    models = {"t": teacher, FROZEN_STUDENT: student, "t/features": teacher.features}
    batches = TensorBatches(IMAGES, LABELS, PARAMS)
    progress = list(cache(folder).fill(models, batches.view))
    assert teacher.training  # modes are put back
    assert student.training
    return folder, teacher, student, progress


def test_filling_reports_samples_of_all_views(filled):
    progress = filled[3]
    assert (progress[0].step, progress[-1].step, progress[-1].total) == (7, N * V, N * V)
    assert progress[0].unit == "samples"


def test_equal_to_asking_online(filled):
    folder, teacher, student, _ = filled
    batches = TensorBatches(IMAGES, LABELS, PARAMS, cached=cache(folder))
    teacher, student = frozen_copy(teacher), frozen_copy(student)
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            with torch.no_grad():
                torch.testing.assert_close(batch.outputs["t"], teacher(batch.view), atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(batch.outputs[FROZEN_STUDENT], student(batch.view), atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(
                    batch.outputs["t/features"], teacher.features(batch.view), atol=1e-5, rtol=1e-5
                )


def test_training_from_the_cache_is_training_online(filled):
    folder, teacher, student, _ = filled
    ends = []
    for cached in (None, cache(folder)):
        live = make_model(2)
        live.load_state_dict(student.state_dict())
        # Without a cache the teacher is asked; with one it is not even there.
        roles = Roles(live, {"t": frozen_copy(teacher) if cached is None else None})
        batches = TensorBatches(IMAGES, LABELS, PARAMS, cached=cached)
        training = Training(build_objective(PARAMS, roles), live, batches, PARAMS)
        losses = [progress.metrics["loss"] for progress in fit(training) if progress.metrics]
        ends.append((losses, live.state_dict()))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    for name, tensor in ends[0][1].items():
        torch.testing.assert_close(tensor, ends[1][1][name], atol=1e-4, rtol=1e-4)


def test_nothing_is_computed_twice(filled):
    folder = filled[0]
    assert list(cache(folder).fill({}, lambda view: pytest.fail("asked again"))) == []
    assert [path.suffix for path in folder.iterdir()] == [".npy"] * 3 * V


def test_other_models_data_or_views_have_other_files(filled):
    folder = filled[0]
    for other in ({"data_key": "cifar"}, {"view_key": "rrc-0-16"}, {"n_samples": N + 1}):
        assert len(cache(folder, **other).missing(0)) == 3
    assert CachedOutputs(
        folder, {"t": "other"}, n_samples=N, views=V, data_key="digits", view_key="paper-0-16"
    ).missing(0)


def test_what_was_interrupted_is_not_there(tmp_path):
    batches = TensorBatches(IMAGES, LABELS, PARAMS)
    one = CachedOutputs(tmp_path, {"t": "t"}, n_samples=N, views=V, data_key="d", view_key="v")
    steps = one.fill({"t": make_model(1)}, batches.view)
    next(steps)
    steps.close()
    assert one.missing(0) == ["t"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match="21 samples, each once"):
        list(one.fill({"t": make_model(1)}, lambda view: list(batches.view(view))[:1]))
    assert list(tmp_path.iterdir()) == []
    list(one.fill({"t": make_model(1)}, batches.view))
    assert one.missing(0) == one.missing(1) == []
