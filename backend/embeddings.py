"""Embedding tables of class names: one vector a class, whoever made them (CLIP's text encoder, a sentence model).

An npz file with `vectors` [K, E] (or `embedding`), and what the rows are: `classes` [K], indices in the data set; or
`names` [K], matched with the data set's class names; neither where there is one row a class. Classes without a vector
are left out of every mean, and the coverage is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.domain.datasets import Dataset
from backend.domain.errors import BadInput
from backend.domain.similarity import embedding_table
from backend.settings import Settings

WANTED = "an npz file with `vectors` [K, E], and `classes` [K] or `names` [K] where K is not all classes in order"


def of_dataset(settings: Settings, dataset: Dataset) -> NDArray[np.float64] | None:
    """The table somebody put under `<data directory>/embeddings/`: `<data set>.npz`, else `<label space>.npz`.

    Raises:
        BadInput: a file of another shape.
    """
    for name in (dataset.name, dataset.label_space):
        path = settings.data_dir / "embeddings" / f"{name}.npz"
        if name and path.is_file():
            return read_embeddings(path, dataset.class_names)
    return None


def read_embeddings(path: Path, class_names: Sequence[str]) -> NDArray[np.float64]:
    """The table [C, E] of a file, NaN where a class has no vector; read once while the file does not change.

    Raises:
        BadInput: no such file, or one of another shape; or none of its rows is a class of the data set.
    """
    if not path.is_file():
        raise BadInput("embeddings", str(path), WANTED)
    return _read(path, path.stat().st_mtime, tuple(class_names))


@lru_cache(maxsize=8)
def _read(path: Path, changed: float, class_names: tuple[str, ...]) -> NDArray[np.float64]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            vectors = np.asarray(stored["vectors" if "vectors" in stored else "embedding"], dtype=np.float64)
            classes = stored["classes"].tolist() if "classes" in stored else None
            names = stored["names"].tolist() if "names" in stored else None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BadInput("embeddings", path.name, f"{WANTED} ({error})") from None
    if classes is None:
        classes = list(range(len(vectors))) if names is None else _matched(names, class_names)
    if vectors.ndim != 2 or len(classes) != len(vectors):
        raise BadInput("embeddings", path.name, WANTED)
    found = {int(c): vector for c, vector in zip(classes, vectors, strict=True) if int(c) >= 0 or names is None}
    if not found:
        raise BadInput("embeddings", path.name, "names of which one at least is a class of the data set")
    return embedding_table(found, len(class_names))


def _matched(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Class index of each name, −1 for none; letter case and underscores aside."""
    at = {_plain(name): index for index, name in reversed(list(enumerate(class_names)))}
    return [at.get(_plain(str(name)), -1) for name in names]


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
