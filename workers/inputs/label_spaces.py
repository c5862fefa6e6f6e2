"""What a timm head's outputs mean: class keys from timm's own metadata, and the label space of a pretrained tag.

timm's model tags say what the head was trained on (`swin_base….ms_in22k`, `mixer_b16_224.miil_in21k`; the last data set
in the tag counts, `…in22k_ft_in1k` has an ImageNet-1k head). The number of outputs only confirms a tag, or tells apart
the variants that share one; without a tag that names a data set nothing is assumed and the space has to be given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from timm.data.imagenet_info import ImageNetInfo

from backend.domain.errors import BadInput
from backend.domain.label_spaces import LABEL_SPACES, LabelSpace, class_map, label_space

# Spaces whose class keys (WordNet ids) timm ships.
KEYED_SPACES = (
    "imagenet-1k",
    "imagenet-12k",
    "imagenet-21k-miil",
    "imagenet-21k-goog",
    "imagenet-22k",
    "imagenet-22k-ms",
)

# What the last data set of a pretrained tag can mean.
_SPACES_OF_MARK = {
    "in1k": ("imagenet-1k",),
    "in12k": ("imagenet-12k",),
    "in21k": ("imagenet-21k-goog", "imagenet-21k-miil"),
    "in22k": ("imagenet-22k", "imagenet-22k-ms"),
}
_MARK = re.compile(r"(?:^|_)(in1k|in12k|in21k|in22k)(?=_|$)")


@lru_cache(maxsize=len(KEYED_SPACES))
def class_keys(space: str) -> tuple[str, ...]:
    """WordNet ids of a space's classes in the order of the head's outputs, from timm's metadata.

    Raises:
        BadInput: for a space whose classes timm does not list.
    """
    if space not in KEYED_SPACES:
        raise BadInput("label_space", space, f"timm lists the classes of {', '.join(KEYED_SPACES)}")
    keys = tuple(ImageNetInfo(space).label_names())
    if len(keys) != label_space(space).n_classes:
        raise BadInput("label_space", space, f"timm lists {len(keys)} classes, {label_space(space).n_classes} expected")
    return keys


def class_names(space: LabelSpace) -> list[str]:
    """Names of a space's classes for people, in index order: timm's lemmas, or the space's own keys."""
    if space.keys is not None:
        return list(space.keys)
    info = ImageNetInfo(space.within or space.name)
    indices = range(space.n_classes) if space.classes is None else space.classes
    return [info.index_to_description(index) for index in indices]


def keys_for(*spaces: LabelSpace) -> dict[str, tuple[str, ...]]:
    """The key lists that comparing these spaces needs, for `backend.domain.label_spaces`."""
    bases = {space.within or space.name for space in spaces}
    return {base: class_keys(base) for base in sorted(bases & set(KEYED_SPACES))}


def head_space(
    model: str, num_classes: int, overrides: Mapping[str, str | LabelSpace] | None = None
) -> LabelSpace | None:
    """The label space of a model's head, or None where its tag names no data set we know.

    Args:
        model: timm's name with tag, `architecture.tag`; the tag alone decides.
        num_classes: Outputs of the head; a space of another size is refused.
        overrides: Space by model name, for heads that a tag does not describe; a name of the registry or a space.

    Raises:
        BadInput: when the tag (or override) and the number of outputs contradict each other.
    """
    given = (overrides or {}).get(model)
    if given is not None:
        space = label_space(given) if isinstance(given, str) else given
        if space.n_classes != num_classes:
            raise BadInput("label_space", space.name, f"{model} has {num_classes} outputs, it has {space.n_classes}")
        return space
    if num_classes == 0:
        return None
    marks = _MARK.findall(model.partition(".")[2])
    if not marks:
        return None
    candidates = [LABEL_SPACES[name] for name in _SPACES_OF_MARK[marks[-1]]]
    for space in candidates:
        if space.n_classes == num_classes:
            return space
    sizes = " or ".join(f"{space.n_classes} ({space.name})" for space in candidates)
    raise BadInput("num_classes", num_classes, f"the tag of {model} says {marks[-1]}: {sizes}; or give the label space")


def head_outputs(head: LabelSpace, dataset: LabelSpace) -> list[int]:
    """For each class of the data set's space the head's output that expresses it, −1 for none, [C].

    Take these columns of the logits (−∞ for −1) before the argmax: it then runs over the data set's whole space.
    """
    return [int(i) for i in class_map(dataset, head, keys_for(head, dataset))]
