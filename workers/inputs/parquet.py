"""Parquet files with an image column and a label column, as Hugging Face writes them.

Images are file bytes (binary, or a struct with `bytes`), labels whole numbers or names. A file is one split, `all`; in
a folder the files' names say the split (`train-00000-of-00002.parquet`, `test.parquet`). Options: `image` and `label`
name the columns. `sample_id` is the row number in the split.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from backend.domain.errors import BadInput
from backend.settings import Settings
from workers.inputs.images import EncodedImages, Images

_WHOLE_SPLIT = "all"
_KEPT_GROUPS = 4


def read_parquet(location: str | None, options: dict[str, Any], settings: Settings) -> dict[str, Images]:
    """The splits of a Parquet file or a folder of them."""
    unknown = sorted(set(options) - {"image", "label"})
    if unknown:
        raise BadInput("options", unknown, "'image' and 'label' (names of columns)")
    image, label = str(options.get("image", "image")), str(options.get("label", "label"))
    path = Path(location or "")
    splits = {name: _Rows(files, image, label) for name, files in _files(path).items()}
    names = _class_names(list(splits.values()))
    index = {name: i for i, name in enumerate(names)}
    images: dict[str, Images] = {}
    for split, rows in splits.items():
        labels = [index[value] if isinstance(value, str) else value for value in rows.labels]
        if min(labels) < 0 or max(labels) >= len(names):
            raise BadInput("labels", max(labels), f"class indices from 0 to {len(names) - 1} in split {split!r}")
        images[split] = EncodedImages(
            [str(i) for i in range(len(labels))], labels, names, rows.read, rows.evidence, settings.max_image_pixels
        )
    return images


class _Rows:
    """The rows of several Parquet files in a row; the last few row groups of images stay in memory."""

    def __init__(self, files: Sequence[Path], image: str, label: str) -> None:
        self._image = image
        self._lock = threading.Lock()
        self._groups: list[tuple[pq.ParquetFile, int]] = []
        self._kept: dict[int, pa.ChunkedArray] = {}
        starts = [0]
        self.labels: list[Any] = []
        self.names: list[str] | None = None
        for path in files:
            try:
                file = pq.ParquetFile(path)
                columns = file.schema_arrow.names
                for column in (image, label):
                    if column not in columns:
                        raise BadInput(
                            "location", path.name, f"a column {column!r}; it has {', '.join(columns)} (see the options)"
                        )
                self.labels += file.read(columns=[label]).column(0).to_pylist()
            except (OSError, pa.ArrowException) as error:
                raise BadInput("location", str(path), f"a Parquet file that can be read ({error})") from None
            self.names = self.names or _declared_names(file.schema_arrow, label)
            for group in range(file.num_row_groups):
                self._groups.append((file, group))
                starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        self._starts = np.array(starts)
        if not self.labels:
            raise BadInput("location", ", ".join(path.name for path in files), "rows; there are none")
        for row, value in enumerate(self.labels):
            if isinstance(value, bool) or not isinstance(value, (int, str)):
                raise BadInput("label", value, f"a whole number or a name in every row; row {row} has none")

    def read(self, i: int) -> bytes:
        group = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self._bytes(self._column(group)[i - int(self._starts[group])].as_py(), i)

    def evidence(self) -> Iterable[bytes]:
        for group in range(len(self._groups)):
            for offset, value in enumerate(self._column(group)):
                try:
                    yield self._bytes(value.as_py(), int(self._starts[group]) + offset)
                except OSError:
                    yield b""

    def _column(self, group: int) -> pa.ChunkedArray:
        with self._lock:
            if group not in self._kept:
                while len(self._kept) >= _KEPT_GROUPS:
                    self._kept.pop(next(iter(self._kept)))
                file, number = self._groups[group]
                self._kept[group] = file.read_row_group(number, columns=[self._image]).column(0)
            return self._kept[group]

    @staticmethod
    def _bytes(value: Any, row: int) -> bytes:
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise OSError(f"row {row} holds no image bytes")
        return content


def _files(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {_WHOLE_SPLIT: [path]}
    found = sorted(path.rglob("*.parquet"))
    if not found:
        raise BadInput("location", str(path), "a Parquet file or a folder of them")
    splits: dict[str, list[Path]] = {}
    for file in found:
        splits.setdefault(file.stem.split("-")[0], []).append(file)
    return splits


def _class_names(splits: Sequence[_Rows]) -> list[str]:
    declared = next((rows.names for rows in splits if rows.names), None)
    values = {value for rows in splits for value in rows.labels}
    texts = sorted(value for value in values if isinstance(value, str))
    if texts and len(texts) != len(values):
        raise BadInput("label", texts[0], "labels that are all names or all whole numbers")
    if texts and not (declared and set(texts) <= set(declared)):
        return texts
    return declared or [str(i) for i in range(max(values) + 1)]


def _declared_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Class names from the metadata that Hugging Face writes into the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None
