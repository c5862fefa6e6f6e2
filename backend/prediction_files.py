"""What one model says about each of N samples, and its file: Parquet, one row a sample (`PREDICTION_COLUMNS`).

Indices are classes of the data set's space. Probabilities and the five best classes are there when a scan (or an
import of logits) made the file; imported top-1 classes alone are enough to count flips.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from backend.domain.errors import BadInput
from backend.domain.evaluations import PREDICTION_COLUMNS
from backend.store import artifacts
from backend.store.results import StoredEvaluation

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Strings = npt.NDArray[np.str_]

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("label", pa.int32()),
        ("top1", pa.int32()),
        ("p_top1", pa.float32()),
        ("p_label", pa.float32()),
        ("top5", pa.list_(pa.int32())),
        ("p_top5", pa.list_(pa.float32())),
    ]
)
CORE_COLUMNS = PREDICTION_COLUMNS[:3]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Columns of N samples: `sample_ids`, `labels`, `top1` [N]; `p_top1`, `p_label` [N] and `top5`, `p_top5` [N, K],
    K = min(5, C), or None where they are not known."""

    sample_ids: Strings
    labels: Ints
    top1: Ints
    p_top1: Floats | None = None
    p_label: Floats | None = None
    top5: Ints | None = None
    p_top5: Floats | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.top1 == self.labels)

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.correct)) if len(self) else 0.0

    def to_table(self) -> pa.Table:
        n = len(self)
        columns = [
            pa.array(self.sample_ids.tolist(), pa.string()),
            pa.array(self.labels, pa.int32()),
            pa.array(self.top1, pa.int32()),
            *(
                pa.nulls(n, pa.float32()) if v is None else pa.array(v, pa.float32())
                for v in (self.p_top1, self.p_label)
            ),
            _lists(self.top5, n, pa.int32()),
            _lists(self.p_top5, n, pa.float32()),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)

    def to_parquet(self) -> bytes:
        """The file: the same predictions give the same bytes."""
        sink = io.BytesIO()
        pq.write_table(self.to_table(), sink, compression="zstd")
        return sink.getvalue()


def from_table(table: pa.Table) -> Predictions:
    """Columns of a table that was read with some or all of `PREDICTION_COLUMNS`."""
    names = set(table.column_names)

    def floats(name: str) -> Floats | None:
        if name not in names or table.column(name).null_count:
            return None
        return np.asarray(table.column(name).to_numpy(), dtype=np.float32)

    return Predictions(
        np.array(table.column("sample_id").to_pylist(), dtype=np.str_),
        table.column("label").to_numpy().astype(np.int64),
        table.column("top1").to_numpy().astype(np.int64),
        floats("p_top1"),
        floats("p_label"),
        _matrix(table, "top5", np.int64),
        _matrix(table, "p_top5", np.float32),
    )


def read_parquet(source: Path | bytes, columns: Sequence[str] | None = None) -> Predictions:
    """Read a predictions file, or just some columns of it (the first three always)."""
    wanted = None if columns is None else list(dict.fromkeys((*CORE_COLUMNS, *columns)))
    file = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
    try:
        return from_table(pq.read_table(file, columns=wanted))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise BadInput("predictions", str(source)[:100], f"a predictions file ({error})") from None


def load(stored: StoredEvaluation, columns: Sequence[str] | None = None, *, cache: Path | None = None) -> Predictions:
    """The predictions of an evaluation, checked against the sum that was stored with them.

    Args:
        columns: Beyond `sample_id`, `label` and `top1`; default all there are.
        cache: Where files of remote storage are kept.

    Raises:
        BadInput: the evaluation failed, so it has none, or the file is not the one that was stored.
    """
    if stored.predictions_uri is None:
        reason = stored.evaluation.reason
        why = f"this one failed: {reason}" if reason else "of this one only the counts were stored"
        raise BadInput("evaluation", stored.model, f"one with predictions; {why}")
    return read_parquet(artifacts.fetch(stored.predictions_uri, stored.predictions_sha256, cache=cache), columns)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """The rows of several parts, one after the other."""
    return from_table(pa.concat_tables([part.to_table() for part in parts]))


def _lists(values: npt.NDArray[Any] | None, n: int, kind: pa.DataType) -> pa.Array:
    if values is None:
        return pa.nulls(n, pa.list_(kind))
    width = values.shape[1]
    offsets = np.arange(0, n * width + 1, width, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1), kind))


def _matrix(table: pa.Table, name: str, dtype: Any) -> npt.NDArray[Any] | None:
    """A list column of one width as [N, K]; None where it is missing or rows differ in width."""
    if name not in table.column_names or table.num_rows == 0 or table.column(name).null_count:
        return None
    column = table.column(name).combine_chunks()
    flat = column.flatten().to_numpy()
    if len(flat) == 0 or len(flat) % len(column):
        return None
    width = len(flat) // len(column)
    lengths = np.diff(column.offsets.to_numpy())
    return flat.reshape(len(column), width).astype(dtype) if (lengths == width).all() else None
