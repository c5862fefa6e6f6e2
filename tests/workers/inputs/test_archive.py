"""Zips as they are, and as attackers make them."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.domain.errors import BadInput
from workers.inputs.archive import MAX_MEMBER_BYTES, Archive


def make(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_by_many_threads(tmp_path: Path, method: int) -> None:
    files = {f"a/{i}.bin": bytes([i % 256]) * (1000 + i) for i in range(200)}
    archive = Archive(make(tmp_path / "x.zip", files, method))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(archive.read, files)) == list(files.values())


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/passwd", "a\\..\\b.png", "C:/x.png"])
def test_paths_that_leave_the_zip_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="inside the zip"):
        Archive(make(tmp_path / "x.zip", {name: b"x"}))


def test_no_zip_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(BadInput, match="a zip file that can be read"):
        Archive(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a/x.png", b"1")
        file.writestr("a/x.png", b"2")
    with pytest.raises(BadInput, match="names each file once"):
        Archive(tmp_path / "x.zip")


def test_damage_and_bombs_are_errors_of_one_member(tmp_path: Path) -> None:
    path = make(tmp_path / "x.zip", {"a.bin": b"hello" * 100, "b.bin": b"world"}, zipfile.ZIP_STORED)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"hellohello", b"hellojello", 1))
    archive = Archive(path)
    with pytest.raises(OSError, match="check sum"):
        archive.read("a.bin")
    assert archive.read("b.bin") == b"world"

    make(tmp_path / "bomb.zip", {"zeros.png": b"\0" * 10_000_000})
    bomb = Archive(tmp_path / "bomb.zip")
    bomb.members["zeros.png"].file_size = 1000  # a header that lies
    with pytest.raises(OSError, match="damaged"):
        bomb.read("zeros.png")
    bomb.members["zeros.png"].file_size = MAX_MEMBER_BYTES + 1
    with pytest.raises(OSError, match="limit"):
        bomb.read("zeros.png")
