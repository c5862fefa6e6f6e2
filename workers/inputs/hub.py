"""Data sets that timm's readers know by name: Hugging Face (`hfds/...`) and torchvision (`torch/...`).

huggingface: `location` is a hub name or a local folder that `datasets` can load; options `image`, `label` (columns),
`splits` (names; default all there are). torchvision: `location` is timm's name (`cifar10`, `fashion_mnist`, ...);
options `root` (default: the data directory's cache) and `download` (default no). No code from a hub is ever run.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from backend.domain.errors import BadInput, MissingExtra
from backend.settings import Settings
from workers.inputs.decoding import BadImage, to_rgb
from workers.inputs.images import EncodedImages, Images
from workers.inputs.roots import inside_roots

_TORCHVISION_SPLITS = {"train": "train", "val": "validation"}


def read_huggingface(location: str | None, options: dict[str, Any], settings: Settings) -> dict[str, Images]:
    """The splits of a Hugging Face data set, through timm's reader."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra("a Hugging Face data set", "huggingface") from None
    from timm.data import create_dataset

    _only(options, {"image", "label", "splits"})
    if not location:
        raise BadInput("location", location, "the name of a Hugging Face data set or a local folder")
    if Path(location).exists():
        location = str(inside_roots(Path(location), settings.data_roots, "location"))
    image, label = str(options.get("image", "image")), str(options.get("label", "label"))
    try:
        names = options.get("splits") or datasets.get_dataset_split_names(location)
        readers = {
            str(name): create_dataset(f"hfds/{location}", split=str(name), input_key=image, target_key=label).reader
            for name in names
        }
    except (OSError, ValueError, KeyError, ConnectionError, RuntimeError) as error:
        raise BadInput("location", location, f"a data set that can be loaded ({_first_line(error)})") from None
    images: dict[str, Images] = {}
    for split, reader in readers.items():
        labels = list(reader.iter_targets())
        if not all(isinstance(value, int) and value >= 0 for value in labels):
            raise BadInput("options.label", label, f"a column of class indices in every row of split {split!r}")
        classes = [str(name) for name in reader.class_to_idx] or [str(i) for i in range(max(labels) + 1)]
        read = _hugging_face_bytes(reader)
        images[split] = EncodedImages(
            [str(i) for i in range(len(labels))],
            labels,
            classes,
            read,
            _all_bytes(read, len(labels)),
            settings.max_image_pixels,
        )
    return images


def read_torchvision(location: str | None, options: dict[str, Any], settings: Settings) -> dict[str, Images]:
    """The splits of a torchvision data set, through timm's factory."""
    from timm.data import create_dataset

    _only(options, {"root", "download"})
    given = options.get("root")
    root = settings.data_dir / "cache" / "torchvision"
    if given is not None:
        root = inside_roots(Path(str(given)), settings.data_roots, "options.root")
    splits: dict[str, Images] = {}
    for name, timm_name in _TORCHVISION_SPLITS.items():
        try:
            found = create_dataset(
                f"torch/{location}", root=str(root), split=timm_name, download=options.get("download") is True
            )
        except (OSError, RuntimeError, AssertionError, ValueError, TypeError) as error:
            expected = f"a torchvision data set that is below {root} (options: root, download) ({_first_line(error)})"
            raise BadInput("location", location, expected) from None
        splits[name] = TorchImages(found)
    return splits


class TorchImages(Images):
    """A torchvision data set: items are (picture, class)."""

    def __init__(self, dataset: Any) -> None:
        labels = getattr(dataset, "targets", None)
        if labels is None:
            labels = [int(dataset[i][1]) for i in range(len(dataset))]
        targets: npt.NDArray[np.int64] = np.asarray(labels, dtype=np.int64)
        names: Sequence[str] = getattr(dataset, "classes", None) or [str(i) for i in range(int(targets.max()) + 1)]
        super().__init__([str(i) for i in range(len(dataset))], targets, [str(name) for name in names])
        self._dataset = dataset

    def image(self, i: int) -> Image.Image:
        try:
            return to_rgb(self._dataset[i][0])
        except (OSError, ValueError, SyntaxError) as error:
            raise BadImage(str(error)) from None

    def contents(self) -> Iterable[bytes]:
        """File sizes where the data set is files, else pixels."""
        files = getattr(self._dataset, "samples", None) or getattr(self._dataset, "imgs", None)
        if files is not None:
            return (str(Path(file[0]).stat().st_size).encode() for file in files)
        return (np.asarray(self.image(i)).tobytes() for i in range(len(self)))


def _hugging_face_bytes(reader: Any) -> Any:
    def read(i: int) -> bytes:
        try:
            stream = reader[i][0]
        except (AssertionError, KeyError, TypeError):
            raise OSError(f"row {i} holds no image") from None
        with stream if not isinstance(stream, io.BytesIO) else io.BytesIO(stream.getvalue()) as file:
            content: bytes = file.read()
        return content

    return read


def _all_bytes(read: Any, n: int) -> Any:
    def evidence() -> Iterable[bytes]:
        for i in range(n):
            try:
                yield read(i)
            except OSError:
                yield b""

    return evidence


def _only(options: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        raise BadInput("options", unknown, f"only {', '.join(sorted(known))}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
