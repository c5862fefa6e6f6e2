"""Predictions of models that were run elsewhere: import (CSV, Parquet, NPZ) and export.

CSV and Parquet: columns `sample_id, label, top1` and, where known, `p_top1, p_label, top5, p_top5` (in CSV the lists
are separated by spaces). NPZ: `logits` [N, C] or `top1` [N], with `labels` [N] and, if the rows have names,
`sample_ids`; `top1` [M, N] with `models` [M] is allowed, the row of the model's name is taken. Without names the row
number is the id.

Everything is checked before anything is written, and the pairs with all other models of the split are counted before
the call returns. A model or data set that the catalog does not know becomes an external entry.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from sqlalchemy import Connection

from backend.domain.catalog import Model
from backend.domain.datasets import Dataset, Split
from backend.domain.errors import BadInput, NotFound
from backend.domain.evaluations import PREDICTION_COLUMNS, Evaluation
from backend.domain.records import content_hash
from backend.pairing import align, refresh_pairs
from backend.prediction_files import Predictions, load
from backend.prediction_readers import READERS, Imported
from backend.settings import Settings
from backend.store import artifacts, catalog, results
from backend.store.results import StoredEvaluation
from backend.store.session import Store

_NEW_SPLIT = "val"
_FORMATS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".npz": "npz"}


def import_predictions(
    store: Store,
    settings: Settings,
    path: Path,
    *,
    model: str,
    dataset: str,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Evaluation:
    """Take over what a model said elsewhere, and count its flips against every other model of the split.

    Args:
        split: Default: the data set's only one, else its val, else its test; `val` where the data set is new.
        class_names: Of a data set that is new.

    Raises:
        BadInput: a file that cannot be read, missing columns, ids given twice, classes out of range, NaN.
        Conflict: labels that disagree with those of models that are there.
    """
    kind = file_format(path)
    if not path.is_file():
        raise BadInput("file", str(path), "an existing file")
    imported = READERS[kind](path, model)
    predictions = imported.predictions
    with store.read() as connection:
        known_model, known = _known_model(connection, model), _known_dataset(connection, dataset)
        target = _described(known, dataset, split, imported, None if class_names is None else tuple(class_names))
        part = target.evaluation_split(split) if known is not None else (split or _NEW_SPLIT)
        _check_classes(predictions, target)
        _check_size(predictions, target, part)
        current = results.current_evaluations(connection, dataset, part) if known is not None else []
    content = predictions.to_parquet()
    key = content_hash("import", model, dataset, part, hashlib.sha256(content).hexdigest())
    evaluation = Evaluation(
        id=uuid4(),
        model=model,
        dataset=dataset,
        split=part,
        subset="imported",
        dtype="unknown",
        state="ready",
        accuracy=predictions.accuracy,
        n_samples=len(predictions),
        n_classes=target.n_classes,
        provenance={"imported_from": path.name, "format": kind, "sha256": artifacts.measure(path)[1]},
        created_at=datetime.now(UTC),
    )
    _check_labels(evaluation, predictions, [one for one in current if one.model != model], settings)
    uri, _, sha256 = artifacts.put(settings.artifacts, f"predictions/{key}.parquet", content)
    with store.write() as connection:
        if known_model is None:
            catalog.add_model(connection, _external_model(model, target.n_classes))
        if known is None:
            catalog.add_dataset(connection, target)
        elif known.source == "external":
            catalog.extend_external(connection, target)
        stored = results.record_evaluation(
            connection, evaluation, key=key, predictions_uri=uri, predictions_sha256=sha256
        )
    refresh_pairs(store, settings, dataset, part, changed=[model])
    return stored


def export_predictions(
    store: Store, settings: Settings, path: Path, *, model: str, dataset: str, split: str | None = None
) -> int:
    """Write the current predictions of a model as CSV, Parquet or NPZ, by the file's name; returns the rows written."""
    kind = file_format(path)
    with store.read() as connection:
        part = catalog.get_dataset(connection, dataset).evaluation_split(split)
        stored = results.current_evaluation(connection, model, dataset, part)
    predictions = load(stored, cache=settings.data_dir / "cache")
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        WRITERS[kind](predictions, temporary)
        temporary.replace(path)
    except OSError as error:
        raise BadInput("file", str(path), f"a place that can be written to ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return len(predictions)


def file_format(path: Path) -> str:
    """csv, parquet or npz, by the file's name.

    Raises:
        BadInput: another ending.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise BadInput("file", str(path), f"a file that ends in {', '.join(_FORMATS)}")
    return kind


def _write_csv(predictions: Predictions, path: Path) -> None:
    table = predictions.to_table()
    columns = [table.column(name).to_pylist() for name in PREDICTION_COLUMNS]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(PREDICTION_COLUMNS)
        for row in zip(*columns, strict=True):
            writer.writerow([" ".join(map(str, value)) if isinstance(value, list) else value for value in row])


def _write_parquet(predictions: Predictions, path: Path) -> None:
    path.write_bytes(predictions.to_parquet())


def _write_npz(predictions: Predictions, path: Path) -> None:
    arrays: dict[str, Any] = {
        "sample_ids": predictions.sample_ids,
        "labels": predictions.labels,
        "top1": predictions.top1,
        "p_top1": predictions.p_top1,
        "p_label": predictions.p_label,
        "top5": predictions.top5,
        "p_top5": predictions.p_top5,
    }
    with open(path, "wb") as file:
        np.savez_compressed(file, **{name: value for name, value in arrays.items() if value is not None})


WRITERS = {"csv": _write_csv, "parquet": _write_parquet, "npz": _write_npz}


def _known_model(connection: Connection, name: str) -> Model | None:
    try:
        return catalog.get_model(connection, name)
    except NotFound:
        return None


def _known_dataset(connection: Connection, name: str) -> Dataset | None:
    try:
        return catalog.get_dataset(connection, name)
    except NotFound:
        return None


def _described(
    known: Dataset | None, name: str, split: str | None, imported: Imported, class_names: tuple[str, ...] | None
) -> Dataset:
    """The data set as it is after the import: an external one knows at least the classes and samples of this file."""
    predictions = imported.predictions
    if known is not None and known.source != "external":
        return known
    n_classes = max(imported.n_classes or 0, int(max(predictions.labels.max(), predictions.top1.max())) + 1)
    names = class_names or imported.class_names or (known.class_names if known is not None else ())
    named = known is not None and not all(text.isdecimal() for text in known.class_names)
    if known is not None and named and names[: len(known.class_names)] != known.class_names:
        raise BadInput("class_names", list(names[:3]), f"the class names that {name!r} already has")
    if class_names is None and all(text.isdecimal() for text in names):
        names = tuple(str(i) for i in range(max(n_classes, len(names))))
    part = split or (known.evaluation_split(None) if known is not None else _NEW_SPLIT)
    before = known.splits.get(part) if known is not None else None
    splits = dict(known.splits) if known is not None else {}
    if before is None or before.n_samples < len(predictions):
        text = json.dumps([predictions.sample_ids.tolist(), predictions.labels.tolist()]).encode()
        splits[part] = Split(n_samples=len(predictions), fingerprint=hashlib.sha256(text).hexdigest())
    return Dataset(
        id=known.id if known is not None else uuid4(),
        name=name,
        source="external",
        class_names=names,
        splits=splits,
        created_at=datetime.now(UTC),
    )


def _external_model(name: str, num_classes: int) -> Model:
    return Model(id=uuid4(), name=name, source="external", num_classes=num_classes, created_at=datetime.now(UTC))


def _check_classes(predictions: Predictions, dataset: Dataset) -> None:
    for column, values in (("label", predictions.labels), ("top1", predictions.top1)):
        if int(values.max()) >= dataset.n_classes:
            i = int(values.argmax())
            raise BadInput(
                column,
                int(values[i]),
                f"a class of {dataset.name!r}, 0 to {dataset.n_classes - 1} (sample '{predictions.sample_ids[i]}')",
            )


def _check_size(predictions: Predictions, dataset: Dataset, split: str) -> None:
    most = dataset.splits[split].n_samples if split in dataset.splits else len(predictions)
    if len(predictions) > most:
        raise BadInput("file", f"{len(predictions)} rows", f"at most the {most} samples of {dataset.name}/{split}")


def _check_labels(
    evaluation: Evaluation, predictions: Predictions, others: list[StoredEvaluation], settings: Settings
) -> None:
    """Labels that agree with one model that was there agree with all of them: those were checked alike."""
    unseen = set(predictions.sample_ids.tolist())
    wanted = len(unseen)
    for other in sorted(others, key=lambda one: -one.evaluation.n_samples):
        if not unseen:
            return
        there = load(other, (), cache=settings.data_dir / "cache")
        align([other, StoredEvaluation(evaluation, "")], [there, predictions])
        unseen -= set(there.sample_ids.tolist())
    if others and len(unseen) == wanted:
        expected = f"ids of the samples that other models of {evaluation.dataset}/{evaluation.split} answered"
        raise BadInput("sample_id", str(predictions.sample_ids[0]), f"{expected}, such as {str(there.sample_ids[0])!r}")
