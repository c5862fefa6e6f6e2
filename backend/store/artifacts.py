"""Files that jobs leave behind, through fsspec: a folder, memory or S3. Written whole or not at all, named by URI, and
known by size and SHA-256, which every reader can check.

A job's files live under `<job>/<fence>/`, so that no attempt can touch what another attempt wrote.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from backend.domain.errors import BadInput, Conflict, MissingExtra

CHUNK = 1 << 20


class CorruptArtifact(BadInput):
    """A file that is not what was stored: cut off, changed or swapped."""

    cause = "corrupt_artifact"


def least_room(data_dir: Path, base: str) -> tuple[int, Path]:
    """Free bytes at the fuller of two places, and which that is: the data folder, and where files under `base` go if
    that is a folder of this machine. What does not exist yet counts as the nearest folder above it."""
    local = base.removeprefix("file://")
    places = [data_dir, *([] if "://" in local else [Path(local)])]
    rooms = []
    for place in places:
        there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
        rooms.append((shutil.disk_usage(there).free, place))
    return min(rooms, key=lambda room: room[0])


def put(base: str, relative: str, data: Path | bytes, *, replace: bool = True) -> tuple[str, int, str]:
    """Store a file under `base`, whole or not at all; returns its URI, size in bytes and SHA-256 (hex).

    Args:
        base: A folder, or a URL such as `s3://bucket/prefix` or `memory://name`.
        relative: Where under it, with forward slashes.
        data: The bytes, or a local file to copy.
        replace: False refuses a place that is already taken (unless by the same bytes).

    Raises:
        BadInput: A relative path that leaves `base`.
        Conflict: The place is taken.
        OSError: The storage is full or not reachable; nothing is left behind.
    """
    filesystem, path = _locate(base, relative)
    if isinstance(filesystem, LocalFileSystem):
        size, sha256 = _put_local(Path(path), data, replace=replace)
        return path, size, sha256
    size, sha256 = measure(data)
    uri = str(filesystem.unstrip_protocol(path))
    try:
        mode = "overwrite" if replace else "create"
        if isinstance(data, bytes):
            filesystem.pipe_file(path, data, mode=mode)
        else:
            filesystem.put_file(str(data), path, mode=mode)
    except FileExistsError:
        if digest_of(uri) != sha256:
            raise Conflict(f"{uri} is taken by another file") from None
    stored = filesystem.info(path)["size"]
    if stored != size:
        raise OSError(f"{uri}: {stored} of {size} bytes arrived")
    return uri, size, sha256


def open(uri: str) -> IO[bytes]:
    """Open a stored file for reading; the caller closes it.

    Raises:
        FileNotFoundError: It is gone.
    """
    filesystem, path = _filesystem(uri)
    return cast(IO[bytes], filesystem.open(path, "rb"))


def read(uri: str, sha256: str | None = None) -> bytes:
    """The bytes of a stored file, checked against `sha256` where given.

    Raises:
        FileNotFoundError: It is gone.
        CorruptArtifact: It is not the file that was stored.
    """
    with open(uri) as file:
        data = file.read()
    if sha256 is not None:
        _require(uri, hashlib.sha256(data).hexdigest(), sha256)
    return data


def fetch(uri: str, sha256: str | None = None, *, cache: Path | None = None) -> Path:
    """A local path that holds the file, checked against `sha256` where given.

    A file in a folder is checked where it lies; anything else is downloaded, and kept in `cache` under its checksum, so
    that it is downloaded once.

    Raises:
        FileNotFoundError: It is gone.
        CorruptArtifact: It is not the file that was stored, also after a fresh download.
    """
    filesystem, path = _filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        if sha256 is not None:
            _require(uri, measure(Path(path))[1], sha256)
        elif not Path(path).is_file():
            raise FileNotFoundError(path)
        return Path(path)
    folder = cache or private_cache()
    folder.mkdir(parents=True, exist_ok=True)
    name = sha256 or "unchecked-" + hashlib.sha256(uri.encode()).hexdigest()
    kept = folder / f"{name}{PurePosixPath(path).suffix}"
    if sha256 is not None and kept.is_file() and measure(kept)[1] == sha256:
        return kept
    temporary = folder / f".{kept.name}.{secrets.token_hex(8)}"
    try:
        filesystem.get_file(path, str(temporary))
        if sha256 is not None:
            _require(uri, measure(temporary)[1], sha256)
        os.replace(temporary, kept)
    finally:
        temporary.unlink(missing_ok=True)
    return kept


def exists(uri: str) -> bool:
    filesystem, path = _filesystem(uri)
    return bool(filesystem.isfile(path))


def remove(uri: str) -> None:
    """Delete one file; harmless when it is gone already."""
    filesystem, path = _filesystem(uri)
    with suppress(FileNotFoundError):
        filesystem.rm_file(path)


def walk(base: str) -> Iterator[tuple[str, str]]:
    """(URI, path relative to `base`) of every file below it; nothing where `base` does not exist."""
    filesystem, root = _filesystem(base)
    root = root.rstrip("/")
    local = isinstance(filesystem, LocalFileSystem)
    for path in filesystem.find(root):
        yield str(path if local else filesystem.unstrip_protocol(path)), str(path)[len(root) + 1 :]


def digest_of(uri: str) -> str:
    """The SHA-256 (hex) of a stored file as it is now."""
    digest = hashlib.sha256()
    with open(uri) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def measure(data: Path | bytes) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hex) of bytes or of a local file."""
    if isinstance(data, bytes):
        return len(data), hashlib.sha256(data).hexdigest()
    digest, size = hashlib.sha256(), 0
    with data.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def private_cache() -> Path:
    """Where downloads are kept when nobody says where: a folder that only this user can write to."""
    folder = Path(tempfile.gettempdir()) / f"zoograft-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise BadInput("cache", str(folder), "a folder that belongs to you alone; remove it, or set TMPDIR")
    return folder


