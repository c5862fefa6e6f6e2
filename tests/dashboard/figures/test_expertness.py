"""Expertness by block: a line a model, a gap where there is none."""

from backend.domain.remem_results import BlockExpertness, ExpertnessResult
from dashboard.figures.expertness import expertness_by_block


def block(index, expertness):
    return BlockExpertness(
        block=index,
        name=f"blocks.{index}.mlp",
        expertness=expertness,
        n_clusters=3,
        nonempty_clusters=3 if expertness is not None else 2,
        complete_clusters=2,
        cluster_sizes=(),
        n_neurons=8,
        n_inputs=4,
        dead_neurons=0,
        dead_inputs=0,
        sparsity=0.25,
        zero_share=0.0,
        bound_bits=10.0,
        expected_bound_bits=5.0,
    )


def test_lines():
    result = ExpertnessResult(
        model="vit", data="digits", n_images=4, n_clusters=3, blocks=(block(0, 0.2), block(1, None), block(2, 0.6))
    )
    (line,) = expertness_by_block([result], "light").data
    assert (list(line.x), list(line.y)) == ([1, 2, 3], [0.2, None, 0.6])
    assert line.name == "vit"
    assert "2 of 3 clusters" in line.text[0]


def test_nothing_to_show():
    assert "No expertness" in expertness_by_block([], "dark").layout.annotations[0].text
