"""Views: fixed by (seed, view, sample), whatever the batch; in [0, 1]; each mode does what it says."""

import pytest
import torch

from backend.domain.errors import BadInput
from workers.science.augment import make_view, uniforms

MODES = ["none", "flip", "crop", "crop_flip", "paper", "rrc"]


@pytest.fixture
def images():
    return torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("mode", MODES)
def test_a_view_does_not_depend_on_its_batch(mode, images):
    indices = torch.arange(12)
    whole = make_view(images, mode, indices=indices, seed=5, view=3)
    some = torch.tensor([7, 2, 11])
    torch.testing.assert_close(make_view(images[some], mode, indices=some, seed=5, view=3), whole[some])
    assert torch.equal(make_view(images, mode, indices=indices, seed=5, view=3), whole)
    assert whole.dtype == torch.float32
    assert whole.shape == (12, 3, 16, 16)
    assert 0 <= whole.min() <= whole.max() <= 1


@pytest.mark.parametrize("mode", MODES[1:])
def test_views_seeds_and_samples_differ(mode, images):
    same_image = images[:1].expand(12, -1, -1, -1)
    indices = torch.arange(12)
    view = make_view(same_image, mode, indices=indices, seed=5, view=3)
    assert not torch.equal(view, make_view(same_image, mode, indices=indices, seed=5, view=4))
    assert not torch.equal(view, make_view(same_image, mode, indices=indices, seed=6, view=3))
    assert len({tuple(picture.flatten().tolist()) for picture in view}) > 1


def test_none_is_the_image(images):
    view = make_view(images, "none", indices=torch.arange(12), seed=0, view=0)
    assert torch.equal(view, images.float() / 255)
    assert torch.equal(make_view(view, "none", indices=torch.arange(12), seed=1, view=9), view)


def test_flip_mirrors_about_half(images):
    many = images[:1].expand(2000, -1, -1, -1)
    view = make_view(many, "flip", indices=torch.arange(2000), seed=0, view=0)
    original = images[0].float() / 255
    flipped = torch.tensor([torch.equal(picture, original.flip(2)) for picture in view])
    kept = torch.tensor([torch.equal(picture, original) for picture in view])
    assert (flipped | kept).all()
    assert 0.45 < flipped.float().mean() < 0.55


def test_crop_shifts_by_up_to_an_eighth():
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 8, 8] = 1
    view = make_view(image.expand(500, -1, -1, -1), "crop", indices=torch.arange(500), seed=0, view=0)
    places = {tuple(place) for place in (view[:, 0] == 1).nonzero()[:, 1:].tolist()}
    assert places == {(y, x) for y in range(6, 11) for x in range(6, 11)}
    assert torch.equal(view[:, 0], view[:, 2])  # grey images become three equal channels


def test_paper_makes_about_a_fifth_grey_and_keeps_some_colours(images):
    many = images[:1].expand(2000, -1, -1, -1)
    view = make_view(many, "paper", indices=torch.arange(2000), seed=0, view=0)
    grey = (view[:, 0] - view[:, 1]).abs().amax(dim=(1, 2)) < 1e-6
    assert 0.17 < grey.float().mean() < 0.23
    original = images[0].float() / 255
    untouched = torch.tensor([torch.equal(p, original) or torch.equal(p, original.flip(2)) for p in view])
    assert 0.12 < untouched.float().mean() < 0.20  # .2 not distorted, .8 of them not grey


def test_paper_changes_brightness_contrast_saturation_and_hue_in_turn():
    """One matrix a picture is the same as one operation after another, where nothing is clamped."""
    n = 40
    images = 0.45 + 0.1 * torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    indices = torch.arange(n)
    draws = uniforms(2, 0, indices, 12)
    luma = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    view = make_view(images, "paper", indices=indices, seed=2, view=0)
    for i, picture in enumerate(images):
        x = picture.flip(2) if draws[i, 0] < 0.5 else picture
        if draws[i, 9] < 0.8:
            brightness, contrast, saturation = (1 + 0.4 * (2 * float(draws[i, j]) - 1) for j in (5, 6, 7))
            turn = torch.tensor(0.1 * (2 * float(draws[i, 8]) - 1) * 2 * torch.pi)
            x = x * brightness
            x = contrast * x + (1 - contrast) * (x * luma).sum(0).mean()
            x = saturation * x + (1 - saturation) * (x * luma).sum(0)
            y, first, second = torch.einsum("ij,jhw->ihw", yiq, x)
            turned = (turn.cos() * first - turn.sin() * second, turn.sin() * first + turn.cos() * second)
            x = torch.einsum("ij,jhw->ihw", torch.linalg.inv(yiq), torch.stack([y, *turned]))
        if draws[i, 10] < 0.2:
            x = (x * luma).sum(0).expand(3, -1, -1)
        torch.testing.assert_close(view[i], x, atol=2e-5, rtol=0)


def test_paper_crops_the_centre_square():
    wide = torch.zeros(1, 3, 8, 16)
    wide[..., 4:12] = 1
    view = make_view(wide.expand(50, -1, -1, -1), "paper", indices=torch.arange(50), seed=0, view=0)
    assert view.shape == (50, 3, 8, 8)
    assert (view.amin(dim=(1, 2, 3)) > 0.3).all()


def test_rrc_shows_a_part_at_full_size():
    ramp = torch.linspace(0, 1, 64).reshape(1, 1, 1, 64).expand(400, 3, 64, 64)
    view = make_view(ramp, "rrc", indices=torch.arange(400), seed=0, view=0, size=32)
    assert view.shape == (400, 3, 32, 32)
    width = view[:, 0, 0].amax(1) - view[:, 0, 0].amin(1)
    assert width.min() > 0.2  # √.08 · √(3/4) of the side is the narrowest part
    assert 0.5 < width.mean() < 0.9
    rising = view[:, 0, 0, -1] > view[:, 0, 0, 0]
    assert 0.4 < rising.float().mean() < 0.6


@pytest.mark.parametrize("mode", MODES)
def test_size(mode, images):
    view = make_view(images, mode, indices=torch.arange(12), seed=0, view=0, size=24)
    assert view.shape == (12, 3, 24, 24)


def test_draws_are_uniform_and_unrelated():
    draws = uniforms(3, 1, torch.arange(5000), 12)
    assert draws.shape == (5000, 12)
    assert 0 <= draws.min() < draws.max() < 1
    assert (draws.mean(0) - 0.5).abs().max() < 0.02
    assert (torch.corrcoef(draws.T) - torch.eye(12, dtype=torch.float64)).abs().max() < 0.06
    other = uniforms(3, 2, torch.arange(5000), 12)
    assert abs(torch.corrcoef(torch.stack([draws[:, 0], other[:, 0]]))[0, 1]) < 0.06


def test_other_shapes_are_refused():
    with pytest.raises(BadInput, match="images"):
        make_view(torch.rand(2, 4, 8, 8), "none", indices=torch.arange(2), seed=0, view=0)
