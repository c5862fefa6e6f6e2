"""What a scan has done so far: numbered Parquet parts under the evaluation's key, committed one by one.

A part is there when its checksum file is, which is written after it; whoever scans the same key goes on behind the last
committed part, whether it is the same job after a kill or another one. A part that is damaged, or that belongs to other
samples, is done again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from backend.domain.errors import BadInput
from backend.domain.records import content_hash
from backend.prediction_files import Predictions, from_table
from backend.store import artifacts

PART_SAMPLES = 4096
_ABOUT = b"zoograft"


@dataclass(frozen=True, eq=False)
class Part:
    """Up to `PART_SAMPLES` samples of one model: predictions of those that could be read, why the others could not
    (sample id → reason), and logits [N, C] where they are kept."""

    predictions: Predictions
    bad: dict[str, str] = field(default_factory=dict)
    logits: npt.NDArray[np.float32] | None = None


class Parts:
    """The committed parts of one evaluation.

    Args:
        base: The artifacts' folder or URL.
        key: The evaluation's key by content.
        with_logits: Whether a part counts only with its logits.
    """

    def __init__(self, base: str, key: str, *, with_logits: bool = False) -> None:
        self._base, self._with_logits = base, with_logits
        self._place = f"scans/{key}{'-logits' if with_logits else ''}"

    def commit(self, number: int, part: Part, sample_ids: Sequence[str]) -> None:
        """Store a part of these samples; when this returns it survives a kill."""
        about = {"samples": content_hash(list(sample_ids)), "bad": part.bad}
        table = part.predictions.to_table().replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        sums = [artifacts.put(self._base, self._name(number, "parquet"), sink.getvalue())[2]]
        if self._with_logits:
            assert part.logits is not None
            sink = io.BytesIO()
            np.save(sink, part.logits, allow_pickle=False)
            sums.append(artifacts.put(self._base, self._name(number, "npy"), sink.getvalue())[2])
        artifacts.put(self._base, self._name(number, "sha256"), "\n".join(sums).encode())

    def find(self, number: int, sample_ids: Sequence[str]) -> Part | None:
        """The committed part of exactly these samples, if there is one and it is whole."""
        try:
            sums = artifacts.read(self._uri(number, "sha256")).decode().split("\n")
            table = pq.read_table(pa.BufferReader(artifacts.read(self._uri(number, "parquet"), sums[0])))
            about = json.loads((table.schema.metadata or {})[_ABOUT])
            logits = None
            if self._with_logits:
                content = artifacts.read(self._uri(number, "npy"), sums[1])
                logits = np.load(io.BytesIO(content), allow_pickle=False)
        except (FileNotFoundError, BadInput, pa.ArrowException, KeyError, ValueError, IndexError):
            return None
        if about["samples"] != content_hash(list(sample_ids)):
            return None
        return Part(from_table(table), about["bad"], logits)

    def clear(self, count: int) -> None:
        """Remove the parts, once they were merged."""
        for number in range(count):
            for kind in ("sha256", "parquet", *(["npy"] if self._with_logits else [])):
                artifacts.remove(self._uri(number, kind))

    def _name(self, number: int, kind: str) -> str:
        return f"{self._place}/{number:05d}.{kind}"

    def _uri(self, number: int, kind: str) -> str:
        return f"{self._base.rstrip('/')}/{self._name(number, kind)}"
