"""A device string says exactly which devices; everything else is refused with what would be right."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from backend.domain.device_choice import Device, DeviceChoice, Devices, one_of, read_device
from backend.domain.errors import BadInput
from backend.domain.specs import parse_spec
from backend.queue import device_for, queue_for


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("auto", DeviceChoice("auto")),
        ("cpu", DeviceChoice("cpu")),
        ("cpu:1", DeviceChoice("cpu")),
        ("cpu:4", DeviceChoice("cpu", processes=4)),
        ("cuda", DeviceChoice("cuda")),
        ("cuda:3", DeviceChoice("cuda", (3,))),
        ("cuda:2,0", DeviceChoice("cuda", (2, 0))),
        ("cuda:all", DeviceChoice("cuda", every=True)),
    ],
)
def test_a_device_string_is_read(text, choice):
    assert read_device(text) == choice
    assert choice.several == (text in ("cpu:4", "cuda:2,0", "cuda:all"))
    assert TypeAdapter(Devices).validate_python(text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "cuda:0,1"),
        ("cuda:0,0", "twice"),
        ("cuda:0,", "no device"),
        ("cuda:-1", "no device"),
        ("cuda:1000", "no device"),
        ("cpu:0", "from 1"),
        ("cpu:99", "from 1 to 64"),
        ("cpu:all", "no device"),
        ("auto:2", "no device"),
        ("cuda:0,1\n", "no device"),
        ("", "no device"),
    ],
)
def test_what_is_no_device_is_refused_with_what_is(text, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Devices).validate_python(text)


def test_kinds_that_use_one_device_say_so():
    with pytest.raises(ValidationError, match="several devices, which transfer and finetune alone"):
        TypeAdapter(Device).validate_python("cuda:0,1")
    with pytest.raises(BadInput, match=r"spec.device.*transfer and finetune alone"):
        parse_spec("scan", {"models": ["a"], "dataset": "d", "device": "cpu:2"})


@pytest.mark.parametrize("method", ["cd", "crd"])
def test_methods_that_compare_samples_refuse_several_devices(method):
    spec = {"teachers": ["a"], "student": "b", "dataset": "d", "method": method}
    with pytest.raises(BadInput, match=f"{method} compares the samples of a batch"):
        parse_spec("transfer", {**spec, "device": "cuda:all"})
    assert parse_spec("transfer", {**spec, "device": "cuda:1"}).device == "cuda:1"


def test_several_gpus_are_one_word_in_the_store_and_the_cpu_has_its_own_queue():
    assert [device_for({"device": one}) for one in ("cuda:0,1,2,3", "cuda:all", "cpu:2", "cuda:1", "auto")] == [
        "cuda:set",
        "cuda:set",
        "cpu",
        "cuda:1",
        "auto",
    ]
    assert [queue_for("transfer", {"device": one}) for one in ("cuda:0,1", "cpu:2", "cpu")] == ["gpu", "cpu", "cpu"]


def test_jobs_beside_a_training_use_one_device_of_its_family():
    assert [one_of(one) for one in ("cuda:0,1", "cuda:all", "cpu:2", "cuda:1", "auto")] == [
        "cuda",
        "cuda",
        "cpu",
        "cuda:1",
        "auto",
    ]
