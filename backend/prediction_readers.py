"""Files with predictions → `Predictions`, each value checked. One reader a format."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from backend.domain.errors import BadInput
from backend.prediction_files import CORE_COLUMNS, Predictions

_LISTS = ("top5", "p_top5")
_TOP = 5
_ROWS = 8192


@dataclass(frozen=True, eq=False)
class Imported:
    """Predictions of a file, and what else it says about the classes."""

    predictions: Predictions
    n_classes: int | None = None
    class_names: tuple[str, ...] | None = None


def read_csv(path: Path, model: str) -> Imported:
    """A CSV file with a header; ids are text, as they stand there."""
    types = {"sample_id": pa.string(), **dict.fromkeys(_LISTS, pa.string())}
    try:
        options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
        table = pyarrow.csv.read_csv(str(path), convert_options=options)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput("file", path.name, f"a CSV file with a header ({_first_line(error)})") from None
    return Imported(_from_columns(table, path))


def read_parquet(path: Path, model: str) -> Imported:
    """A Parquet file."""
    try:
        table = pyarrow.parquet.read_table(str(path))
    except (pa.ArrowException, OSError) as error:
        raise BadInput("file", path.name, f"a Parquet file that can be read ({_first_line(error)})") from None
    return Imported(_from_columns(table, path))


def read_npz(path: Path, model: str) -> Imported:
    """An NPZ file; of several models (`models` [M]) the row of this one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        raise BadInput("file", path.name, f"an NPZ file that can be read ({_first_line(error)})") from None
    labels = _first_of(arrays, "labels", "label")
    if labels is None:
        raise BadInput("labels", sorted(arrays), "an array 'labels' [N]")
    labels = _whole("label", labels)
    names = _first_of(arrays, "classes", "class_names")
    class_names = None if names is None else tuple(str(name) for name in names.tolist())
    ids = _first_of(arrays, "sample_ids", "sample_id")
    sample_ids = np.array([str(i) for i in (range(len(labels)) if ids is None else ids.tolist())], dtype=np.str_)
    if "logits" in arrays:
        logits = _row_of(model, arrays, "logits", 2)
        if len(logits) != len(labels):
            raise BadInput("logits", logits.shape, f"one row for each of the {len(labels)} labels")
        return Imported(
            _checked(from_logits(sample_ids, labels, logits)), n_classes=logits.shape[1], class_names=class_names
        )
    if "top1" not in arrays:
        raise BadInput("top1", sorted(arrays), "an array 'logits' [N, C] or 'top1' [N]")
    top1 = _whole("top1", _row_of(model, arrays, "top1", 1))
    extra: dict[str, Any] = {name: _floats(arrays[name]) for name in ("p_top1", "p_label", "p_top5") if name in arrays}
    if "top5" in arrays:
        extra["top5"] = _whole("top5", arrays["top5"], dimensions=2)
    return Imported(_checked(Predictions(sample_ids, labels, top1, **extra)), class_names=class_names)


READERS: dict[str, Callable[[Path, str], Imported]] = {"csv": read_csv, "parquet": read_parquet, "npz": read_npz}


def from_logits(
    sample_ids: npt.NDArray[np.str_], labels: npt.NDArray[np.int64], logits: npt.NDArray[Any]
) -> Predictions:
    """Predictions from logits [N, C]; of equal logits the class of lower index wins.

    Raises:
        BadInput: fewer than two classes, a label beyond them, NaN or infinity.
    """
    if logits.ndim != 2 or logits.dtype.kind != "f" or logits.shape[1] < 2:
        raise BadInput("logits", f"{logits.dtype} {logits.shape}", "floats [N, C], C at least 2")
    n, n_classes = logits.shape
    if n and int(labels.max()) >= n_classes:
        raise BadInput("label", int(labels.max()), f"a class below {n_classes}, as the logits have columns")
    k = min(_TOP, n_classes)
    top5, p_top5 = np.zeros((n, k), dtype=np.int64), np.zeros((n, k), dtype=np.float32)
    p_label = np.zeros(n, dtype=np.float32)
    for start in range(0, n, _ROWS):
        part = logits[start : start + _ROWS].astype(np.float64)
        if not np.isfinite(part).all():
            row = start + int(np.flatnonzero(~np.isfinite(part).all(axis=1))[0])
            raise BadInput("logits", "NaN or infinity", f"finite numbers (row {row}, sample {str(sample_ids[row])!r})")
        order = np.argsort(-part, axis=1, kind="stable")[:, :k]
        exponents = np.exp(part - part.max(axis=1, keepdims=True))
        probs = exponents / exponents.sum(axis=1, keepdims=True)
        rows = slice(start, start + len(part))
        top5[rows] = order
        p_top5[rows] = np.take_along_axis(probs, order, axis=1)
        p_label[rows] = probs[np.arange(len(part)), labels[rows]]
    return Predictions(sample_ids, labels, top5[:, 0].copy(), p_top5[:, 0].copy(), p_label, top5, p_top5)


