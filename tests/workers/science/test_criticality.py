"""Criticality: the batched figures are those of switching each neuron off by hand."""

import pytest
import timm
import torch

from backend.domain.errors import BadInput
from backend.domain.remem import CriticalityParams
from workers.science.criticality import influence, maximise_activations, measure_criticality
from workers.science.preprocessed import Preprocessed
from workers.science.remem.reweighting import reweight

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


def build(name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    return timm.create_model(name, **{**VIT, **options}).eval()


def images(n=4):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def by_hand(model, x, block, neuron):
    def features():
        return model.forward_head(model.forward_features(x), pre_logits=True)

    before = features()

    def off(module, args):
        changed = args[0].clone()
        changed[..., neuron] = 0
        return (changed,)

    hook = model.blocks[block].mlp.fc2.register_forward_pre_hook(off)
    after = features()
    hook.remove()
    return (after - before).norm(dim=1) / before.norm(dim=1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("beit_base_patch16_224", {"init_values": 0.5}),
        ("eva02_tiny_patch14_224", {}),
        ("cait_xxs24_224", {"init_values": 0.5}),
    ],
)
@pytest.mark.parametrize("mlp_weight", [1.0, 0.8])
@torch.no_grad()
def test_batched_is_by_hand(name, options, mlp_weight):
    model, x = reweight(build(name, **options), mlp_weight=mlp_weight), images()
    for block in range(3):
        got = influence(model, x, block, torch.tensor([3, 7, 11]))
        expected = torch.stack([by_hand(model, x, block, neuron) for neuron in (3, 7, 11)])
        assert torch.allclose(got, expected, rtol=1e-2, atol=1e-6)
    logits = model(x)
    assert torch.equal(logits, model(x))
    assert ("forward" in model.blocks[0].__dict__) == (mlp_weight != 1)


def measured(model, n=6, **options):
    wrapped, x = (
        Preprocessed(model, 32, (0.5,) * 3, (0.5,) * 3),
        torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    )
    generator = measure_criticality(wrapped, lambda p: x[p], n, CriticalityParams(**options), name="vit", data="noise")
    steps = []
    while True:
        try:
            steps.append(next(generator))
        except StopIteration as end:
            assert [p.step for p in steps] == sorted({p.step for p in steps})
            assert steps[-1].step == steps[-1].total
            return end.value, wrapped, x


def test_a_planted_neuron_is_found_with_its_image():
    model = build()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[:, 40] = 5 * torch.randn(32)
    result, wrapped, x = measured(model, blocks=(1,), candidates=16, top_neurons=3, top_images=2, batch_size=8)
    (block,) = result.blocks
    assert (block.block, block.n_neurons, block.n_examined) == (1, 128, 16)
    assert block.neurons[0].neuron == 40
    with torch.no_grad():
        table = by_hand(model, wrapped.prepare(x), 1, 40)
    assert block.neurons[0].criticality == pytest.approx(table.max().item(), rel=1e-2)
    assert [i.index for i in block.neurons[0].images] == table.sort(descending=True).indices[:2].tolist()
    assert block.maximum == block.neurons[0].criticality > block.mean
    assert [n.criticality for n in block.neurons] == sorted((n.criticality for n in block.neurons), reverse=True)


def test_batches_change_nothing():
    a, _, _ = measured(build(), candidates=None, batch_size=512)
    b, _, _ = measured(build(), candidates=None, batch_size=4)
    assert [block.neurons[0].neuron for block in a.blocks] == [block.neurons[0].neuron for block in b.blocks]
    for left, right in zip(a.blocks, b.blocks, strict=True):
        assert left.mean == pytest.approx(right.mean, rel=1e-3)
        assert left.n_examined == 128


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(BadInput, match="blocks"):
        measured(build(), blocks=(3,))
    with pytest.raises(BadInput, match="ResNet"):
        measured(timm.create_model("resnet10t", num_classes=5))


def test_ascent_raises_the_activation_of_its_neuron():
    model = Preprocessed(build(), 32, (0.5,) * 3, (0.5,) * 3)
    pictures = maximise_activations(model, 1, [5, 9], steps=30, seed=3)
    assert pictures.shape == (2, 3, 32, 32)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert torch.equal(pictures, maximise_activations(model, 1, [5, 9], steps=30, seed=3))
    start = maximise_activations(model, 1, [5, 9], steps=0, seed=3)
    seen = []
    hook = model.model.blocks[1].mlp.fc2.register_forward_pre_hook(lambda m, args: seen.append(args[0].mean(1)))
    with torch.no_grad():
        model(start), model(pictures)
    hook.remove()
    for row, neuron in enumerate((5, 9)):
        assert seen[1][row, neuron] > seen[0][row, neuron] + 0.03
    assert all(p.grad is None for p in model.parameters())
