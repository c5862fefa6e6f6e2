"""Expertness of MLP blocks: ReMem, arXiv:2506.23041, Def. 5.3 and Prop. 5.4; co-clustering: Dhillon, KDD 2001.

E activations of an MLP block (the input of fc2), d neurons × N inputs; an input's activations are its tokens
concatenated, so E² stands for their sum of squares. k experts. The bipartite graph of neurons and inputs with edge
weights E² is co-clustered into k parts; expertness e = energy inside the parts / all energy, in [0, 1].
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import SpectralCoclustering
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from backend.domain.errors import BadInput
from backend.domain.progress import Progress
from backend.domain.remem_results import BlockExpertness, CoCluster, ExpertnessResult
from workers.science.information.features import Views
from workers.science.preprocessed import Preprocessed
from workers.science.remem.blocks import architecture

_OVERSAMPLES = 20


@dataclass
class BlockEnergy:
    """What one pass keeps of an MLP block: energies [N, d] float32, and how its activations are distributed."""

    name: str
    energy: Tensor
    activations: int = 0
    positive: int = 0
    nonzero: int = 0


@dataclass(frozen=True)
class CoClusters:
    """The part of each neuron [d] and input [N]; −1 for dead ones (no energy at all)."""

    neurons: NDArray[np.int64]
    inputs: NDArray[np.int64]
    n_clusters: int

    def sizes(self) -> list[tuple[int, int]]:
        """Neurons and inputs of each part."""
        counts = (np.bincount(part[part >= 0], minlength=self.n_clusters) for part in (self.neurons, self.inputs))
        return [(int(neurons), int(inputs)) for neurons, inputs in zip(*counts, strict=True)]


def mlp_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and last layer (fc2) of every MLP block of a timm model, bottom first.

    Raises:
        BadInput: the model has no MLP blocks; names it.
    """
    inner = model.model if isinstance(model, Preprocessed) else model
    found = []
    for name, module in inner.named_modules():
        last, first = getattr(module, "fc2", None), getattr(module, "fc1", getattr(module, "fc1_g", None))
        pointwise = isinstance(last, nn.Linear) or (isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1))
        is_mlp = name.rsplit(".", 1)[-1] == "mlp" or type(module).__name__.endswith(("Mlp", "SwiGLU"))
        if pointwise and isinstance(first, nn.Module) and is_mlp:
            assert isinstance(last, nn.Module)
            found.append((name, last))
    if not found:
        raise BadInput("model", architecture(inner), "a model with MLP blocks (fc1, activation, fc2)")
    return found


