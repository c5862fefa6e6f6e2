"""From the evaluations on a split to the flips of every ordered pair: read, align, count, store.

M models, N samples. Pairs join on `sample_id`: a pair is counted on the samples that both models answered and whose
class both heads can express. The result never depends on the order in which models came.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backend.domain.errors import Conflict
from backend.domain.flips import PairTable, flip_pairs
from backend.prediction_files import Predictions, load
from backend.settings import Settings
from backend.store import catalog, results
from backend.store.results import StoredEvaluation
from backend.store.session import Store

_TRIES = 5


@dataclass(frozen=True, eq=False)
class Aligned:
    """Predictions of M models on the union of their N samples.

    `correct` [M, N]; `compared` [M, N] says which model answered which sample (None: all of them all); `labels` [N].
    """

    models: tuple[str, ...]
    sample_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]
    compared: npt.NDArray[np.bool_] | None


def refresh_pairs(
    store: Store, settings: Settings, dataset: str, split: str, *, changed: Collection[str] | None = None
) -> int:
    """Count the flips of the models scored on a split and store them; returns how many pairs there are now.

    Args:
        changed: Models whose evaluations are new; pairs of two others are left as they are, unless they are missing.
            Default: everything anew. The outcome is the same.

    Raises:
        Conflict: two models disagree on the label of a sample.
    """
    for _ in range(_TRIES):
        with store.read() as connection:
            n_classes = catalog.get_dataset(connection, dataset).n_classes
            current = results.current_evaluations(connection, dataset, split)
            paired = results.paired_models(connection, dataset, split)
        table, models = count_pairs(current, n_classes, settings)
        only = None if changed is None else (set(changed) | (set(models) ^ paired))
        with store.write() as connection:
            now = results.current_evaluations(connection, dataset, split)
            if _versions(now) != _versions(current):
                continue  # somebody else added an evaluation meanwhile: count again
            results.replace_pairs(connection, dataset, split, table, models, only=only)
        return len(table)
    raise Conflict(f"the evaluations on {dataset}/{split} keep changing; count its flips again later")


def count_pairs(
    current: Sequence[StoredEvaluation], n_classes: int, settings: Settings
) -> tuple[PairTable, tuple[str, ...]]:
    """The pair table of these evaluations, and the model names in its order."""
    aligned = align(current, [load(one, (), cache=settings.data_dir / "cache") for one in current])
    if not aligned.models or not aligned.labels.size:
        return _no_pairs(), aligned.models
    n_classes = max(n_classes, int(aligned.labels.max()) + 1)
    return flip_pairs(aligned.correct, aligned.labels, n_classes, aligned.compared), aligned.models


def align(evaluations: Sequence[StoredEvaluation], predictions: Sequence[Predictions]) -> Aligned:
    """Put the predictions of several models on one axis of samples.

    Raises:
        Conflict: a sample has two labels.
    """
    models = tuple(one.model for one in evaluations)
    if not predictions:
        return Aligned(models, np.array([], dtype=np.str_), np.array([], dtype=np.int64), np.zeros((0, 0), bool), None)
    ids, positions = _union([item.sample_ids for item in predictions])
    labels = np.full(len(ids), -1, dtype=np.int64)
    correct = np.zeros((len(models), len(ids)), dtype=np.bool_)
    compared = np.zeros_like(correct)
    for row, (one, item, at) in enumerate(zip(evaluations, predictions, positions, strict=True)):
        known = labels[at]
        wrong = np.flatnonzero((known >= 0) & (known != item.labels))
        if wrong.size:
            i = int(wrong[0])
            raise Conflict(
                f"the labels of sample {str(item.sample_ids[i])!r} disagree: {item.labels[i]} with {one.model}, "
                f"{known[i]} with the models before it ({wrong.size} samples in all); pairs need one truth"
            )
        labels[at] = item.labels
        correct[row, at] = item.correct
        compared[row, at] = ~np.isin(item.labels, one.evaluation.provenance.get("inexpressible", []))
    return Aligned(models, ids, labels, correct, None if compared.all() else compared)


def _union(columns: Sequence[npt.NDArray[np.str_]]) -> tuple[npt.NDArray[np.str_], list[npt.NDArray[np.int64]]]:
    """All sample ids, and where each column's are among them. The usual case, equal columns, costs a comparison."""
    first = columns[0]
    same = [column is first or (len(column) == len(first) and bool((column == first).all())) for column in columns]
    everywhere = np.arange(len(first), dtype=np.int64)
    if all(same):
        return first, [everywhere] * len(columns)
    index = {sample_id: i for i, sample_id in enumerate(first.tolist())}
    positions = []
    for column, equal in zip(columns, same, strict=True):
        if equal:
            positions.append(everywhere)
            continue
        places = [index.setdefault(sample_id, len(index)) for sample_id in column.tolist()]
        positions.append(np.array(places, dtype=np.int64))
    return np.array(list(index), dtype=np.str_), positions


def _versions(current: Sequence[StoredEvaluation]) -> list[tuple[str, str | None]]:
    return [(str(one.evaluation.id), one.predictions_sha256) for one in current]


def _no_pairs() -> PairTable:
    empty = flip_pairs(np.zeros((1, 1), dtype=np.bool_), np.zeros(1, dtype=np.int64), 1)
    return empty
