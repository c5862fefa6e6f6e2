"""What may be compared with what, and the records' bounds."""

import pytest
from pydantic import ValidationError

from backend.domain.errors import BadInput
from backend.domain.remem_results import InformationResult, comparable, require_comparable


def information(**changes):
    defaults = {
        "model": "vit",
        "data": "cifar10/test",
        "loss_nats": 0.6,
        "floor_nats": 0.5,
        "excess_nats": 0.1,
        "feature_width": 192,
        "feature_grid": (14, 14),
        "image_size": (224, 224),
        "n_images": 100,
        "n_heldout": 50,
        "updates": 2000,
        "batch_size": 64,
    }
    return InformationResult(**{**defaults, **changes})


def test_the_same_conditions_are_comparable_whatever_was_found():
    other = information(model="deit", loss_nats=0.7, excess_nats=0.2, seed=3, cached=False)
    assert comparable(information(), other)
    require_comparable([information(), other])
    require_comparable([])


@pytest.mark.parametrize(
    "change",
    [
        {"data": "digits/test"},
        {"feature_width": 384},
        {"feature_grid": (7, 7)},
        {"image_size": (384, 384)},
        {"n_images": 99},
        {"n_heldout": 49},
        {"updates": 1000},
        {"batch_size": 32},
        {"lr": 1e-4},
        {"weight_decay": 0.0},
    ],
)
def test_other_conditions_are_refused_by_name(change):
    other = information(model="odd", **change)
    assert not comparable(information(), other)
    with pytest.raises(BadInput, match="odd") as error:
        require_comparable([information(), other])
    assert next(iter(change)) in str(error.value)


@pytest.mark.parametrize("change", [{"excess_nats": -0.1}, {"loss_nats": float("nan")}, {"n_images": 0}])
def test_bounds(change):
    with pytest.raises(ValidationError):
        information(**change)