@contextmanager
def recorded_energies(model: nn.Module, n_images: int) -> Iterator[list[BlockEnergy]]:
    """Inside, every forward of the model fills the next rows of the energies; memory is d × N, whatever the tokens.

    Each forward must see images that no earlier one saw; the first axis of what fc2 receives must be the images.
    """
    layers = mlp_layers(model)
    blocks = [BlockEnergy(name, torch.zeros(n_images, _inputs_of(layer))) for name, layer in layers]
    filled = [0] * len(layers)

    def record(i: int, layer: nn.Module, activations: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            activations = activations.movedim(1, -1)
        tokens = activations.detach().flatten(1, -2)
        energy = torch.linalg.vector_norm(tokens, dim=1, dtype=torch.float32).square()
        block, rows = blocks[i], slice(filled[i], filled[i] + len(energy))
        if rows.stop > n_images:
            raise BadInput("images", rows.stop, f"at most the {n_images} announced")
        block.energy[rows] = energy.cpu()
        block.activations += tokens.numel()
        block.positive += int(torch.count_nonzero(tokens > 0))
        block.nonzero += int(torch.count_nonzero(tokens))
        filled[i] = rows.stop

    hooks = [
        layer.register_forward_pre_hook(lambda module, args, i=i: record(i, module, args[0]))
        for i, (_, layer) in enumerate(layers)
    ]
    try:
        yield blocks
    finally:
        for hook in hooks:
            hook.remove()


def _inputs_of(layer: nn.Module) -> int:
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    return layer.weight.shape[1]


def cocluster(energy: NDArray[np.floating], n_clusters: int, *, seed: int = 0) -> CoClusters:
    """Spectral co-clusters of a graph with edge weights `energy` ≥ 0, [d, N]; dead rows and columns get −1.

    Raises:
        BadInput: fewer live neurons or inputs than clusters.
    """
    if n_clusters < 1:
        raise BadInput("clusters", n_clusters, "at least 1")
    rows, columns = energy.sum(axis=1) > 0, energy.sum(axis=0) > 0
    live = int(rows.sum()), int(columns.sum())
    if min(live) < n_clusters:
        raise BadInput("clusters", n_clusters, f"at most the {live[0]} neurons and {live[1]} inputs that are not dead")
    neurons, inputs = np.full(len(rows), -1, dtype=np.int64), np.full(len(columns), -1, dtype=np.int64)
    if n_clusters == 1:
        neurons[rows], inputs[columns] = 0, 0
        return CoClusters(neurons, inputs, 1)
    spectral = SpectralCoclustering(
        n_clusters=n_clusters,
        svd_method="randomized",
        n_svd_vecs=_OVERSAMPLES,
        n_init=10 if n_clusters <= 100 else 3,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters: counted below
        spectral.fit(np.ascontiguousarray(energy[np.ix_(rows, columns)], dtype=np.float64))
    neurons[rows], inputs[columns] = spectral.row_labels_, spectral.column_labels_
    return CoClusters(neurons, inputs, n_clusters)


def energy_inside(energy: NDArray[np.floating], clusters: CoClusters) -> float:
    """e: the share of the energy between neurons and inputs of the same part; 0 for a graph without energy."""
    total = float(energy.sum(dtype=np.float64))
    if total == 0:
        return 0.0
    inside = 0.0
    for part in range(clusters.n_clusters):
        rows, columns = clusters.neurons == part, clusters.inputs == part
        inside += float(energy[np.ix_(rows, columns)].sum(dtype=np.float64))
    return min(1.0, inside / total)


def information_bound_bits(sizes: list[int], bits: int, shares: list[float] | None = None) -> float:
    """Prop. 5.4: log₂ M + Σ_z |S_z| b, for M experts of |S_z| neurons with b bits each.

    With `shares`, the part of the inputs each expert serves, the expectation log₂ M + Σ_z p_z |S_z| b.
    """
    if not sizes:
        return 0.0
    weights = shares if shares is not None else [1.0] * len(sizes)
    return math.log2(len(sizes)) + bits * math.fsum(size * p for size, p in zip(sizes, weights, strict=True))


def block_expertness(block: BlockEnergy, index: int, clusters: CoClusters, *, bits: int = 32) -> BlockExpertness:
    """What co-clusters say of one block. `expertness` is None when fewer than k parts are non-empty."""
    energy = block.energy.numpy().T
    n_clusters = clusters.n_clusters
    sizes = clusters.sizes()
    nonempty = [(neurons, inputs) for neurons, inputs in sizes if neurons + inputs > 0]
    live_inputs = sum(inputs for _, inputs in sizes)
    neurons_of = [neurons for neurons, _ in nonempty]
    return BlockExpertness(
        block=index,
        name=block.name,
        expertness=energy_inside(energy, clusters) if len(nonempty) == n_clusters else None,
        n_clusters=n_clusters,
        nonempty_clusters=len(nonempty),
        complete_clusters=sum(neurons > 0 and inputs > 0 for neurons, inputs in sizes),
        cluster_sizes=tuple(CoCluster(neurons=neurons, inputs=inputs) for neurons, inputs in sizes),
        n_neurons=energy.shape[0],
        n_inputs=energy.shape[1],
        dead_neurons=int((clusters.neurons < 0).sum()),
        dead_inputs=int((clusters.inputs < 0).sum()),
        sparsity=1 - block.positive / max(1, block.activations),
        zero_share=1 - block.nonzero / max(1, block.activations),
        bound_bits=information_bound_bits(neurons_of, bits),
        expected_bound_bits=information_bound_bits(neurons_of, bits, [i / live_inputs for _, i in nonempty]),
    )


@torch.no_grad()
def measure_expertness(
    model: nn.Module,
    views: Views,
    n_images: int,
    n_clusters: int,
    *,
    name: str,
    data: str,
    batch_size: int = 64,
    seed: int = 0,
    bits: int = 32,
    device: torch.device | str = "cpu",
) -> Generator[Progress, None, ExpertnessResult]:
    """Expertness of every MLP block from one pass over the images; returns the record.

    Args:
        model: Takes what `views` gives (a `Preprocessed` model, for one); put into eval mode.
        views: Images by position.
        n_clusters: k, the number of classes.
    """
    model.eval().to(device)
    total = n_images + len(mlp_layers(model))
    with recorded_energies(model, n_images) as energies:
        for start in range(0, n_images, batch_size):
            positions = torch.arange(start, min(start + batch_size, n_images))
            model(views(positions).to(device))
            yield Progress(step=start + len(positions), total=total, unit="images and blocks")
    blocks = []
    for i, energy in enumerate(energies):
        clusters = cocluster(energy.energy.numpy().T, n_clusters, seed=seed)
        blocks.append(block_expertness(energy, i, clusters, bits=bits))
        message = f"co-clustered {energy.name}"
        yield Progress(step=n_images + i + 1, total=total, unit="images and blocks", message=message)
    return ExpertnessResult(
        model=name, data=data, n_images=n_images, n_clusters=n_clusters, seed=seed, blocks=tuple(blocks)
    )
