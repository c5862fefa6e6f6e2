"""Singular vectors of a feature matrix that is never held: one float64 scatter matrix, streamed and merged over shards.

With F centred [N, D], the right singular vectors of F are the eigenvectors of FᵀF and its singular values their square
roots, so D² numbers are enough whatever N is. Partial sums are joined as in Chan, Golub and LeVeque (1979), which
does not cancel when the mean is large. KDEP, He et al., CVPR 2022, §3.2.

N samples, D channels, K components.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.domain.errors import BadInput


@dataclass
class FeatureMoments:
    """Count, mean and scatter Σ (f − mean)(f − mean)ᵀ of the features seen so far, in float64.

    Merging the moments of two shards gives the moments of both: `merge(a, b) == moments of a's and b's samples`.

    Shape:
        mean: [D].
        scatter: [D, D].
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> FeatureMoments:
        """Moments of no sample."""
        mean = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, mean, torch.zeros(width, width, dtype=torch.float64, device=device))

    @property
    def width(self) -> int:
        return int(self.mean.shape[0])

    def update(self, features: Tensor) -> None:
        """Add a batch of features [B, D], in place; memory O(D² + B·D).

        Raises:
            BadInput: on another width, or on a feature that is not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.width:
            raise BadInput("features", tuple(features.shape), f"expected [batch, {self.width}]")
        if not features.shape[0]:
            return
        batch = features.detach().to(self.mean.device, torch.float64)
        mean = batch.mean(0)
        if not bool(torch.isfinite(mean).all()):
            raise BadInput("features", "NaN or infinity", "expected finite teacher features")
        centred = batch - mean
        if centred.device.type == "cpu":
            # numpy sees XᵀX and computes one triangle only (syrk): half the work of a general product.
            rows = centred.numpy()
            scatter = torch.from_numpy(rows.T @ rows)
        else:
            scatter = centred.T @ centred
        self._join(int(batch.shape[0]), mean, scatter)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(shift, shift, alpha=self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """The moments of both shards' samples; symmetric up to rounding."""
        if other.width != self.width:
            raise BadInput("features", other.width, f"expected {self.width} channels as in the other shard")
        merged = FeatureMoments(self.count, self.mean.clone(), self.scatter.clone())
        if other.count:
            merged._join(other.count, other.mean, other.scatter)
        return merged

    def std(self) -> Tensor:
        """Standard deviation of each channel, with N − 1: [D]."""
        self._require_samples()
        return (self.scatter.diagonal() / (self.count - 1)).clamp_min(0).sqrt()

    def _require_samples(self) -> None:
        if self.count < 2:
            raise BadInput("features", self.count, "expected at least 2 samples")

    def save(self, path: Path) -> None:
        """Write the moments as safetensors; a reader sees the whole file or none."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            tensors = {"count": torch.tensor(self.count), "mean": self.mean.cpu(), "scatter": self.scatter.cpu()}
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> FeatureMoments:
        """The moments that `save` wrote."""
        tensors = load_file(path)
        return cls(int(tensors["count"]), tensors["mean"], tensors["scatter"])


@dataclass(frozen=True)
class SvdBasis:
    """The top right singular vectors of centred features; each vector's largest entry is positive.

    Shape:
        mean: [D].
        components: [D, K], orthonormal columns, by falling singular value.
        singular_values: [K].
        variance_share: the part of the total variance that the K components hold.
    """

    mean: Tensor
    components: Tensor
    singular_values: Tensor
    variance_share: float

    def project(self, features: Tensor) -> Tensor:
        """Centre features [N, D] and project them on the components: [N, K], in the features' dtype."""
        weight = self.components.to(features.device, features.dtype)
        return (features - self.mean.to(features.device, features.dtype)) @ weight


def svd_basis(moments: FeatureMoments, rank: int) -> SvdBasis:
    """The top `rank` right singular vectors from the moments.

    Raises:
        BadInput: when `rank` exceeds the number of channels, or fewer than 2 samples were seen.
    """
    if not 1 <= rank <= moments.width:
        raise BadInput("rank", rank, f"expected 1 to {moments.width}, the teacher's channels")
    moments._require_samples()
    eigenvalues, eigenvectors = torch.linalg.eigh(moments.scatter)
    eigenvalues = eigenvalues.flip(0).clamp_min(0)
    components = eigenvectors.flip(1)[:, :rank]
    largest = components.abs().argmax(0)
    components = components * components.gather(0, largest[None]).sign()
    total = float(eigenvalues.sum())
    share = float(eigenvalues[:rank].sum()) / total if total > 0 else 1.0
    return SvdBasis(moments.mean.clone(), components.contiguous(), eigenvalues[:rank].sqrt(), share)


def content_key(**content: Any) -> str:
    """A file name for what depends on exactly this content (weights' hash, fingerprint of the data…): 32 hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached_moments(
    folder: Path, key: str, width: int, features: Callable[[], Iterable[Tensor]], device: torch.device | str = "cpu"
) -> FeatureMoments:
    """The moments stored under `key`, else computed from the batches that `features()` yields, and stored."""
    path = folder / f"moments-{key}.safetensors"
    if path.exists():
        return FeatureMoments.load(path)
    moments = FeatureMoments.empty(width, device)
    for batch in features():
        moments.update(batch)
    folder.mkdir(parents=True, exist_ok=True)
    moments.save(path)
    return moments
