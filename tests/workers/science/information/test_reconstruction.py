"""Information by reconstruction: the floor, planted features in order, resuming, the cache."""

import copy

import pytest
import torch
import torch.nn.functional as F

from backend.domain.errors import BadInput
from backend.domain.remem import InformationParams
from workers.science.information.features import CachedFeatures
from workers.science.information.reconstruction import Reconstruction, bernoulli_entropy

PARAMS = InformationParams(updates=200, batch_size=16)


def test_floor_golden():
    assert bernoulli_entropy(torch.tensor([0.0, 0.25, 0.5, 1.0])).mean().item() == pytest.approx(0.313871, abs=1e-6)


def planted(kind, n=128, seed=0):
    """Images [n, 3, 32, 32] of two classes with random smooth detail, and features [n, 48, 2, 2] that know them, a blur
    of them, or only their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    classes = (0.2 + 0.6 * labels.float())[:, None, None, None].expand(n, 3, 32, 32)
    detail = F.interpolate(torch.rand(n, 3, 4, 4, generator=generator), size=(32, 32), mode="bilinear")
    images = (0.5 * classes + 0.5 * detail).mul(255).round()
    x = images / 255
    if kind == "blurred":
        x = F.interpolate(F.avg_pool2d(x, 16), size=(32, 32))
    if kind == "class":
        x = classes
    return CachedFeatures(F.pixel_unshuffle(F.avg_pool2d(x, 4), 4), images.to(torch.uint8))


def measured(kind, params=PARAMS):
    reconstruction = Reconstruction(planted(kind), params)
    for _ in reconstruction.fit():
        pass
    return reconstruction.result(planted(kind, 32, seed=1), model=kind, data="planted")


def test_planted_features_rank_in_order():
    identity, blurred, class_only = (measured(kind) for kind in ("identity", "blurred", "class"))
    assert 0 <= identity.excess_nats < 0.9 * blurred.excess_nats
    assert blurred.excess_nats < 0.95 * class_only.excess_nats
    assert identity.floor_nats == blurred.floor_nats == class_only.floor_nats
    assert identity.excess_nats == pytest.approx(identity.loss_nats - identity.floor_nats)
    assert (identity.updates, identity.n_images, identity.n_heldout) == (200, 128, 32)


def test_the_truth_costs_the_floor():
    reconstruction = Reconstruction(planted("identity"), PARAMS)
    images = planted("identity").images.float() / 255
    reconstruction.decoder.logits = lambda _: torch.logit(images.double(), eps=1e-12)
    truth = copy.copy(planted("identity"))
    loss, floor = Reconstruction.score(_whole_batch(reconstruction), truth)
    assert loss == pytest.approx(floor, abs=1e-9)


def _whole_batch(reconstruction):
    reconstruction.params = PARAMS.model_copy(update={"batch_size": 128})
    return reconstruction


def test_interrupted_ends_in_the_same_bits():
    params = PARAMS.model_copy(update={"updates": 20})
    whole = Reconstruction(planted("identity"), params)
    for _ in whole.fit():
        pass
    first = Reconstruction(planted("identity"), params)
    for progress in first.fit():
        if progress.step == 9:
            break
    second = Reconstruction(planted("identity"), params)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps = [progress.step for progress in second.fit()]
    assert steps == list(range(10, 21))
    for name, value in whole.decoder.state_dict().items():
        assert torch.equal(value, second.decoder.state_dict()[name]), name


def test_the_seed_alone_decides_and_torch_s_generator_is_left_alone():
    params = PARAMS.model_copy(update={"updates": 3})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = measured("identity", params)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert measured("identity", params) == a
    assert measured("identity", params.model_copy(update={"seed": 1})).loss_nats != a.loss_nats


def test_heldout_of_another_size_is_refused():
    reconstruction = Reconstruction(planted("identity"), PARAMS)
    other = CachedFeatures(torch.zeros(4, 48, 1, 1), torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(BadInput, match="heldout"):
        reconstruction.score(other)
