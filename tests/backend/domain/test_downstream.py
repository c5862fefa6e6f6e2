"""Downstream sets as they are asked for: short forms of the command line, and what cannot be."""

import pytest
from pydantic import ValidationError

from backend.domain.downstream import DownstreamParams, DownstreamSource
from backend.domain.kdep import KdepSpec


def test_a_source_is_a_name_or_a_task_with_its_folder() -> None:
    named = DownstreamSource.model_validate("birds")
    assert (named.dataset, named.task, named.location, named.metric) == ("birds", "classification", None, "top1")
    masks = DownstreamSource.model_validate("segmentation:data/my streets/")
    assert (masks.dataset, masks.task, masks.metric) == ("my-streets", "segmentation", "miou")
    assert masks.location == "data/my streets/"
    boxes = DownstreamSource.model_validate({"task": "detection", "location": "/d/voc", "metric": "ap50"})
    assert (boxes.dataset, boxes.metric) == ("voc", "ap50")
    assert DownstreamSource.model_validate(masks.model_dump(mode="json")) == masks


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "dataset"),
        ("counting:folder", "task"),
        ({"dataset": "a", "task": "segmentation"}, "takes a location"),
        ({"dataset": "a", "location": "folder"}, "no location"),
        ({"dataset": "a", "metric": "miou"}, "judged by top1 or mean_per_class"),
        ({"task": "detection", "location": "f", "metric": "top1"}, "judged by ap or ap50 or ap75"),
        ({"task": "detection", "location": "f", "zero_ignored": True}, "of segmentation alone"),
        (7, "dictionary"),
    ],
)
def test_a_source_that_cannot_be_is_refused(source: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DownstreamSource.model_validate(source)


def test_parameters_take_scalars_of_the_command_line() -> None:
    found = DownstreamParams.model_validate({"lrs": "0.1,0.03", "seeds": 4})
    assert (found.lrs, found.seeds) == ((0.1, 0.03), (0, 1, 2, 3))
    assert DownstreamParams.model_validate({"lr": 0.5, "seeds": "7,8,9"}).model_dump() == {
        **DownstreamParams().model_dump(),
        "lrs": (0.5,),
        "seeds": (7, 8, 9),
    }
    assert DownstreamParams.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.1, "lrs": [0.1]}, "either lr or lrs"),
        ({"lrs": "0.1;0.2"}, "joined by commas"),
        ({"lrs": "0.1,0.1"}, "different learning rates"),
        ({"lrs": 0}, "above 0"),
        ({"seeds": 2}, "at least 3"),
        ({"seeds": 10**9}, "at most 100"),
        ({"seeds": True}, "seeds"),
        ({"size": 8}, "size"),
    ],
)
def test_parameters_that_cannot_be_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DownstreamParams.model_validate(values)


def test_two_sources_of_one_name_are_refused() -> None:
    spec = {"student": "s", "dataset": "d", "params": {"method": "none"}}
    with pytest.raises(ValidationError, match="named twice"):
        KdepSpec.model_validate({**spec, "downstream": ["birds", "segmentation:data/birds"]})