def checked_relative(relative: str) -> str:
    """A path below a folder, with forward slashes and nothing in it that leads elsewhere."""
    parts = relative.split("/")
    if (
        "\x00" in relative
        or "\\" in relative
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
    ):
        raise BadInput("artifact", relative, "a relative path with forward slashes, without '.' and '..'")
    return relative


def _locate(base: str, relative: str) -> tuple[fsspec.AbstractFileSystem, str]:
    filesystem, root = _filesystem(base)
    return filesystem, f"{root.rstrip('/')}/{checked_relative(relative)}"


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, path = url_to_fs(url)
    except ImportError:
        protocol = url.split("://", 1)[0]
        raise MissingExtra(f"reading and writing {protocol}:// addresses", protocol) from None
    except ValueError as error:
        raise BadInput("artifacts_url", url, f"a folder, memory:// or s3:// ({error})") from None
    return filesystem, str(path)


def _put_local(path: Path, data: Path | bytes, *, replace: bool) -> tuple[int, str]:
    """Temporary file in the same folder, fsync, rename, fsync of the folder; on any failure nothing is left."""
    made = _make_folder(path.parent)
    temporary = path.parent / f".{path.name[:200]}.{secrets.token_hex(8)}"
    digest, size = hashlib.sha256(), 0
    try:
        with temporary.open("xb") as target:
            for chunk in _chunks(data):
                target.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            target.flush()
            os.fsync(target.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            _link_new(temporary, path, digest.hexdigest())
    finally:
        temporary.unlink(missing_ok=True)
    for folder in (path.parent, *made):
        _sync_folder(folder)
    return size, digest.hexdigest()


def _link_new(temporary: Path, path: Path, sha256: str) -> None:
    try:
        os.link(temporary, path)  # fails where a rename would replace
    except FileExistsError:
        if measure(path)[1] != sha256:
            raise Conflict(f"{path} is taken by another file") from None


def _make_folder(folder: Path) -> list[Path]:
    """Create a folder; returns the older folders whose entries changed."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return [one.parent for one in missing]


def _chunks(data: Path | bytes) -> Any:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as source:
        while chunk := source.read(CHUNK):
            yield chunk


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require(uri: str, found: str, expected: str) -> None:
    if found != expected:
        raise CorruptArtifact("artifact", uri, f"the stored file; its SHA-256 is {found[:12]}…, not {expected[:12]}…")
