"""KDEP's and ReMem's formulas on random input, against numpy written again from the papers' equations alone.

Nothing here calls what it checks to know what is right: singular vectors come from numpy's SVD of the whole matrix,
LogME from a search over (α, β) of the evidence itself, co-clusters are planted, sums are loops over samples and classes.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from workers.science.compactness import class_scatter
from workers.science.expertness import CoClusters, cocluster, energy_inside, information_bound_bits
from workers.science.information.reconstruction import bernoulli_entropy
from workers.science.kdep.align import align_by_svd
from workers.science.kdep.svd import FeatureMoments, svd_basis
from workers.science.kdep.transform import match_std, pts, standardise, std_ratio
from workers.science.logme import logme
from workers.science.remem.distill import dist_relations
from workers.science.remem.sam import perturbations

SEEDS = (11, 12, 13)


def _features(seed: int, n: int = 60, d: int = 9) -> np.ndarray:
    """Correlated, far from zero, with channels of very different spread."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.logspace(-2, 1, d) + rng.normal(size=d) * 30


def _moments(features: np.ndarray, chunk: int) -> FeatureMoments:
    moments = FeatureMoments.empty(features.shape[1])
    for start in range(0, len(features), chunk):
        moments.update(torch.from_numpy(features[start : start + chunk]))
    return moments


