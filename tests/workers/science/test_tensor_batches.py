"""Batches in memory are a pure function of seed and epoch."""

import pytest
import torch

from backend.domain.errors import BadInput
from backend.domain.methods import TrainingParams
from workers.science.augment import make_view
from workers.science.tensor_batches import TensorBatches

IMAGES = torch.randint(0, 256, (10, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(10) % 3


def batches_of(**settings):
    return TensorBatches(IMAGES, LABELS, TrainingParams(batch_size=3, **settings))


def test_every_sample_once_with_its_label_and_view():
    batches = batches_of(augment="crop_flip", seed=4)
    assert batches.steps_per_epoch == 4
    epoch = list(batches.epoch(2))
    assert [len(batch) for batch in epoch] == [2, 3, 3, 2]
    indices = torch.cat([batch.indices for batch in epoch])
    assert sorted(indices.tolist()) == list(range(10))
    for batch in epoch:
        assert torch.equal(batch.labels, LABELS[batch.indices])
        view = make_view(IMAGES[batch.indices], "crop_flip", indices=batch.indices, seed=4, view=2)
        assert torch.equal(batch.view, view)


def test_resuming_within_an_epoch_gives_the_same_batches():
    whole, rest = list(batches_of(augment="flip").epoch(1)), list(batches_of(augment="flip").epoch(1, start=1))
    assert len(rest) == 3
    for a, b in zip(whole[1:], rest, strict=True):
        assert torch.equal(a.view, b.view)
        assert torch.equal(a.indices, b.indices)


def test_views_repeat_after_v_epochs_while_the_order_goes_on():
    batches = batches_of(augment="crop", views=2)

    def by_sample(epoch):
        return {
            int(i): picture
            for batch in batches.epoch(epoch)
            for i, picture in zip(batch.indices, batch.view, strict=True)
        }

    first, second, third = by_sample(0), by_sample(1), by_sample(2)
    assert all(torch.equal(first[i], third[i]) for i in range(10))
    assert not all(torch.equal(first[i], second[i]) for i in range(10))
    order = [[batch.indices.tolist() for batch in batches.epoch(e)] for e in (0, 2)]
    assert order[0] != order[1]


def test_a_view_lists_every_sample_in_order():
    indices = torch.cat([batch.indices for batch in batches_of().view(1)])
    assert indices.tolist() == list(range(10))


@pytest.mark.parametrize(
    "images, labels, options, field",
    [
        (IMAGES[:0], LABELS[:0], {}, "transfer set"),
        (IMAGES, LABELS[:4], {}, "labels"),
        (IMAGES, LABELS.float(), {}, "labels"),
        (IMAGES, LABELS - 1, {}, "labels"),
        (IMAGES, LABELS, {"n_classes": 2}, "labels"),
        (IMAGES[:, 0], LABELS, {}, "images"),
        (IMAGES, LABELS, {"cached": object()}, "views"),
    ],
)
def test_bad_sets_are_named(images, labels, options, field):
    with pytest.raises(BadInput) as caught:
        TensorBatches(images, labels, TrainingParams(), **options)
    assert caught.value.field == field
