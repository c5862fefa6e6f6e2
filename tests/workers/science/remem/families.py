"""Small models of every supported family, with parameters that hide nothing."""

import timm
import torch

TINY = {"img_size": 32, "num_classes": 5}
VIT = {**TINY, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
FOLDABLE = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit_layer_scale": ("vit_small_patch14_dinov2", {**VIT, "init_values": 0.3}),
    "vit_average_pool": ("vit_base_patch16_224", {**VIT, "global_pool": "avg"}),
    "vit_registers": ("vit_small_patch14_reg4_dinov2", VIT),
    "vit_map_pool": ("vit_base_patch16_siglip_224", VIT),
    "deit": ("deit_tiny_patch16_224", VIT),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "deit3": ("deit3_small_patch16_224", VIT),
    "beit": ("beit_base_patch16_224", {**VIT, "init_values": 0.3}),
    "beit_no_scale": ("beit_base_patch16_224", {**VIT, "init_values": 0.0}),
    "beitv2": ("beitv2_base_patch16_224", {**VIT, "init_values": 0.3}),
    "eva": ("eva_giant_patch14_224", {**VIT, "mlp_ratio": 2.0}),
    "eva02": ("eva02_tiny_patch14_224", {**VIT, "mlp_ratio": 2.0}),
    "eva02_large": ("eva02_base_patch14_448", {**VIT, "mlp_ratio": 2.0}),
    "cait": ("cait_xxs24_224", {**VIT, "init_values": 0.3}),
    "relpos": ("vit_relpos_small_patch16_224", VIT),
}
NOT_FOLDABLE = {
    "xcit": (
        "xcit_nano_12_p16_224",
        {**TINY, "embed_dim": 32, "depth": 3, "num_heads": 2, "cls_attn_layers": 1, "eta": 0.5},
    )
}


def build(family="vit"):
    name, options = {**FOLDABLE, **NOT_FOLDABLE}[family]
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():  # zero-initialised biases and tokens would hide what folding must scale
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(n=2, dtype=torch.float32):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=dtype)


def without_epsilon(model):
    for module in model.modules():
        if isinstance(getattr(module, "eps", None), float):
            module.eps = 0.0
    return model


def trained(model):
    """Noise on LoRA's and adapters' parameters, as if they had learnt something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_" in name or "adapter" in name):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
