"""Small JPEGs of a split's images in one packed file, so that the web process never needs the images themselves.

One Arrow file a split, under its fingerprint: `sample_id` and `jpeg`, read through a memory map. A scan packs what it
decodes; later scans of more samples add theirs.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
from PIL import Image

from backend.settings import Settings
from backend.store import artifacts

MEDIA_TYPE = "image/jpeg"
SIDE = 96
MAX_PACKED = 200_000  # about half a gigabyte; beyond it no more are added
_QUALITY = 80
_SCHEMA = pa.schema([("sample_id", pa.string()), ("jpeg", pa.binary())])


def thumbnail(settings: Settings, fingerprint: str, sample_id: str) -> bytes | None:
    """The JPEG of one sample of the split with this fingerprint, or None where none was packed."""
    shard = _open(settings, fingerprint)
    row = None if shard is None else shard.rows.get(sample_id)
    return None if row is None or shard is None else shard.jpegs[row].as_py()


def packed_ids(settings: Settings, fingerprint: str) -> frozenset[str]:
    """Ids of the samples that have a thumbnail."""
    shard = _open(settings, fingerprint)
    return frozenset() if shard is None else frozenset(shard.rows)


def pack(settings: Settings, fingerprint: str, added: Mapping[str, bytes]) -> int:
    """Add JPEGs by sample id to those of the split; the file is replaced whole. Returns how many there are then."""
    shard = _open(settings, fingerprint)
    old = {} if shard is None else {sample_id: shard.jpegs[row].as_py() for sample_id, row in shard.rows.items()}
    merged = {**old, **added}
    if len(merged) == len(old):
        return len(old)
    sink = io.BytesIO()
    table = pa.table({"sample_id": list(merged), "jpeg": pa.array(merged.values(), pa.binary())}, schema=_SCHEMA)
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_table(table, max_chunksize=len(merged))
    _, _, sha256 = artifacts.put(settings.artifacts, f"{_place(fingerprint)}.arrow", sink.getvalue())
    artifacts.put(settings.artifacts, f"{_place(fingerprint)}.sha256", sha256.encode())
    return len(merged)


def make(image: Image.Image) -> bytes:
    """The thumbnail of an RGB picture: the whole of it, at most `SIDE` pixels a side; small ones as they are."""
    width, height = image.size
    scale = max(width, height) / SIDE
    if scale > 1:
        coarse = image.reduce(int(scale)) if scale >= 2 else image
        image = coarse.resize((max(1, round(width / scale)), max(1, round(height / scale))), Image.Resampling.BILINEAR)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=_QUALITY)
    return sink.getvalue()


class _Shard:
    def __init__(self, path: Path) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.rows = {sample_id: row for row, sample_id in enumerate(table.column("sample_id").to_pylist())}
        self.jpegs = table.column("jpeg")


def _open(settings: Settings, fingerprint: str) -> _Shard | None:
    base = settings.artifacts.rstrip("/")
    try:
        sha256 = artifacts.read(f"{base}/{_place(fingerprint)}.sha256").decode()
    except FileNotFoundError:
        return None
    return _load(f"{base}/{_place(fingerprint)}.arrow", sha256, settings.data_dir / "cache")


@lru_cache(maxsize=8)
def _load(uri: str, sha256: str, cache: Path) -> _Shard:
    return _Shard(artifacts.fetch(uri, sha256, cache=cache))


def _place(fingerprint: str) -> str:
    return f"thumbnails/{fingerprint}"
