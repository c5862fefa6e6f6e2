"""Maps between label spaces, on toy spaces and on the subsets of ImageNet-1k (timm's heads: tests/workers/inputs)."""

import numpy as np
import pytest

from backend.domain.correctness import correctness
from backend.domain.errors import BadInput, NotFound
from backend.domain.flips import flip_pairs
from backend.domain.label_spaces import (
    LABEL_SPACES,
    LabelSpace,
    answerable,
    class_map,
    comparable,
    expressible,
    label_space,
    own_space,
)

PETS = own_space("pets", ["cat", "dog", "fish"])
ZOO = own_space("zoo", ["lion", "dog", "cat", "bear"])


def test_the_registry():
    assert {name: space.n_classes for name, space in LABEL_SPACES.items()} == {
        "imagenet-1k": 1000,
        "imagenet-v2": 1000,
        "imagenet-real": 1000,
        "imagenet-a": 200,
        "imagenet-r": 200,
        "imagenet-12k": 11821,
        "imagenet-21k-miil": 11221,
        "imagenet-21k-goog": 21843,
        "imagenet-22k": 21841,
        "imagenet-22k-ms": 21842,
    }
    for space in LABEL_SPACES.values():
        if space.classes is not None:
            assert len(set(space.classes)) == space.n_classes
            assert list(space.classes) == sorted(space.classes)
            assert max(space.classes) < label_space(space.within).n_classes
    assert label_space("imagenet-real").multi_label


def test_unknown_spaces_are_refused_with_the_known_ones():
    with pytest.raises(NotFound, match=r"imagenet-22k-ms"):
        label_space("imagenet-21k")


def test_map_by_key():
    assert class_map(PETS, ZOO).tolist() == [2, 1, -1]
    assert class_map(ZOO, PETS).tolist() == [-1, 1, 0, -1]
    assert class_map(PETS, PETS).tolist() == [0, 1, 2]
    assert expressible(ZOO, PETS).tolist() == [True, True, False]


def test_subsets_map_through_imagenet_1k_without_any_key():
    a, r, one_k = (label_space(f"imagenet-{name}") for name in ("a", "r", "1k"))
    assert class_map(a, one_k)[:3].tolist() == [6, 11, 13]
    assert class_map(r, one_k)[:3].tolist() == [1, 2, 4]
    back = class_map(one_k, a)
    assert (back >= 0).sum() == 200
    assert back[6] == 0
    # There and back is the identity on the shared classes.
    there = class_map(a, r)
    shared = np.flatnonzero(there >= 0)
    assert len(shared) == comparable(a, r).n_classes == len(set(a.classes) & set(r.classes))
    np.testing.assert_array_equal(class_map(r, a)[there[shared]], shared)
    np.testing.assert_array_equal(class_map(label_space("imagenet-v2"), one_k), np.arange(1000))


def test_comparable_says_on_how_many_classes_and_samples():
    labels = [0, 1, 2, 3, 2, -1]
    found = comparable(PETS, ZOO, dataset=ZOO, labels=labels)
    assert found.classes.tolist() == [1, 2]
    assert found.samples.tolist() == [False, True, True, False, True, False]
    assert (found.n_classes, found.n_samples) == (2, 3)
    assert comparable(PETS, ZOO).classes.tolist() == [0, 1]  # in the classes of the first
    assert comparable(PETS, PETS).n_samples is None


def test_a_sample_with_several_labels_needs_one_that_is_expressed():
    assert answerable(np.array([True, False, False]), [[0, 1], [1, 2], []]).tolist() == [True, False, False]
    masks = answerable(np.array([[True, False], [True, True]]), [0, 1, -1])
    assert masks.tolist() == [[True, False, False], [True, True, False]]


def test_pairs_across_spaces_count_on_what_both_can_express():
    labels = np.array([0, 0, 1, 1, 2, 3])  # classes of ZOO
    top1_pets = class_map(PETS, ZOO)[[1, 0, 1, 2, 0, 2]]  # dog, cat, dog, fish → none, cat, none
    top1 = np.stack([top1_pets, [0, 1, 1, 0, 0, 3]])
    compared = answerable(np.stack([expressible(PETS, ZOO), expressible(ZOO, ZOO)]), labels)
    table = flip_pairs(correctness(top1, labels), labels, 4, compared)
    assert table.n_samples.tolist() == [3, 3]
    assert table.n_classes.tolist() == [2, 2]
    assert table.positive_flips.tolist() == [1, 0]


def test_nothing_is_guessed_without_keys():
    with pytest.raises(BadInput, match="class keys of imagenet-"):
        comparable(label_space("imagenet-22k"), label_space("imagenet-22k-ms"))
    with pytest.raises(BadInput, match="2 keys"):
        class_map(
            label_space("imagenet-1k"), label_space("imagenet-12k"), {"imagenet-1k": ["a", "b"], "imagenet-12k": []}
        )


def test_two_spaces_of_one_name_are_refused():
    with pytest.raises(BadInput, match="two different spaces"):
        class_map(PETS, LabelSpace(name="pets", title="", n_classes=2, keys=("a", "b")))


def test_labels_outside_the_space_are_refused():
    with pytest.raises(BadInput, match="labels"):
        comparable(PETS, PETS, labels=[0, 3])
    with pytest.raises(BadInput, match="class_names"):
        own_space("twice", ["cat", "cat"])
