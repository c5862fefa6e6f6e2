"""Building entries, describing them, and saving students that plain timm opens."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from backend.domain.catalog import Family, ModelSpec, Preprocessing
from backend.domain.errors import BadInput, NotFound
from backend.settings import Settings
from workers.inputs.models import build, hash_weights, register_model, resolve_preprocessing, save_student, wrap

TEN = {"num_classes": 10}


def spec(architecture: str = "test_resnet", **fields: Any) -> ModelSpec:
    return ModelSpec(name="m", architecture=architecture, **{"kwargs": TEN, **fields})


def test_an_entry_says_what_it_is() -> None:
    model = register_model(spec("test_vit", kwargs={"num_classes": 10, "img_size": 64}))
    assert (model.source, model.num_classes, model.family) == ("timm", 10, Family.TRANSFORMER)
    module = timm.create_model("test_vit", num_classes=10, img_size=64)
    assert model.param_count == sum(p.numel() for p in module.parameters())
    assert model.preprocessing is not None
    assert model.preprocessing.input_size == (3, 64, 64)
    assert model.label_space is None
    assert model.weights_hash == hash_weights(build(model))


def test_random_weights_are_drawn_with_the_seed_and_disturb_nobody() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one, same, other = (hash_weights(build(spec(init_seed=seed))) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(4), expected)
    assert one == same != other


def test_preprocessing_is_timms_unless_given() -> None:
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("convnext_tiny.fb_in1k").to_dict())
    found = resolve_preprocessing(spec("convnext_tiny.fb_in1k"))
    assert found == Preprocessing.model_validate({name: config[name] for name in Preprocessing.model_fields})
    given = resolve_preprocessing(
        spec("convnext_tiny.fb_in1k", mean=(0.5,) * 3, crop_pct=1.0, interpolation="bilinear")
    )
    assert (given.mean, given.crop_pct, given.interpolation, given.std) == ((0.5,) * 3, 1.0, "bilinear", found.std)
    assert resolve_preprocessing(spec(kwargs={"in_chans": 1})).input_size == (1, 160, 160)
    for wrong in ({"interpolation": "sharp"}, {"mean": (0.5, 0.5)}, {"std": (0.0,) * 3}, {"crop_mode": "round"}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            resolve_preprocessing(spec(**wrong))


def test_checkpoints_fit_key_by_key(tmp_path: Path) -> None:
    state = build(spec(init_seed=7)).state_dict()
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    model = register_model(spec(checkpoint=str(path)))
    assert model.weights_hash == hash_weights(build(spec(init_seed=7)))
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    assert register_model(spec(checkpoint=str(tmp_path / "w.pth"))).weights_hash == model.weights_hash

    wrong = {key: value for key, value in state.items() if key != "fc.bias"} | {"extra.weight": torch.zeros(2)}
    wrong["fc.weight"] = torch.zeros(3, wrong["fc.weight"].shape[1])
    save_file(wrong, path)
    with pytest.raises(BadInput) as error:
        register_model(spec(checkpoint=str(path)))
    for told in ("1 missing: fc.bias", "1 unexpected: extra.weight", "1 of another shape: fc.weight (3, "):
        assert told in error.value.message
    with pytest.raises(BadInput, match="existing file"):
        register_model(spec(checkpoint=str(tmp_path / "nowhere.pth")))
    with pytest.raises(BadInput, match="a path below"):
        register_model(spec(checkpoint=str(path)), Settings(data_roots=(tmp_path / "allowed",)))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"architecture": "resnet99"}, "resnet50"),
        ({"architecture": "resnet18.a7_in1k"}, "resnet18 has a1_in1k"),
        ({"kwargs": {"colour": 3}}, "unexpected keyword"),
        ({"architecture": "test_vit", "input_size": (3, 50, 50)}, "a size that the model takes"),
        ({"kwargs": {"num_classes": 1}}, "C of at least 2"),
        ({"label_space": "imagenet-1k"}, "a space of 10 classes"),
        ({"label_space": "imagenet-7k"}, "known are"),
        ({"architecture": "test_resnet", "pretrained": True, "checkpoint": __file__}, "either pretrained"),
    ],
)
def test_what_cannot_be_built_is_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises((BadInput, NotFound), match=told):
        register_model(spec(**fields))


def test_weights_that_cannot_be_downloaded_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr("workers.inputs.models.getproxies", dict)
    monkeypatch.setattr("workers.inputs.models.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(BadInput, match=r"cannot reach huggingface\.co"):
        register_model(spec("resnet18.a1_in1k", pretrained=True, kwargs={}))


def test_another_number_of_classes_replaces_the_head_after_loading(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(build(spec(init_seed=7)).state_dict(), path)
    model = register_model(spec(checkpoint=str(path)))
    module, again, old = build(model, num_classes=4), build(model, num_classes=4), build(model)
    assert module.num_classes == 4
    assert hash_weights(module) == hash_weights(again)
    assert torch.equal(module.conv1[0].weight, old.conv1[0].weight)
    assert module.fc.out_features == 4


@pytest.mark.parametrize(
    ("architecture", "kwargs", "more"),
    [
        ("test_vit", {"num_classes": 10, "img_size": 64}, {}),
        ("test_resnet", {"num_classes": 10, "in_chans": 1}, {"input_size": (1, 32, 32)}),
        ("mobilenetv2_035", {"num_classes": 10, "pad_type": "same"}, {"mean": (0.5,) * 3, "crop_pct": 1.0}),
    ],
)
def test_plain_timm_opens_a_saved_student(
    tmp_path: Path, architecture: str, kwargs: dict[str, Any], more: dict[str, Any]
) -> None:
    model = register_model(spec(architecture, kwargs=kwargs, **more))
    module = build(model, num_classes=12)
    weights, config = save_student(tmp_path / "student", module, model, class_names=[f"c{i}" for i in range(12)])
    assert model.preprocessing is not None
    view = torch.rand(2, *model.preprocessing.input_size)
    with torch.inference_mode():
        expected = module(view)
        opened = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
        assert torch.equal(opened(view), expected)
        loaded = timm.create_model(architecture, checkpoint_path=str(weights), **{**kwargs, "num_classes": 12}).eval()
        assert torch.equal(loaded(view), expected)
    resolved = timm.data.resolve_data_config(model=opened)
    assert tuple(resolved["mean"]) == model.preprocessing.mean
    assert resolved["crop_pct"] == model.preprocessing.crop_pct
    assert tuple(resolved["input_size"]) == model.preprocessing.input_size
    assert json.loads(config.read_text())["label_names"][11] == "c11"
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == ["config.json", "model.safetensors"]


def test_a_factory_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    fields = {"kwargs": {}, "input_size": (3, 32, 32), "crop_pct": 1.0}
    model = register_model(spec("examples.cifar_resnet:resnet20", **fields))
    assert (model.source, model.num_classes, model.family) == ("factory", 10, Family.UNKNOWN)
    assert model.param_count == 269_722
    module = build(model, num_classes=3)
    weights, _ = save_student(tmp_path, module, model)
    again = register_model(
        spec("examples.cifar_resnet:resnet20", **{**fields, "kwargs": {"num_classes": 3}}, checkpoint=str(weights))
    )
    assert again.weights_hash == hash_weights(module)


def test_behind_its_own_preprocessing() -> None:
    model = register_model(spec(input_size=(3, 32, 32)))
    assert model.preprocessing is not None
    wrapped = wrap(build(model), model.preprocessing)
    view = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = build(model)((view - 0.5) / 0.5)
        torch.testing.assert_close(wrapped(view), expected)
