"""What mixes information across positions in each timm architecture: convolution, attention, an MLP, or several.

By timm's module, with exceptions by name for modules that hold several kinds. CNN: only convolution (gates and channel
attention do not count, they mix no positions). Transformer: attention mixes, also within windows, and convolution only
embeds patches. Hybrid: both do real work (convolutional stages or tokens mixed by convolution in the blocks, and
attention; state-space and recurrent mixers beside convolution too). MLP: positions are mixed by a matrix of weights.
"""

from __future__ import annotations

import fnmatch

from backend.domain.catalog import Family

_MODULES: dict[Family, tuple[str, ...]] = {
    Family.CNN: (
        "byobnet", "convmixer", "convnext", "cspnet", "cspnext", "densenet", "dla", "dpn", "efficientnet",
        "fasternet", "focalnet", "ghostnet", "hardcorenas", "hgnet", "hrnet", "inception_next", "inception_resnet_v2",
        "inception_v3", "inception_v4", "lcnetv2", "mambaout", "mobilenetv3", "nasnet", "nfnet", "pnasnet", "rdnet",
        "regnet", "repghost", "repvit", "res2net", "resnest", "resnet", "resnetv2", "rexnet", "selecsls", "senet",
        "sknet", "starnet", "tresnet", "vgg", "vovnet", "xception", "xception_aligned",
    ),
    Family.TRANSFORMER: (
        "beit", "cait", "convit", "crossvit", "davit", "deepseek_vit", "deit", "eva", "gcvit", "gemma4_vit", "hiera",
        "hieradet_sam2", "mvitv2", "naflexvit", "nest", "pit", "pvt_v2", "qwen3_vit", "swin_transformer",
        "swin_transformer_v2", "swin_transformer_v2_cr", "tnt", "twins", "vision_transformer",
        "vision_transformer_relpos", "vision_transformer_sam", "volo", "xcit",
    ),
    Family.MLP: ("mlp_mixer",),
    Family.HYBRID: (
        "byoanet", "coat", "cpubone", "csatv2", "edgenext", "efficientformer", "efficientformer_v2", "efficientvim",
        "efficientvit_mit", "efficientvit_msra", "fastvit", "iformer", "levit", "lowformer", "maxxvit",
        "metaformer", "mobilenetv5", "mobilevit", "nextvit", "sequencer", "shvit", "swiftformer", "tiny_vit",
        "visformer", "vision_transformer_hybrid", "vitamin",
    ),
}  # fmt: skip

# Architectures that are not what most of their module is: (module, pattern of names, family).
_EXCEPTIONS: tuple[tuple[str, str, Family], ...] = (
    # FastViT T8 to S12 mix tokens by convolution alone; the SA, MA and MCi variants end in attention.
    ("fastvit", "fastvit_t*", Family.CNN),
    ("fastvit", "fastvit_s[0-9]*", Family.CNN),
    # ConvFormer mixes by convolution, PoolFormer by pooling; CAFormer by convolution, then attention.
    ("metaformer", "convformer_*", Family.CNN),
    ("metaformer", "poolformer*", Family.CNN),
    ("mobilenetv3", "mobilenetv4_hybrid_*", Family.HYBRID),
)

_FAMILY_OF_MODULE = {module: family for family, modules in _MODULES.items() for module in modules}


def family(architecture: str) -> Family:
    """The family of a timm architecture (a tag after a dot is ignored); unknown for names that timm does not have."""
    from timm.models import model_entrypoint
    from timm.models._registry import is_model

    name = architecture.split(".")[0]
    if not is_model(name):
        return Family.UNKNOWN
    module = model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    for where, pattern, found in _EXCEPTIONS:
        if where == module and fnmatch.fnmatchcase(name, pattern):
            return found
    return _FAMILY_OF_MODULE.get(module, Family.UNKNOWN)