def _from_columns(table: pa.Table, path: Path) -> Predictions:
    missing = [name for name in CORE_COLUMNS if name not in table.column_names]
    if missing:
        raise BadInput(
            "columns", table.column_names, f"a file with {', '.join(CORE_COLUMNS)}; {', '.join(missing)} is missing"
        )
    if not table.num_rows:
        raise BadInput("file", "0 rows", "at least one prediction")
    ids = table.column("sample_id")
    if ids.null_count:
        raise BadInput("sample_id", None, "an id in every row")
    extra: dict[str, Any] = {}
    for name in ("p_top1", "p_label"):
        if name in table.column_names and table.column(name).null_count < table.num_rows:
            extra[name] = _floats(_numbers(table, name))
    for name in _LISTS:
        if name in table.column_names and table.column(name).null_count < table.num_rows:
            values = _list_column(table.column(name), name)
            if values is not None:
                extra[name] = values
    return _checked(
        Predictions(
            np.array(pc.cast(ids, pa.string()).to_pylist(), dtype=np.str_),
            _whole("label", _numbers(table, "label")),
            _whole("top1", _numbers(table, "top1")),
            **extra,
        )
    )


def _numbers(table: pa.Table, name: str) -> npt.NDArray[Any]:
    column = table.column(name)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise BadInput(name, None, f"a value in every row (row {row + 1} has none)")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise BadInput(name, str(column[0].as_py()) if len(column) else str(column.type), "numbers")
    return np.asarray(column.to_numpy())


def _list_column(column: pa.ChunkedArray, name: str) -> npt.NDArray[Any] | None:
    """Lists, or text with values separated by spaces, [N, K]; None for text that is all empty."""
    values = column.to_pylist()
    if all(value in ("", None) for value in values):
        return None
    kind = np.int64 if name == "top5" else np.float32
    try:
        rows = [value.split() if isinstance(value, str) else value for value in values]
        return np.array(rows, dtype=kind)
    except (ValueError, TypeError, OverflowError):
        raise BadInput(name, values[0], "lists of one length, in CSV separated by spaces") from None


def _checked(predictions: Predictions) -> Predictions:
    """Raises:
    BadInput: no rows, ids given twice or blank, negative classes, probabilities that are none.
    """
    n = len(predictions)
    if n == 0:
        raise BadInput("file", "0 rows", "at least one prediction")
    if len(predictions.sample_ids) != n or len(predictions.top1) != n:
        raise BadInput("top1", len(predictions.top1), f"one prediction and one id for each of the {n} labels")
    unique, counts = np.unique(predictions.sample_ids, return_counts=True)
    if len(unique) < n:
        raise BadInput("sample_id", str(unique[counts > 1][0]), f"ids that are unique; {n - len(unique)} are repeated")
    if "" in unique[:1]:
        raise BadInput("sample_id", "", "an id in every row")
    for name in ("labels", "top1", "top5"):
        classes = getattr(predictions, name)
        if classes is not None and int(classes.min()) < 0:
            raise BadInput(name.removesuffix("s"), int(classes.min()), "class indices from 0")
    for name in ("p_top1", "p_label", "p_top5"):
        p = getattr(predictions, name)
        if p is not None and not (len(p) == n and np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1 + 1e-4):
            raise BadInput(name, "NaN or a number outside 0 to 1", f"probabilities, one for each of the {n} rows")
    top5, p_top5 = predictions.top5, predictions.p_top5
    if top5 is not None and (len(top5) != n or (p_top5 is not None and p_top5.shape != top5.shape)):
        raise BadInput("top5", top5.shape, f"lists for each of the {n} rows, as long as those of p_top5")
    return predictions


def _whole(name: str, values: npt.NDArray[Any], dimensions: int = 1) -> npt.NDArray[np.int64]:
    flat = values
    if flat.ndim != dimensions or flat.dtype.kind not in "iuf":
        raise BadInput(name, f"{flat.dtype} {flat.shape}", "whole numbers, one a sample")
    if flat.dtype.kind == "f" and (odd := ~np.isfinite(flat) | (flat != np.rint(flat))).any():
        raise BadInput(name, str(flat[odd][0]), "whole numbers in every row")
    if flat.size and float(flat.max()) > np.iinfo(np.int32).max:
        raise BadInput(name, float(flat.max()), "class indices")
    return flat.astype(np.int64)


def _floats(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if values.dtype.kind not in "iuf":
        raise BadInput("probabilities", str(values.dtype), "numbers")
    return values.astype(np.float32)


def _row_of(model: str, arrays: dict[str, npt.NDArray[Any]], name: str, dimensions: int) -> npt.NDArray[Any]:
    """The array itself, or this model's part of one that holds several models'."""
    values = arrays[name]
    if values.ndim == dimensions:
        return values
    models = arrays.get("models")
    if models is None or values.ndim != dimensions + 1 or len(models) != len(values):
        raise BadInput(name, values.shape, f"{dimensions} dimension(s), or one more with 'models' naming the rows")
    names = [str(one) for one in models.tolist()]
    if model not in names:
        raise BadInput("model", model, f"one of the models in the file: {', '.join(names)}")
    return np.asarray(values[names.index(model)])


def _first_of(arrays: dict[str, npt.NDArray[Any]], *names: str) -> npt.NDArray[Any] | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
