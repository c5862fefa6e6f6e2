"""webdataset: folders of plain tar shards, where the files of one sample share a key (`0001.jpg`, `0001.cls`).

timm's own reader only streams, and passes over what it cannot decode; a scan needs every sample by number and a list
of the bad ones, so the shards are indexed here and read in place. The split is the shards' name up to the first dash
(`val-0000.tar`); shards of one name that say nothing are the split `all`. The label is the `.cls` file, or the field of
the `.json` file that the option `label` names. `class_names` is an option. `sample_id` is the image's path in its tar.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.domain.errors import BadInput
from backend.settings import Settings
from workers.inputs.archive import MAX_MEMBER_BYTES
from workers.inputs.decoding import EXTENSIONS
from workers.inputs.imagefolder import SPLIT_NAMES
from workers.inputs.images import EncodedImages, Images

_WHOLE_SPLIT = "all"
_MAX_LABEL_BYTES = 1024**2


@dataclass(frozen=True)
class _Sample:
    sample_id: str
    label: int
    shard: Path
    offset: int
    size: int


def read_webdataset(location: str | None, options: dict[str, Any], settings: Settings) -> dict[str, Images]:
    """The splits of a tar shard or a folder of them."""
    unknown = sorted(set(options) - {"label", "class_names"})
    if unknown:
        raise BadInput("options", unknown, "'label' (a field of the json files) and 'class_names'")
    path = Path(location or "")
    shards = [path] if path.is_file() else sorted(path.glob("*.tar"))
    if not shards:
        raise BadInput("location", location, "a tar shard or a folder of them")
    by_split: dict[str, list[_Sample]] = {}
    for shard in shards:
        by_split.setdefault(_split_of(shard), []).extend(_samples(shard, options.get("label")))
    names = [str(name) for name in options.get("class_names", ())]
    top = max(sample.label for samples in by_split.values() for sample in samples)
    if names and top >= len(names):
        raise BadInput("options.class_names", len(names), f"at least {top + 1} names, labels go up to {top}")
    names = names or [str(i) for i in range(top + 1)]
    return {split: _images(samples, names, settings.max_image_pixels) for split, samples in by_split.items()}


def _split_of(shard: Path) -> str:
    name = shard.name.split(".")[0].split("-")[0]
    return name if name in SPLIT_NAMES else _WHOLE_SPLIT


def _images(samples: list[_Sample], names: list[str], max_pixels: int) -> Images:
    files = {shard: os.open(shard, os.O_RDONLY) for shard in {sample.shard for sample in samples}}

    def read(i: int) -> bytes:
        sample = samples[i]
        if sample.size > MAX_MEMBER_BYTES:
            raise OSError(f"{sample.size} bytes are more than the limit of {MAX_MEMBER_BYTES}")
        return os.pread(files[sample.shard], sample.size, sample.offset)

    def evidence() -> Iterable[bytes]:
        return (read(i) for i in range(len(samples)))

    return EncodedImages(
        [sample.sample_id for sample in samples],
        [sample.label for sample in samples],
        names,
        read,
        evidence,
        max_pixels,
    )


def _samples(shard: Path, label_field: str | None) -> list[_Sample]:
    """The samples of a shard in order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    suffix = ".json" if label_field else ".cls"
    try:
        with tarfile.open(shard, "r:") as file:
            for member in file:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, dot, extension = base.partition(".")
                key = f"{folder}/{stem}"
                if (dot + extension).lower() in EXTENSIONS:
                    if key in images:
                        raise BadInput("location", f"{shard.name}: {member.name}", "one image for each key")
                    images[key] = member
                elif dot + extension == suffix:
                    labels[key] = _label(shard, file, member, label_field)
    except (OSError, tarfile.TarError) as error:
        raise BadInput("location", str(shard), f"an uncompressed tar that can be read ({error})") from None
    for key, member in images.items():
        if key not in labels:
            raise BadInput("location", f"{shard.name}: {member.name}", f"a label beside every image ({suffix} file)")
    if not images:
        raise BadInput("location", str(shard), "images in every shard; this one has none")
    return [
        _Sample(member.name.removeprefix("./"), labels[key], shard, member.offset_data, member.size)
        for key, member in images.items()
    ]


def _label(shard: Path, file: tarfile.TarFile, member: tarfile.TarInfo, field: str | None) -> int:
    stream = file.extractfile(member)
    text = stream.read(_MAX_LABEL_BYTES).decode("utf-8", "replace") if stream is not None else ""
    try:
        value = json.loads(text)[field] if field else int(text)
    except (ValueError, KeyError, TypeError):
        value = None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadInput("location", f"{shard.name}: {member.name}", "a class index from 0 as the label")
    return value
