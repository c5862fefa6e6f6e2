"""Expertness: exact on planted structures, one streaming pass over a real model, the law of its bounds."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from backend.domain.errors import BadInput
from workers.science.expertness import (
    BlockEnergy,
    CoClusters,
    block_expertness,
    cocluster,
    energy_inside,
    information_bound_bits,
    measure_expertness,
    mlp_layers,
    recorded_energies,
)


def planted(k, seed=0, background=0.0):
    """Activations of k blocks of random sizes on the diagonal, rows and columns permuted."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(2, 7, k), rng.integers(2, 7, k)
    activations = np.full((rows.sum(), columns.sum()), background)
    for i in range(k):
        r, c = rows[:i].sum(), columns[:i].sum()
        activations[r : r + rows[i], c : c + columns[i]] = rng.uniform(0.5, 1.5, (rows[i], columns[i]))
    return activations[np.ix_(rng.permutation(rows.sum()), rng.permutation(columns.sum()))]


@pytest.mark.parametrize("k", [2, 3, 5, 8, 16, 32])
def test_block_diagonal_is_one(k):
    energy = planted(k, seed=k) ** 2
    clusters = cocluster(energy, k)
    assert energy_inside(energy, clusters) == pytest.approx(1.0, abs=1e-12)
    assert all(neurons >= 2 and inputs >= 2 for neurons, inputs in clusters.sizes())


def test_two_blocks_of_ones_on_halves():
    activations = np.full((4, 4), 0.5)
    activations[:2, :2] = activations[2:, 2:] = 1.0
    assert energy_inside(activations**2, cocluster(activations**2, 2)) == pytest.approx(0.8)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_balanced_labels_on_all_ones(k):
    labels = np.repeat(np.arange(k), 16 // k)
    assert energy_inside(np.ones((16, 16)), CoClusters(labels, labels, k)) == pytest.approx(1 / k)


def block(energy):
    return BlockEnergy("mlp", torch.tensor(energy.T, dtype=torch.float32), energy.size, energy.size, energy.size)


def test_all_in_one_cluster_is_not_an_expertness_of_one():
    everything = CoClusters(np.zeros(6, np.int64), np.zeros(6, np.int64), 3)
    result = block_expertness(block(np.ones((6, 6))), 0, everything)
    assert result.nonempty_clusters == 1
    assert result.expertness is None
    assert sum(part.neurons for part in result.cluster_sizes) == 6


def test_dead_neurons_and_inputs_are_dropped():
    energy = planted(4) ** 2
    padded = np.zeros((energy.shape[0] + 3, energy.shape[1] + 2))
    padded[2:-1, 1:-1] = energy
    result = block_expertness(block(padded), 5, cocluster(padded, 4))
    assert result.expertness == pytest.approx(1.0)
    assert (result.dead_neurons, result.dead_inputs, result.complete_clusters) == (3, 2, 4)
    assert sum(part.neurons for part in result.cluster_sizes) == energy.shape[0]


def test_the_seed_decides_and_order_does_not_matter():
    energy = planted(5, background=0.2) ** 2
    e = energy_inside(energy, cocluster(energy, 5, seed=1))
    assert e == energy_inside(energy, cocluster(energy, 5, seed=1))
    shuffled = energy[::-1, ::-1].copy()
    assert energy_inside(shuffled, cocluster(shuffled, 5)) == pytest.approx(e, abs=1e-9)
    assert energy_inside(7 * energy, cocluster(7 * energy, 5, seed=1)) == pytest.approx(e)


@pytest.mark.parametrize("k", [0, 5])
def test_clusters_that_cannot_be_are_refused(k):
    with pytest.raises(BadInput, match="clusters"):
        cocluster(np.ones((4, 9)), k)


def test_bound():
    assert information_bound_bits([3, 5], 8) == math.log2(2) + 64
    assert information_bound_bits([3, 5], 8, [0.25, 0.75]) == 1 + 8 * (0.75 + 3.75)
    assert information_bound_bits([10], 32) == 320


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


def images(n=20):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "cait_xxs24_224"])
def test_one_pass_accumulates_what_the_whole_activations_would(name):
    model = timm.create_model(name, **VIT).eval()
    whole = {}
    for layer_name, layer in mlp_layers(model):
        layer.register_forward_pre_hook(lambda m, args, n=layer_name: whole.setdefault(n, []).append(args[0]))
    with torch.no_grad(), recorded_energies(model, 20) as energies:
        for part in images().split(7):
            model(part)
    assert len(energies) == len(mlp_layers(model)) >= 3
    for energy in energies:
        activations = torch.cat(whole[energy.name])  # [N, tokens, d]
        assert torch.allclose(energy.energy, activations.square().sum(1), rtol=1e-4)
        assert energy.positive == int((activations > 0).sum())
        assert energy.activations == activations.numel()


def test_hooks_leave_with_the_pass():
    model = timm.create_model("vit_tiny_patch16_224", **VIT).eval()
    with recorded_energies(model, 4):
        pass
    model(images(9))
    with recorded_energies(model, 4), pytest.raises(BadInput, match="images"):
        model(images(9))


def test_measure():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **VIT)
    x = images(20)
    generator = measure_expertness(model, lambda p: x[p], 20, 4, name="vit", data="noise", batch_size=8)
    steps = []
    while True:
        try:
            steps.append(next(generator).step)
        except StopIteration as end:
            result = end.value
            break
    assert steps == [8, 16, 20, 21, 22, 23]
    assert [b.name for b in result.blocks] == ["blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp"]
    for b in result.blocks:
        assert 1 / 8 < b.expertness < 1
        assert 0.3 < b.sparsity < 0.7  # GELU of centred random numbers: half are not positive
        assert b.bound_bits == pytest.approx(2 + 32 * 128)
        assert b.expected_bound_bits < b.bound_bits


def test_convolutional_mlps_have_their_channels_in_the_middle():
    model = timm.create_model(
        "convnext_atto", num_classes=5, depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), conv_mlp=True
    ).eval()
    with torch.no_grad(), recorded_energies(model, 3) as energies:
        model(images(3))
    assert [tuple(e.energy.shape) for e in energies] == [(3, 32), (3, 64), (3, 64), (3, 64)]
    assert all((e.energy > 0).any() for e in energies)


def test_a_model_without_mlps_is_refused():
    with pytest.raises(BadInput, match="MLP blocks"):
        mlp_layers(timm.create_model("resnet10t", num_classes=5))
    with pytest.raises(BadInput, match="Linear"):
        mlp_layers(nn.Linear(2, 2))
