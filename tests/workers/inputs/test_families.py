"""Every timm architecture has a family, and the well-known ones the right one."""

import pytest
import timm
from timm.models import _registry

from backend.domain.catalog import Family
from workers.inputs import families
from workers.inputs.families import family


def test_every_architecture_has_a_family() -> None:
    assert [name for name in timm.list_models() if family(name) is Family.UNKNOWN] == []


def test_the_table_names_each_module_once_and_none_that_is_gone() -> None:
    listed = [module for modules in families._MODULES.values() for module in modules]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(_registry._module_to_models)
    for module, pattern, _ in families._EXCEPTIONS:
        assert timm.list_models(pattern, module=module), pattern


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("resnet50.a1_in1k vgg16 convnext_tiny efficientnet_b0 mobilenetv3_large_100 convformer_s18 repvit_m1", "cnn"),
        (
            "vit_base_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224 beit_base_patch16_224",
            "transformer",
        ),
        ("mixer_b16_224 gmlp_s16_224 resmlp_12_224", "mlp"),
        ("coatnet_0_224 maxvit_tiny_tf_224 mobilevit_s caformer_s18 vit_small_r26_s32_224 levit_128", "hybrid"),
        ("mobilenetv4_hybrid_medium fastvit_sa12 botnet26t_256", "hybrid"),
        ("mobilenetv4_conv_small fastvit_t8 fastvit_s12 poolformer_s12", "cnn"),
        ("nonesuch my_net", "unknown"),
    ],
)
def test_known_families(names: str, expected: str) -> None:
    assert {name: family(name).value for name in names.split()} == dict.fromkeys(names.split(), expected)
