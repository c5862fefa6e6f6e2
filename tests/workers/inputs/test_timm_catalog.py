"""timm's tags and results files."""

from pathlib import Path

import pytest
import timm

from backend.domain.catalog import Family
from backend.domain.errors import BadInput
from workers.inputs.timm_catalog import describe_tags, pretrained_tags, read_results, results_name


def test_every_tag_is_described_without_building_it() -> None:
    tags = pretrained_tags()
    assert len(tags) == len(timm.list_pretrained()) > 1500
    models = {model.name: model for model in describe_tags(tags)}
    assert len(models) == len(tags)
    assert all(model.preprocessing is not None and model.family is not Family.UNKNOWN for model in models.values())
    resnet = models["resnet50.a1_in1k"]
    assert (resnet.num_classes, resnet.label_space, resnet.pretrained) == (1000, "imagenet-1k", True)
    assert models["convnext_tiny.fb_in22k"].label_space == "imagenet-22k"
    assert models["vit_small_patch14_dinov2.lvd142m"].num_classes is None
    with pytest.raises(BadInput, match="matches some"):
        pretrained_tags("nonesuch*")


def test_results_give_accuracies_and_parameters(tmp_path: Path) -> None:
    path = tmp_path / "results-imagenet-real.csv"
    path.write_text(
        "model,img_size,top1,param_count\n"
        'eva_giant_patch14_336.clip_ft_in1k,336,91.078,"1,013.01"\n'
        "resnet18.a1_in1k,288,80.5,11.69\nresnet18.a1_in1k,224,78.25,11.69\n"
    )
    assert results_name(path) == "imagenet-real"
    rows = {"imagenet-real": read_results(path)}
    eva, resnet = describe_tags(["eva_giant_patch14_336.clip_ft_in1k", "resnet18.a1_in1k"], rows)
    assert eva.param_count == 1_013_010_000
    assert eva.reported_accuracy == {"imagenet-real": pytest.approx(0.91078)}
    assert resnet.reported_accuracy == {"imagenet-real": 0.7825}  # at its own input size


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n1,2\n", "columns model"),
        ("model,top1\nx,many\n", "line 2"),
        ("model,top1\nx,130\n", "percentage"),
        ("", "columns"),
    ],
)
def test_bad_results_are_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=told):
        read_results(path)
