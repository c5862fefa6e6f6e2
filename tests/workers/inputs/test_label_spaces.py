"""timm's class lists against the counts the science rests on, and the space of every pretrained tag."""

import numpy as np
import pytest

from backend.domain.errors import BadInput
from backend.domain.label_spaces import LABEL_SPACES, comparable, label_space, own_space
from workers.inputs.label_spaces import KEYED_SPACES, class_keys, class_names, head_outputs, head_space, keys_for

ONE_K = label_space("imagenet-1k")


@pytest.mark.parametrize(
    ("head", "expressed"),
    [
        ("imagenet-12k", 993),
        ("imagenet-21k-miil", 991),
        ("imagenet-21k-goog", 999),
        ("imagenet-22k", 999),
        ("imagenet-22k-ms", 1000),
    ],
)
def test_imagenet_classes_in_timms_other_heads(head, expressed):
    space = label_space(head)
    outputs = head_outputs(space, ONE_K)
    assert sum(output >= 0 for output in outputs) == expressed
    keys, own = class_keys(head), class_keys("imagenet-1k")
    assert all(keys[output] == own[c] for c, output in enumerate(outputs) if output >= 0)
    found = comparable(space, ONE_K, dataset=ONE_K, labels=np.repeat(np.arange(1000), 50), keys=keys_for(space, ONE_K))
    assert (found.n_classes, found.n_samples) == (expressed, expressed * 50)


def test_heads_of_almost_one_size_are_in_different_orders():
    assert class_keys("imagenet-22k-ms")[:1000] == class_keys("imagenet-1k")
    assert class_keys("imagenet-22k")[:1000] != class_keys("imagenet-1k")
    goog = head_outputs(label_space("imagenet-21k-goog"), label_space("imagenet-22k"))
    assert min(goog) >= 0
    assert goog != list(range(21841))


def test_every_keyed_space_is_registered_with_its_size():
    for name in KEYED_SPACES:
        assert len(set(class_keys(name))) == LABEL_SPACES[name].n_classes


def test_names_of_the_subsets():
    assert class_names(label_space("imagenet-r"))[:2] == [
        "goldfish, Carassius auratus",
        "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    ]
    assert len(class_names(label_space("imagenet-a"))) == 200
    assert class_names(own_space("pets", ["cat", "dog"])) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("model", "num_classes", "expected"),
    [
        ("resnet18.tv_in1k", 1000, "imagenet-1k"),
        ("swin_base_patch4_window7_224.ms_in22k_ft_in1k", 1000, "imagenet-1k"),
        ("swin_base_patch4_window7_224.ms_in22k", 21841, "imagenet-22k"),
        ("focalnet_large_fl3.ms_in22k", 21842, "imagenet-22k-ms"),
        ("vit_base_patch16_224.augreg_in21k", 21843, "imagenet-21k-goog"),
        ("mixer_b16_224.miil_in21k", 11221, "imagenet-21k-miil"),
        ("convnext_nano.in12k", 11821, "imagenet-12k"),
        ("vit_base_patch16_clip_224.openai_ft_in12k_in1k", 1000, "imagenet-1k"),
        ("vit_base_patch16_clip_224.openai", 512, None),
        ("resnet50_clip.openai", 1024, None),
        ("resnet50.fb_dino", 1000, None),
        ("vit_small_patch14_dinov2.lvd142m", 0, None),
        ("my_net", 1000, None),
    ],
)
def test_the_tag_names_the_space_and_the_number_never_does(model, num_classes, expected):
    space = head_space(model, num_classes)
    assert (space.name if space else None) == expected


def test_a_tag_and_a_size_that_contradict_are_refused():
    with pytest.raises(BadInput, match="in1k"):
        head_space("resnet18.tv_in1k", 10)


def test_overrides_come_first_and_are_checked():
    overrides = {"my_net": "imagenet-22k", "resnet50.fb_dino": ONE_K}
    assert head_space("my_net", 21841, overrides).name == "imagenet-22k"
    assert head_space("resnet50.fb_dino", 1000, overrides) is ONE_K
    with pytest.raises(BadInput, match="1000 outputs"):
        head_space("my_net", 1000, overrides)


def test_every_pretrained_head_of_timm_is_consistent_with_its_tag():
    import timm

    found = {}
    for name in timm.list_models(pretrained=True, include_tags=True):
        space = head_space(name, timm.get_pretrained_cfg(name).num_classes)
        found[space.name if space else None] = found.get(space.name if space else None, 0) + 1
    assert found["imagenet-1k"] > 1000
    assert set(found) == {None, *KEYED_SPACES}


def test_spaces_without_a_list_in_timm_are_refused():
    with pytest.raises(BadInput, match="timm lists"):
        class_keys("imagenet-real")
