"""Detection downstream: average precision by hand, and a detector on a timm backbone that finds a square."""

import numpy as np
import pytest
import torch

from backend.domain.errors import BadInput, MissingExtra
from workers.science.kdep.detection import (
    Boxes,
    average_precision,
    box_iou,
    build_detector,
    detect,
    fit_detector,
    torchvision_operators,
)
from workers.science.kdep.segmentation import backbone_of


def _boxes(*rows: tuple[float, ...], scores: list[float] | None = None, labels: list[int] | None = None) -> Boxes:
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    chosen = np.array(labels if labels is not None else [1] * len(boxes), dtype=np.int64)
    return Boxes(boxes, chosen, None if scores is None else np.array(scores, dtype=np.float64))


SQUARE = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


def test_iou_by_hand() -> None:
    others = np.array([SQUARE, (5, 0, 15, 10), FAR, (3, 3, 3, 3)])
    np.testing.assert_allclose(box_iou(np.array([SQUARE]), others), [[1, 1 / 3, 0, 0]])


def test_perfect_detections_score_one_and_none_score_zero() -> None:
    truth = [_boxes(SQUARE, FAR), _boxes(SQUARE)]
    found = [_boxes(SQUARE, FAR, scores=[0.9, 0.8]), _boxes(SQUARE, scores=[0.7])]
    assert average_precision(truth, found).ap == pytest.approx(1.0)
    nothing = [_boxes(scores=[]), _boxes(scores=[])]
    assert average_precision(truth, nothing).ap == 0.0


def test_a_false_alarm_in_front_halves_the_precision() -> None:
    truth = [_boxes(SQUARE)]
    found = [_boxes(FAR, SQUARE, scores=[0.9, 0.8])]
    result = average_precision(truth, found)
    assert result.ap50 == pytest.approx(0.5)
    behind = average_precision(truth, [_boxes(SQUARE, FAR, scores=[0.9, 0.8])])
    assert behind.ap50 == pytest.approx(1.0), "behind the last box that is found it costs nothing"


def test_half_the_boxes_found_are_half_the_recalls() -> None:
    result = average_precision([_boxes(SQUARE, FAR)], [_boxes(SQUARE, scores=[0.5])])
    assert result.ap50 == pytest.approx(51 / 101)


def test_a_loose_box_counts_at_loose_thresholds_only() -> None:
    # IoU 0.8: six or seven of the ten thresholds .50 … .95; at .80 exactly it still counts.
    result = average_precision([_boxes(SQUARE)], [_boxes((0, 0, 10, 8), scores=[0.9])])
    assert (result.ap50, result.ap75) == (pytest.approx(1.0), pytest.approx(1.0))
    assert result.ap == pytest.approx(0.7)


def test_a_box_is_found_once() -> None:
    found = [_boxes(SQUARE, SQUARE, FAR, scores=[0.9, 0.8, 0.7])]
    result = average_precision([_boxes(SQUARE, FAR)], found)
    # recalls to .5 at precision 1, then the second box at 2 of 3
    assert result.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_classes_are_averaged_and_keep_to_themselves() -> None:
    truth = [_boxes(SQUARE, FAR, labels=[1, 2])]
    found = [_boxes(SQUARE, SQUARE, scores=[0.9, 0.9], labels=[1, 2])]
    result = average_precision(truth, found)
    assert (result.ap50, result.n_classes) == (pytest.approx(0.5), 2)


def test_a_detection_inside_a_crowd_counts_neither_way() -> None:
    truth = Boxes(np.array([SQUARE, (40, 40, 80, 80)]), np.array([1, 1]), crowd=np.array([False, True]))
    found = [_boxes(FAR, SQUARE, scores=[0.9, 0.8])]
    assert average_precision([truth], found).ap50 == pytest.approx(1.0)


def test_images_and_scores_must_fit() -> None:
    with pytest.raises(BadInput, match="2 images"):
        average_precision([_boxes(SQUARE)] * 2, [_boxes(scores=[])])
    with pytest.raises(BadInput, match="score for each"):
        average_precision([_boxes(SQUARE)], [_boxes(SQUARE)])
    with pytest.raises(BadInput, match="at least one box"):
        average_precision([_boxes()], [_boxes(scores=[])])


def test_a_detector_on_a_timm_backbone_trains_and_detects() -> None:
    try:
        torchvision_operators()
    except MissingExtra as error:
        pytest.skip(str(error))
    few = {"rpn_pre_nms_top_n_train": 100, "rpn_post_nms_top_n_train": 30, "rpn_pre_nms_top_n_test": 50}
    few |= {"rpn_post_nms_top_n_test": 20, "box_batch_size_per_image": 16, "box_score_thresh": 0.0}

    def detector() -> torch.nn.Module:
        torch.manual_seed(0)
        return build_detector(backbone_of("test_resnet"), 1, side=64, width=8, mean=[0.5] * 3, std=[0.5] * 3, **few)

    def picture(seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        top, left = np.random.default_rng(seed).integers(2, 30, 2)
        image = torch.zeros(3, 64, 64)
        image[:, top : top + 32, left : left + 32] = 1.0
        box = torch.tensor([[left, top, left + 32, top + 32]], dtype=torch.float32)
        return image, {"boxes": box, "labels": torch.tensor([1])}

    examples = [picture(seed) for seed in range(4)]
    batch = ([image for image, _ in examples], [target for _, target in examples])
    one, two = detector(), detector()
    steps = list(fit_detector(one, [[batch]] * 8, 1, lr=0.01, warmup_steps=2))
    assert [step.step for step in steps] == list(range(1, 9))
    assert steps[-1].metrics["loss"] < 0.9 * steps[0].metrics["loss"]
    again = list(fit_detector(two, [[batch]] * 8, 1, lr=0.01, warmup_steps=2))
    assert [step.metrics for step in again] == [step.metrics for step in steps], "seeded by step"
    found = detect(one, [image for image, _ in examples])
    assert len(found) == 4
    assert all(len(image.boxes) > 0 and (image.labels == 1).all() for image in found)
    assert all((image.boxes >= 0).all() and (image.boxes <= 64).all() for image in found)
    truth = [Boxes(target["boxes"].double().numpy(), np.array([1])) for _, target in examples]
    assert 0 <= average_precision(truth, found).ap50 <= 1
