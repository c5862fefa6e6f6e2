"""What frozen models say about seeded views, computed once: a KL+DP step falls from three forward passes to one.

One memory-mapped file per (model, data set, view), named by a hash of all three: equal keys share the file, across jobs
too. A file appears under its name only when it is complete. N samples, V views, C outputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.domain.errors import BadInput
from backend.domain.progress import Progress
from workers.science.batch import Batch


class CachedOutputs:
    """Outputs of several frozen models on V views of N samples.

    Args:
        folder: Where the files are; made if missing.
        model_keys: Name in `Batch.outputs` (a teacher's, "frozen_student", "<teacher>/features") → hash of the model's
            weights and preprocessing, and of what is read from it.
        n_samples: N.
        views: V.
        data_key: Fingerprint of the data set, split and subset, in this order of samples.
        view_key: What fixes the views: augmentation, seed, size.
    """

    def __init__(
        self,
        folder: Path,
        model_keys: Mapping[str, str],
        *,
        n_samples: int,
        views: int,
        data_key: str,
        view_key: str,
    ) -> None:
        self.folder, self.model_keys = Path(folder), dict(model_keys)
        self.n_samples, self.views, self.data_key, self.view_key = n_samples, views, data_key, view_key
        self._open: dict[Path, NDArray[np.float32]] = {}

    def path(self, name: str, view: int) -> Path:
        """The file of one model's outputs on one view."""
        key = json.dumps([self.model_keys[name], self.data_key, self.n_samples, self.view_key, view])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.npy"

    def missing(self, view: int) -> list[str]:
        """Names of the models whose outputs on this view are still to be computed."""
        return [name for name in self.model_keys if not self.path(name, view).exists()]

    def fill(
        self,
        models: Mapping[str, Callable[[Tensor], Tensor]],
        view_batches: Callable[[int], Iterable[Batch]],
        *,
        device: torch.device | str = "cpu",
    ) -> Iterator[Progress]:
        """Compute what is missing, one view at a time; one Progress per batch, in samples of all views.

        Each batch is made once for all models. Modules run in eval mode and without gradients, and get their mode back.

        Args:
            models: Name → takes views [B, 3, H, W], returns outputs [B, C]; on `device` already.
            view_batches: View → batches that together have each sample once (`TensorBatches.view`).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        total = self.n_samples * self.views
        for view in range(self.views):
            names = self.missing(view)
            if not names:
                continue
            parts = {name: self.path(name, view).with_suffix(f".{uuid.uuid4().hex}.part") for name in names}
            try:
                done = view * self.n_samples
                arrays: dict[str, NDArray[np.float32]] = {}
                for batch in view_batches(view):
                    pixels, rows = batch.view.to(device), batch.indices.cpu().numpy()
                    for name in names:
                        outputs = _ask(models[name], pixels)
                        if name not in arrays:
                            shape = (self.n_samples, *outputs.shape[1:])
                            arrays[name] = np.lib.format.open_memmap(parts[name], "w+", np.float32, shape)
                        arrays[name][rows] = outputs.float().cpu().numpy()
                    done += len(rows)
                    yield Progress(step=done, total=total, unit="samples")
                if done != (view + 1) * self.n_samples:
                    raise BadInput("view_batches", done - view * self.n_samples, f"{self.n_samples} samples, each once")
                for name in names:
                    arrays[name].flush()  # type: ignore[attr-defined]
                    os.replace(parts[name], self.path(name, view))
            finally:
                for part in parts.values():
                    part.unlink(missing_ok=True)

    def read(self, view: int, indices: Tensor) -> dict[str, Tensor]:
        """Name → outputs [B, C] of the samples at `indices` in view `view`, as they were computed."""
        rows = indices.cpu().numpy()
        return {name: torch.from_numpy(self._array(name, view)[rows]) for name in self.model_keys}

    def _array(self, name: str, view: int) -> NDArray[np.float32]:
        path = self.path(name, view)
        if path not in self._open:
            self._open[path] = np.load(path, mmap_mode="r")
        return self._open[path]


@torch.no_grad()
def _ask(model: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    owner = getattr(model, "__self__", model)  # a bound method of a module: its features
    if not isinstance(owner, nn.Module):
        return model(pixels)
    modes = {module: module.training for module in owner.modules()}
    owner.eval()
    try:
        return model(pixels)
    finally:
        for module, mode in modes.items():
            module.training = mode
