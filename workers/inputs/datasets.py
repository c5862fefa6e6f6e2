"""Data sets by source: read once to describe them (`read_dataset`), opened again to work with them (`open_split`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from backend.domain.datasets import Dataset, DatasetSpec, Split
from backend.domain.errors import BadInput
from backend.domain.label_spaces import LabelSpace, label_space
from backend.settings import Settings
from workers.inputs.arrays import read_digits, read_npz
from workers.inputs.decoding import bound_decoding
from workers.inputs.hub import read_huggingface, read_torchvision
from workers.inputs.imagefolder import read_imagefolder
from workers.inputs.images import Images
from workers.inputs.label_spaces import class_keys, class_names
from workers.inputs.parquet import read_parquet
from workers.inputs.roots import inside_roots
from workers.inputs.shards import read_webdataset

Reader = Callable[[str | None, dict[str, Any], Settings], dict[str, Images]]

READERS: dict[str, Reader] = {
    "digits": read_digits,
    "imagefolder": read_imagefolder,
    "npz": read_npz,
    "parquet": read_parquet,
    "huggingface": read_huggingface,
    "torchvision": read_torchvision,
    "webdataset": read_webdataset,
}
_ON_DISK = ("imagefolder", "npz", "parquet", "webdataset")


def read_dataset(spec: DatasetSpec, settings: Settings) -> Dataset:
    """Read a data set once: its splits with their fingerprints, its classes in the label space asked for.

    A relative location is taken from the working directory and stored absolute.

    Raises:
        BadInput: nothing there, no images, no labels, classes that the label space does not have.
    """
    location = _located(spec, settings)
    splits = _read(spec.source, location, spec.options, spec.label_space, settings)
    first = next(iter(splits.values()))
    return Dataset(
        id=uuid4(),
        name=spec.name,
        source=spec.source,
        location=location,
        options=spec.options,
        label_space=spec.label_space,
        class_names=first.class_names,
        splits={name: Split(n_samples=len(images), fingerprint=images.fingerprint) for name, images in splits.items()},
        created_at=datetime.now(UTC),
    )


def open_split(dataset: Dataset, split: str, settings: Settings) -> Images:
    """The images of one split, as they were when the data set was added.

    Raises:
        BadInput: an external data set, an unknown split, or files that changed since.
    """
    if dataset.source == "external":
        raise BadInput("dataset", dataset.name, "a data set with images; this one came with imported predictions only")
    if split not in dataset.splits:
        raise BadInput("split", split, f"one of {', '.join(sorted(dataset.splits))}")
    found = _read(dataset.source, dataset.location, dataset.options, dataset.label_space, settings)
    if split not in found or found[split].fingerprint != dataset.splits[split].fingerprint:
        raise BadInput(
            "dataset", dataset.name, f"files that did not change since it was added; those of split {split!r} did"
        )
    return found[split]


def _read(
    source: str, location: str | None, options: dict[str, Any], space: str | None, settings: Settings
) -> dict[str, Images]:
    bound_decoding(settings.max_image_pixels)
    splits = READERS[source](location, options, settings)
    for name, images in splits.items():
        if len(set(images.sample_ids)) != len(images):
            raise BadInput("location", location, f"sample ids that are unique within the split {name!r}")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise BadInput("split", name, "names of letters, digits, '.', '_' and '-'")
    if space is None:
        return splits
    target = label_space(space)
    if target.multi_label:
        raise BadInput("label_space", space, "a space with one label a sample")
    names = class_names(target)
    return {name: _in_space(images, target, names) for name, images in splits.items()}


def _in_space(images: Images, target: LabelSpace, names: Sequence[str]) -> Images:
    indices = space_indices(images.class_names, target)
    return images.relabelled(indices[images.labels], names)


def space_indices(folders: Sequence[str], target: LabelSpace) -> npt.NDArray[np.int64]:
    """Index in the space of each class folder: a WordNet id, one of the class's names, or the index itself, [C].

    Raises:
        BadInput: a name that the space does not have, or that several of its classes carry.
    """
    base = class_keys(target.within or target.name)
    keys = base if target.classes is None else tuple(base[i] for i in target.classes)
    by_key = {key: [i] for i, key in enumerate(keys)}
    by_name: dict[str, list[int]] = {}
    for i, described in enumerate(class_names(target)):
        for word in {_plain(word) for word in (described, *described.split(","))}:
            by_name.setdefault(word, []).append(i)
    indices = []
    for folder in folders:
        found = by_key.get(folder) or by_name.get(_plain(folder)) or []
        if not found and folder.isdecimal() and int(folder) < target.n_classes:
            found = [int(folder)]
        if len(found) != 1:
            what = f"is the name of {len(found)} classes of {target.name}; use" if found else "is unknown there;"
            raise BadInput("label_space", folder, f"a class of {target.name}: this folder {what} the WordNet id")
        indices.append(found[0])
    if len(set(indices)) != len(indices):
        raise BadInput("label_space", target.name, "one folder a class; two folders name the same class")
    return np.array(indices, dtype=np.int64)


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().lower()


def _located(spec: DatasetSpec, settings: Settings) -> str | None:
    if spec.source not in _ON_DISK:
        return spec.location
    if spec.location is None:
        raise BadInput("location", None, f"where the {spec.source} data set is")
    return str(inside_roots(Path(spec.location), settings.data_roots, "location"))
