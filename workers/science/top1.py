"""The class a model names for each image: what transfers are counted by.  N samples, C classes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.domain.errors import BadInput
from workers.science.augment import as_images


class Pixels(Protocol):
    """N images that can be asked for by slices: a tensor [N, 3, H, W], or a canvas that decodes on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: slice, /) -> Tensor: ...


@torch.inference_mode()
def predict_top1(
    model: nn.Module, pixels: Pixels, *, batch_size: int = 256, device: torch.device | str = "cpu"
) -> NDArray[np.int64]:
    """Top-1 class of each image, [N]; the model runs in eval mode and gets its modes back.

    Args:
        model: Takes views [B, 3, H, W] in [0, 1] (`Preprocessed`).

    Raises:
        BadInput: NaN or infinite logits, which have no largest.
    """
    modes = {module: module.training for module in model.modules()}
    model.to(device).eval()
    try:
        parts = []
        for start in range(0, len(pixels), batch_size):
            logits = model(as_images(pixels[start : start + batch_size].to(device)))
            if not bool(torch.isfinite(logits).all()):
                raise BadInput("model", "NaN or infinite logits", f"finite logits (samples from {start} on)")
            parts.append(logits.argmax(dim=1).cpu().numpy())
        return np.concatenate(parts).astype(np.int64)
    finally:
        for module, mode in modes.items():
            module.training = mode
