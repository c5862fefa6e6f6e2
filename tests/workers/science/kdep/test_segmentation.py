"""Segmentation downstream: mIoU by hand, backbones with a student's weights, and a picture that can be learnt."""

import numpy as np
import pytest
import timm
import torch

from backend.domain.errors import BadInput
from workers.science.batch import Batch
from workers.science.kdep.segmentation import (
    IGNORE,
    SegmentationModel,
    SegmentationObjective,
    backbone_of,
    confusion,
    mean_iou,
)

MEAN = STD = (0.5, 0.5, 0.5)


def test_mean_iou_by_hand() -> None:
    labels = np.array([[0, 0, 1], [1, 2, IGNORE]])
    top1 = np.array([[0, 1, 1], [1, 0, 2]])
    counts = confusion(top1, labels, 4)
    assert counts.sum() == 5
    # class 0: 1 / 3, class 1: 2 / 3, class 2: 0 / 1, class 3 occurs nowhere and the ignored pixel counts nowhere
    assert mean_iou(counts) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    halves = confusion(top1[:1], labels[:1], 4) + confusion(top1[1:], labels[1:], 4)
    np.testing.assert_array_equal(halves, counts)
    assert mean_iou(confusion(labels.clip(0, 2), labels, 3)) == 1.0


def test_labels_that_are_no_class_are_refused() -> None:
    with pytest.raises(BadInput, match="255 to ignore"):
        confusion(np.zeros((1, 2), int), np.array([[0, 9]]), 3)
    with pytest.raises(BadInput, match="labelled pixel"):
        mean_iou(np.zeros((3, 3), np.int64))


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "test_efficientnet", "test_convnext", "test_byobnet"])
def test_a_backbone_carries_the_students_weights(name: str) -> None:
    torch.manual_seed(0)
    student = timm.create_model(name, num_classes=7).eval()
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    backbone = backbone_of(name, student.state_dict()).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = backbone(x)
        theirs = student.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(ours[-1], theirs[-1])


def test_wrong_weights_and_architectures_are_named() -> None:
    with pytest.raises(BadInput, match="resnet18"):
        backbone_of("resnet18", timm.create_model("test_resnet").state_dict())
    with pytest.raises(BadInput, match=r"no_such_model.*feature maps"):
        backbone_of("no_such_model")
    with pytest.raises(BadInput, match="maps of this backbone"):
        SegmentationModel(backbone_of("test_resnet"), 2, stages=9)


def test_logits_are_as_large_as_the_image() -> None:
    model = SegmentationModel(backbone_of("test_resnet"), 2, width=16, stages=4)
    assert model(torch.randn(2, 3, 40, 56)).shape == (2, 2, 40, 56)


def test_ignored_pixels_have_no_gradient() -> None:
    objective = SegmentationObjective(MEAN, STD)
    view, labels = torch.rand(1, 3, 2, 2), torch.tensor([[[0, IGNORE], [1, IGNORE]]])
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    batch = Batch(view, labels, torch.arange(1))
    loss = objective.loss(lambda x: logits, batch)["loss"]
    loss.backward()
    assert (logits.grad[0, :, :, 1] == 0).all()
    counted = torch.nn.functional.cross_entropy(logits[:, :, :, 0], labels[:, :, 0])
    torch.testing.assert_close(loss, counted)
    with pytest.raises(BadInput, match="label map"):
        objective.loss(lambda x: logits, Batch(view, torch.tensor([1]), torch.arange(1)))
