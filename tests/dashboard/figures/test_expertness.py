"""Expertness by block: a line a model, a gap where there is none; the sizes of its experts."""

from backend.domain.remem_results import BlockExpertness, CoCluster, ExpertnessResult
from dashboard.figures.expertness import MEASURES, by_block, cluster_sizes


def block(index, expertness, sizes=()):
    return BlockExpertness(
        block=index,
        name=f"blocks.{index}.mlp",
        expertness=expertness,
        n_clusters=3,
        nonempty_clusters=3 if expertness is not None else 2,
        complete_clusters=2,
        cluster_sizes=tuple(CoCluster(neurons=n, inputs=i) for n, i in sizes),
        n_neurons=8,
        n_inputs=4,
        dead_neurons=1,
        dead_inputs=0,
        sparsity=0.25,
        zero_share=0.0,
        bound_bits=10.0,
        expected_bound_bits=5.0,
    )


def result(*blocks):
    return ExpertnessResult(model="vit", data="digits", n_images=4, n_clusters=3, blocks=blocks)


def test_lines():
    found = {"vit": result(block(0, 0.2), block(1, None), block(2, 0.6)), "other": result(block(0, 0.5))}
    line, other = by_block(found, "expertness", "light").data
    assert (list(line.x), list(line.y)) == ([1, 2, 3], [20.0, None, 60.0])
    assert (line.name, other.name) == ("vit", "other")
    assert list(line.customdata[1]) == [2, 3, 1, 8]
    assert list(by_block(found, "sparsity", "dark").data[0].y) == [25.0, 25.0, 25.0]
    assert list(by_block(found, "bound_bits", "dark").data[1].y) == [10.0]


def test_the_names_of_many_models_stand_at_one_figure():
    found = {f"vit{i}": result(block(0, 0.2)) for i in range(7)}
    shown = {measure: by_block(found, measure, "light").layout.showlegend for measure in MEASURES}
    assert shown == {"expertness": True, "sparsity": False, "bound_bits": False}


def test_sizes():
    neurons, inputs = cluster_sizes(result(block(0, 0.2, [(5, 1), (3, 3)]), block(4, 0.2, [(8, 4)])), "light").data
    assert (list(neurons.x), list(neurons.y)) == ([1, 1, 5], [5, 3, 8])
    assert list(inputs.y) == [1, 3, 4]


def test_nothing_to_show():
    assert "No model" in by_block({}, "expertness", "dark").layout.annotations[0].text
    assert "No block" in cluster_sizes(result(block(0, None)), "dark").layout.annotations[0].text