@pytest.mark.parametrize("seed", SEEDS)
def test_pts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    f, t, n = rng.normal(size=(7, 5)) * 10, rng.uniform(0.01, 0.9), rng.uniform(1, 6)
    expected = [[(1 if x > 0 else -1) * abs(x / t) ** (1 / n) for x in row] for row in f]
    np.testing.assert_allclose(pts(torch.from_numpy(f), temperature=t, exponent=n).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_svd_and_its_projection(seed: int) -> None:
    f = _features(seed)
    centred = f - f.mean(0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    basis = svd_basis(_moments(f, 7), 4)
    np.testing.assert_allclose(basis.singular_values.numpy(), s[:4], rtol=1e-9)
    np.testing.assert_allclose(np.abs(vt[:4] @ basis.components.numpy()), np.eye(4), atol=1e-7)
    assert basis.variance_share == pytest.approx((s[:4] ** 2).sum() / (s**2).sum())
    projected = align_by_svd(_moments(f, 60), 4)(torch.from_numpy(f)).numpy()
    np.testing.assert_allclose(np.abs(projected), np.abs(centred @ vt[:4].T), atol=1e-7)
    assert std_ratio(torch.from_numpy(projected.std(0, ddof=1))) == pytest.approx(s[0] / s[3])


@pytest.mark.parametrize("seed", SEEDS)
def test_sn_and_sm(seed: int) -> None:
    f, original = _features(seed, d=4), _features(seed + 100, d=7)
    std, wide = np.sqrt(((f - f.mean(0)) ** 2).sum(0) / (len(f) - 1)), original.std(0, ddof=1)
    tensor = torch.from_numpy(f)
    np.testing.assert_allclose(standardise(tensor, torch.from_numpy(std)).numpy(), f / std, rtol=1e-12)
    matched = match_std(tensor, torch.from_numpy(std), torch.from_numpy(wide)).numpy()
    largest = sorted(wide, reverse=True)
    for place, channel in enumerate(sorted(range(4), key=lambda i: -std[i])):
        np.testing.assert_allclose(matched[:, channel], f[:, channel] / std[channel] * largest[place], rtol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_dist(seed: int) -> None:
    rng = np.random.default_rng(seed)
    student, teacher, tau = rng.normal(size=(6, 5)) * 3, rng.normal(size=(6, 5)) * 3, rng.uniform(0.5, 4)
    a, b = (np.exp(z / tau) / np.exp(z / tau).sum(1, keepdims=True) for z in (student, teacher))
    inter = 1 - np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])
    intra = 1 - np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])
    found = dist_relations(torch.from_numpy(student), torch.from_numpy(teacher), temperature=tau)
    assert [one.item() for one in found] == pytest.approx([inter * tau**2, intra * tau**2], rel=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_logme_is_the_maximum_of_the_evidence(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, d, classes = 40, 6, 3
    labels = np.arange(n) % classes
    f = rng.normal(size=(n, d)) + np.eye(classes, d)[labels] * 2

    def evidence(logs: np.ndarray, y: np.ndarray) -> float:
        alpha, beta = np.exp(logs)
        a = alpha * np.eye(d) + beta * f.T @ f
        m = beta * np.linalg.solve(a, f.T @ y)
        value = n / 2 * np.log(beta) + d / 2 * np.log(alpha) - n / 2 * np.log(2 * np.pi)
        value -= beta / 2 * np.sum((f @ m - y) ** 2) + alpha / 2 * m @ m + np.linalg.slogdet(a)[1] / 2
        return value / n

    best = []
    for c in range(classes):
        y = (labels == c).astype(float)
        found = minimize(lambda logs, y=y: -evidence(logs, y), np.zeros(2), method="Nelder-Mead", tol=1e-12)
        best.append(-found.fun)
    # The published iteration stops once α/β moves by less than 1 %: below the maximum, and close to it.
    assert np.mean(best) - 1e-4 < logme(f, labels) <= np.mean(best) + 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_compactness(seed: int) -> None:
    f = _features(seed, n=50, d=5)
    labels = np.random.default_rng(seed).integers(0, 4, 50) * 3
    between, within = np.zeros((5, 5)), np.zeros((5, 5))
    for c in set(labels.tolist()):
        inside = f[labels == c]
        shift = inside.mean(0) - f.mean(0)
        between += len(inside) * np.outer(shift, shift)
        for row in inside:
            within += np.outer(row - inside.mean(0), row - inside.mean(0))
    found = class_scatter(f, labels)
    assert found.between == pytest.approx(np.trace(between))
    assert found.within == pytest.approx(np.trace(within))
    assert found.compactness == pytest.approx(np.trace(between) / np.trace(within))


@pytest.mark.parametrize("seed", SEEDS)
def test_expertness_of_planted_experts_of_unequal_size(seed: int) -> None:
    """Planted parts in noise: the parts are found, and e is the share of the energy that a double loop finds in them."""
    rng = np.random.default_rng(seed)
    k, d, n = 4, 36, 30
    neurons, inputs = rng.permutation(np.arange(d) % k), rng.permutation(np.repeat(range(k), [5, 7, 8, 10]))
    energy = rng.uniform(0, 0.1, (d, n))
    energy[neurons[:, None] == inputs[None, :]] += rng.uniform(3, 6)
    found = cocluster(energy, k)
    pairs = set(zip(neurons.tolist(), found.neurons.tolist(), strict=True))
    assert len(pairs) == k, "each planted part is one part"
    assert pairs >= set(zip(inputs.tolist(), found.inputs.tolist(), strict=True))
    inside = sum(energy[i, j] for i in range(d) for j in range(n) if found.neurons[i] == found.inputs[j])
    assert energy_inside(energy, found) == pytest.approx(inside / energy.sum())
    labels = rng.integers(0, k, d), rng.integers(0, k, n)
    any_parts = CoClusters(labels[0], labels[1], k)
    inside = sum(energy[i, j] for i in range(d) for j in range(n) if labels[0][i] == labels[1][j])
    assert energy_inside(energy, any_parts) == pytest.approx(inside / energy.sum())
    sizes, shares = [3, 9, 24], [0.5, 0.25, 0.25]
    assert information_bound_bits(sizes, 16) == pytest.approx(np.log2(3) + 16 * 36)
    assert information_bound_bits(sizes, 16, shares) == pytest.approx(np.log2(3) + 16 * (1.5 + 2.25 + 6))


@pytest.mark.parametrize("seed", SEEDS)
def test_entropy_floor_and_sharpness(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, 50)
    expected = [-(p * np.log(p) + (1 - p) * np.log(1 - p)) for p in x]
    np.testing.assert_allclose(bernoulli_entropy(torch.from_numpy(x)).numpy(), expected, rtol=1e-12)
    gradients = [rng.normal(size=shape) for shape in ((3, 4), (5,))]
    weights = [torch.from_numpy(rng.normal(size=g.shape)) for g in gradients]
    rho, norm = rng.uniform(0.01, 1), np.sqrt(sum((g**2).sum() for g in gradients))
    steps = perturbations(weights, [torch.from_numpy(g) for g in gradients], rho)
    for step, gradient in zip(steps, gradients, strict=True):
        np.testing.assert_allclose(step.numpy(), rho * gradient / (norm + 1e-12), rtol=1e-9)
