"""A folder of class folders, or a zip of one: `root/<split>/<class>/**/image` or `root/<class>/**/image`.

The first level is taken as splits when every folder there is named as a split (train, val, test, ...); else it is the
classes and the one split is called `all`. A single folder around it all, as zips have, is looked through. Files that
are no images by their name are passed over. `sample_id` is the path below the split. With the option `split` the
whole tree is one split of that name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from backend.domain.errors import BadInput
from backend.domain.records import NAME_PATTERN
from backend.settings import Settings
from workers.inputs.archive import MAX_MEMBER_BYTES, Archive
from workers.inputs.decoding import EXTENSIONS
from workers.inputs.images import EncodedImages, Images

SPLIT_NAMES = frozenset(
    {"train", "training", "transfer", "val", "valid", "validation", "dev", "test", "testing", "eval"}
)
_WHOLE_SPLIT = "all"
_HASHED_BYTES = 256 * 1024**2  # folders up to this size are fingerprinted by content, larger ones by file sizes


def read_imagefolder(location: str | None, options: dict[str, Any], settings: Settings) -> dict[str, Images]:
    """The splits of a folder or zip.

    Raises:
        BadInput: nothing there, images without a class folder, class folders without images.
    """
    unknown = sorted(set(options) - {"split"})
    if unknown:
        raise BadInput("options", unknown, "only 'split' (the name of the one split)")
    path = Path(location or "")
    if path.is_dir():
        tree: _Folder | _Zip = _Folder(path, settings.data_roots)
    elif path.is_file():
        tree = _Zip(path)
    else:
        raise BadInput("location", location, "an existing folder of class folders, or a zip of one")
    split = options.get("split")
    if split is not None and not (isinstance(split, str) and _is_name(split)):
        raise BadInput("options.split", split, "a name of letters, digits, '.', '_' and '-'")
    return _splits(tree, split, settings.max_image_pixels)


def _splits(tree: _Folder | _Zip, only_split: str | None, max_pixels: int) -> dict[str, Images]:
    files, folders = tree.files, tree.folders
    if not any(_is_image(path) for path in files):
        raise BadInput("location", str(tree.path), "images in class folders; there are no images")
    prefix = _wrapper(files, folders)
    files = [path[len(prefix) :] for path in files if path.startswith(prefix)]
    folders = {path[len(prefix) :] for path in folders if path.startswith(prefix) and len(path) > len(prefix)}
    top = {path.split("/")[0] for path in folders}
    loose = [path for path in files if "/" not in path and _is_image(path)]
    if loose:
        raise BadInput("location", loose[0], "every image inside the folder of its class; this one has no label")
    divided = only_split is None and bool(top) and top <= SPLIT_NAMES
    parts = {name: f"{name}/" for name in sorted(top)} if divided else {only_split or _WHOLE_SPLIT: ""}
    listed = {name: _samples(tree, name, part, files, folders) for name, part in parts.items()}
    class_names = sorted({name for samples in listed.values() for name, _ in samples})
    index = {name: i for i, name in enumerate(class_names)}
    return {
        name: _images(tree, prefix + parts[name], samples, index, class_names, max_pixels)
        for name, samples in listed.items()
    }


def _samples(tree: _Folder | _Zip, split: str, part: str, files: list[str], folders: set[str]) -> list[tuple[str, str]]:
    """(class, sample_id) of a split, by sample_id."""
    inside = [path[len(part) :] for path in files if path.startswith(part) and _is_image(path)]
    classes = {path[len(part) :].split("/")[0] for path in folders if path.startswith(part) and len(path) > len(part)}
    for sample_id in inside:
        if "/" not in sample_id:
            raise BadInput("location", part + sample_id, "every image inside the folder of its class; it has no label")
    empty = sorted(name for name in classes - {sample_id.split("/")[0] for sample_id in inside} if name)
    if empty:
        raise BadInput("location", f"{tree.path}: {part}{empty[0]}", "images in every class folder; this one has none")
    if not inside:
        raise BadInput("location", f"{tree.path}: {part}", f"images in the split {split!r}; there are none")
    return [(sample_id.split("/")[0], sample_id) for sample_id in sorted(inside)]


def _images(
    tree: _Folder | _Zip,
    prefix: str,
    samples: list[tuple[str, str]],
    index: dict[str, int],
    class_names: list[str],
    max_pixels: int,
) -> Images:
    ids = [sample_id for _, sample_id in samples]
    return EncodedImages(
        ids,
        [index[name] for name, _ in samples],
        class_names,
        read=lambda i: tree.read(prefix + ids[i]),
        evidence=lambda: tree.evidence([prefix + sample_id for sample_id in ids]),
        max_pixels=max_pixels,
    )


def _wrapper(files: list[str], folders: set[str]) -> str:
    """The path of a lone folder around everything: it has no images of its own and is not a class."""
    prefix = ""
    while True:
        top = {path[len(prefix) :].split("/")[0] for path in folders if path.startswith(prefix) and path != prefix}
        top.discard("")
        if len(top) != 1 or (name := top.pop()) in SPLIT_NAMES:
            return prefix
        inner = f"{prefix}{name}/"
        below = {path[len(inner) :].split("/")[0] for path in folders if path.startswith(inner) and path != inner}
        direct = any(_is_image(path) and "/" not in path[len(inner) :] for path in files if path.startswith(inner))
        outside = any(_is_image(path) for path in files if not path.startswith(inner))
        if direct or outside or not (len(below) > 1 or below & SPLIT_NAMES):
            return prefix
        prefix = inner


def _is_image(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _is_name(text: str) -> bool:
    return re.fullmatch(NAME_PATTERN, text) is not None


class _Folder:
    """Files and folders below a folder, as POSIX paths; folders end with a slash."""

    def __init__(self, path: Path, roots: tuple[Path, ...]) -> None:
        self.path = path
        self.files: list[str] = []
        self.folders: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._roots = tuple(str(root.resolve()) + os.sep for root in roots)
        self._walk(str(path), "", (os.path.realpath(path),))
        self.files.sort()

    def _walk(self, folder: str, prefix: str, above: tuple[str, ...]) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_symlink():
                    real = os.path.realpath(entry.path)
                    if self._roots and not real.startswith(self._roots):
                        raise BadInput("location", prefix + entry.name, "links that stay inside the data roots")
                    if real in above:
                        continue
                if entry.is_dir():
                    self.folders.add(f"{prefix}{entry.name}/")
                    self._walk(entry.path, f"{prefix}{entry.name}/", (*above, os.path.realpath(entry.path)))
                elif entry.is_file():
                    self.files.append(prefix + entry.name)
                    if _is_image(entry.name):
                        self._sizes[prefix + entry.name] = entry.stat().st_size

    def read(self, path: str) -> bytes:
        with open(self.path / path, "rb") as file:
            content = file.read(MAX_MEMBER_BYTES + 1)
        if len(content) > MAX_MEMBER_BYTES:
            raise OSError(f"more than {MAX_MEMBER_BYTES} bytes")
        return content

    def evidence(self, paths: list[str]) -> Iterable[bytes]:
        by_content = sum(self._sizes.values()) <= _HASHED_BYTES
        for path in paths:
            yield (self.path / path).read_bytes() if by_content else str(self._sizes[path]).encode()


class _Zip:
    """Files and folders inside a zip, as POSIX paths; folders end with a slash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = Archive(path)
        hidden: Callable[[str], bool] = lambda name: any(p.startswith((".", "__MACOSX")) for p in name.split("/"))  # noqa: E731
        self.files = sorted(name for name in self._archive.members if not hidden(name))
        self.folders = {
            "/".join(name.split("/")[: depth + 1]) + "/" for name in self.files for depth in range(name.count("/"))
        }

    def read(self, path: str) -> bytes:
        return self._archive.read(path)

    def evidence(self, paths: list[str]) -> Iterable[bytes]:
        for path in paths:
            info = self._archive.members[path]
            yield f"{info.file_size} {info.CRC:08x}".encode()
