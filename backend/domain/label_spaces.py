"""Label spaces: what a class index means, and on which classes and samples two models can be compared.

A head's outputs say nothing about their meaning by their number: timm has heads of 21,841, 21,842 and 21,843 classes
over almost the same synsets in different orders, and embeddings of 1,024 numbers that are no classes at all. So a space
is always named, never guessed from a number of outputs; two are comparable on the classes both can express, and every
comparison says on how many classes and samples it rests.

Classes are matched by key (the WordNet id of an ImageNet class). The key lists of timm's heads are timm's own metadata,
read where timm may be imported (`workers.inputs.label_spaces`) and passed in here; subsets of ImageNet-1k need none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from backend.domain.correctness import as_labels
from backend.domain.errors import BadInput, NotFound
from backend.domain.records import Record

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Keys = Mapping[str, Sequence[str]]


class LabelSpace(Record):
    """A meaning of class indices 0 … n_classes − 1.

    `within` and `classes` make it a part of another space: class i is class `classes[i]` there. `keys` are the classes'
    names in a space that is not in the registry (a data set's own). `multi_label`: samples carry sets of classes.
    """

    name: str
    title: str
    n_classes: int = Field(ge=1)
    within: str | None = None
    classes: tuple[int, ...] | None = None
    keys: tuple[str, ...] | None = None
    multi_label: bool = False
    source: str = ""


# fmt: off
_IMAGENET_A = (
    6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57, 70, 71, 76, 79, 89, 90, 94, 96, 97, 99, 105, 107,
    108, 110, 113, 124, 125, 130, 132, 143, 144, 150, 151, 207, 234, 235, 254, 277, 283, 287, 291, 295, 298, 301,
    306, 307, 308, 309, 310, 311, 313, 314, 315, 317, 319, 323, 324, 326, 327, 330, 334, 335, 336, 347, 361, 363,
    372, 378, 386, 397, 400, 401, 402, 404, 407, 411, 416, 417, 420, 425, 428, 430, 437, 438, 445, 456, 457, 461,
    462, 470, 472, 483, 486, 488, 492, 496, 514, 516, 528, 530, 539, 542, 543, 549, 552, 557, 561, 562, 569, 572,
    573, 575, 579, 589, 606, 607, 609, 614, 626, 627, 640, 641, 642, 643, 658, 668, 677, 682, 684, 687, 701, 704,
    719, 736, 746, 749, 752, 758, 763, 765, 768, 773, 774, 776, 779, 780, 786, 792, 797, 802, 803, 804, 813, 815,
    820, 823, 831, 833, 835, 839, 845, 847, 850, 859, 862, 870, 879, 880, 888, 890, 897, 900, 907, 913, 924, 932,
    933, 934, 937, 943, 945, 947, 951, 954, 956, 957, 959, 971, 972, 980, 981, 984, 986, 987, 988,
)
# fmt: on

# fmt: off
_IMAGENET_R = (
    1, 2, 4, 6, 8, 9, 11, 13, 22, 23, 26, 29, 31, 39, 47, 63, 71, 76, 79, 84, 90, 94, 96, 97, 99, 100, 105, 107,
    113, 122, 125, 130, 132, 144, 145, 147, 148, 150, 151, 155, 160, 161, 162, 163, 171, 172, 178, 187, 195, 199,
    203, 207, 208, 219, 231, 232, 234, 235, 242, 245, 247, 250, 251, 254, 259, 260, 263, 265, 267, 269, 276, 277,
    281, 288, 289, 291, 292, 293, 296, 299, 301, 308, 309, 310, 311, 314, 315, 319, 323, 327, 330, 334, 335, 337,
    338, 340, 341, 344, 347, 353, 355, 361, 362, 365, 366, 367, 368, 372, 388, 390, 393, 397, 401, 407, 413, 414,
    425, 428, 430, 435, 437, 441, 447, 448, 457, 462, 463, 469, 470, 471, 472, 476, 483, 487, 515, 546, 555, 558,
    570, 579, 583, 587, 593, 594, 596, 609, 613, 617, 621, 629, 637, 657, 658, 701, 717, 724, 763, 768, 774, 776,
    779, 780, 787, 805, 812, 815, 820, 824, 833, 847, 852, 866, 875, 883, 889, 895, 907, 928, 931, 932, 933, 934,
    936, 937, 943, 945, 947, 948, 949, 951, 953, 954, 957, 963, 965, 967, 980, 981, 983, 988,
)
# fmt: on

LABEL_SPACES: dict[str, LabelSpace] = {
    space.name: space
    for space in (
        LabelSpace(name="imagenet-1k", title="ImageNet-1k (ILSVRC 2012)", n_classes=1000, source="arXiv:1409.0575"),
        LabelSpace(
            name="imagenet-v2",
            title="ImageNetV2: new images of the same 1,000 classes",
            n_classes=1000,
            within="imagenet-1k",
            classes=tuple(range(1000)),
            source="arXiv:1902.10811",
        ),
        LabelSpace(
            name="imagenet-real",
            title="ReaL: several or no labels for each ImageNet-1k validation image",
            n_classes=1000,
            within="imagenet-1k",
            classes=tuple(range(1000)),
            multi_label=True,
            source="arXiv:2006.07159",
        ),
        LabelSpace(
            name="imagenet-a",
            title="ImageNet-A: 200 classes of ImageNet-1k, natural adversarial images",
            n_classes=200,
            within="imagenet-1k",
            classes=_IMAGENET_A,
            source="arXiv:1907.07174",
        ),
        LabelSpace(
            name="imagenet-r",
            title="ImageNet-R: 200 classes of ImageNet-1k, renditions",
            n_classes=200,
            within="imagenet-1k",
            classes=_IMAGENET_R,
            source="arXiv:2006.16241",
        ),
        LabelSpace(
            name="imagenet-12k",
            title="ImageNet-12k: timm's subset of the fall 2011 release",
            n_classes=11821,
            source="timm in12k",
        ),
        LabelSpace(
            name="imagenet-21k-miil",
            title="ImageNet-21k-P: MIIL's subset of the fall 2011 release",
            n_classes=11221,
            source="arXiv:2104.10972",
        ),
        LabelSpace(
            name="imagenet-21k-goog",
            title="ImageNet-21k in Google's order",
            n_classes=21843,
            source="timm in21k, two classes that the fall 2011 archive lacks",
        ),
        LabelSpace(
            name="imagenet-22k",
            title="ImageNet-22k: the fall 2011 archive",
            n_classes=21841,
            source="timm in22k",
        ),
        LabelSpace(
            name="imagenet-22k-ms",
            title="ImageNet-22k in Microsoft's order, ImageNet-1k first",
            n_classes=21842,
            source="timm ms_in22k, FocalNet",
        ),
    )
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What two heads can be compared on, in the class indices of the data set's space.

    `classes` [K] are the classes both can express; `samples` [N] the samples with such a class (None when no labels
    were given).
    """

    classes: Ints
    samples: Bools | None

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def n_samples(self) -> int | None:
        return None if self.samples is None else int(self.samples.sum())


def label_space(name: str) -> LabelSpace:
    """A space of the registry by name.

    Raises:
        NotFound: naming the spaces there are.
    """
    try:
        return LABEL_SPACES[name]
    except KeyError:
        raise NotFound("label_space", name, f"known are {', '.join(LABEL_SPACES)}") from None


def own_space(name: str, class_names: Sequence[str]) -> LabelSpace:
    """The space of a data set that shares its classes with nobody but by name; the names are the keys."""
    if len(set(class_names)) != len(class_names):
        raise BadInput("class_names", sorted({c for c in class_names if list(class_names).count(c) > 1}), "given twice")
    return LabelSpace(name=name, title=name, n_classes=len(class_names), keys=tuple(class_names))


def class_map(source: LabelSpace, target: LabelSpace, keys: Keys | None = None) -> Ints:
    """Index in `target` of every class of `source`, [C_source]; −1 where the target has no such class.

    `class_map(dataset_space, head_space)` says at which output a head expresses each class of a data set;
    `class_map(head_space, dataset_space)[top1]` reads a head's predictions as classes of the data set.
    The identity when both are the same space; going there and back is the identity on the shared classes.

    Args:
        keys: Class keys by space name, for the spaces that are no part of another.

    Raises:
        BadInput: when a key list that is needed was not given or has another length than the space.
    """
    (source_base, from_source), (target_base, from_target) = _in_base(source), _in_base(target)
    if source_base == target_base:
        if source.name == target.name and source != target:
            raise BadInput("label_space", source.name, "two different spaces carry this name")
        into_base = np.arange(_size(source_base, source, target))
    else:
        into_base = _match(_keys_of(source, source_base, keys), _keys_of(target, target_base, keys))
    # base class → class of the target, −1 for the base classes the target leaves out.
    back = np.full(_size(target_base, source, target), -1, dtype=np.int64)
    back[from_target] = np.arange(target.n_classes)
    found = into_base[from_source]
    return np.where(found >= 0, back[found], -1)


def expressible(head: LabelSpace, dataset: LabelSpace, keys: Keys | None = None) -> Bools:
    """Which classes of the data set's space a head can express, [C]."""
    return class_map(dataset, head, keys) >= 0


def comparable(
    space_a: LabelSpace,
    space_b: LabelSpace,
    *,
    dataset: LabelSpace | None = None,
    labels: ArrayLike | None = None,
    keys: Keys | None = None,
) -> Comparison:
    """The classes and samples on which a head of `space_a` and one of `space_b` can be compared.

    Args:
        dataset: The space of the labels; default: `space_a`.
        labels: [N], sets as a list of lists or [N, K] padded with −1; −1 and empty sets are compared by nobody.
        keys: As in `class_map`.
    """
    on = dataset or space_a
    both = expressible(space_a, on, keys) & expressible(space_b, on, keys)
    return Comparison(np.flatnonzero(both), None if labels is None else answerable(both, labels))


def answerable(expressed: Bools, labels: ArrayLike) -> Bools:
    """Which samples have a class that is expressed, [N] for `expressed` [C], [M, N] for [M, C].

    The mask `compared` of `backend.domain.flips`. A sample with a set of labels needs one of them.
    """
    truth = as_labels(labels)
    if truth.max() >= expressed.shape[-1]:
        raise BadInput("labels", int(truth.max()), f"class indices must be below {expressed.shape[-1]}")
    sets = truth[:, None] if truth.ndim == 1 else truth
    found = np.zeros((*expressed.shape[:-1], len(sets)), dtype=np.bool_)
    for column in sets.T:
        found |= expressed[..., np.maximum(column, 0)] & (column >= 0)
    return found


def _in_base(space: LabelSpace) -> tuple[str, Ints]:
    """The space that this one is a part of (or itself), and the classes of it there."""
    if space.within is None:
        return space.name, np.arange(space.n_classes)
    return space.within, np.asarray(space.classes, dtype=np.int64)


def _size(base: str, *spaces: LabelSpace) -> int:
    return next((s.n_classes for s in spaces if s.name == base), 0) or label_space(base).n_classes


def _keys_of(space: LabelSpace, base: str, keys: Keys | None) -> Sequence[str]:
    found = space.keys if space.within is None and space.keys is not None else (keys or {}).get(base)
    if found is None:
        raise BadInput("keys", base, f"comparing across spaces needs the class keys of {base}")
    if len(found) != _size(base, space):
        raise BadInput("keys", f"{len(found)} keys for {base}", f"the space has {_size(base, space)} classes")
    return found


def _match(source: Sequence[str], target: Sequence[str]) -> Ints:
    at = {key: i for i, key in enumerate(target)}
    return np.array([at.get(key, -1) for key in source], dtype=np.int64)
