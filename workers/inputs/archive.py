"""Files inside a zip, read by many threads at once, with bounds: no lock, no unpacking, no path leaves the archive.

The central directory is read once; a member is one `pread` and one bounded inflation, checked by its CRC.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from backend.domain.errors import BadInput

MAX_MEMBERS = 20_000_000
MAX_MEMBER_BYTES = 256 * 1024**2
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x1
_DRIVE = re.compile(r"[A-Za-z]:")


class Archive:
    """A zip file that stays open.

    Raises:
        BadInput: no zip, or one with paths that leave it, encrypted members or names used twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                members = [info for info in file.infolist() if not info.is_dir()]
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise BadInput("location", str(path), f"a zip file that can be read ({error})") from None
        if len(members) > MAX_MEMBERS:
            raise BadInput("location", str(path), f"a zip of at most {MAX_MEMBERS} files")
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in members:
            self._check(info)
            self.members[info.filename] = info
        self._file = os.open(path, os.O_RDONLY)

    def _check(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or _DRIVE.match(name):
            raise BadInput("location", name, f"paths that stay inside the zip {self.path.name}")
        if info.flag_bits & _ENCRYPTED:
            raise BadInput("location", name, "a zip without encryption")
        if name in self.members:
            raise BadInput("location", name, f"a zip that names each file once ({self.path.name})")

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            OSError: damaged, too large, or compressed in a way we do not read.
        """
        info = self.members[name]
        if info.file_size > MAX_MEMBER_BYTES:
            raise OSError(f"{info.file_size} bytes are more than the limit of {MAX_MEMBER_BYTES}")
        header = os.pread(self._file, _LOCAL_HEADER.size, info.header_offset)
        if len(header) != _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise OSError("the zip entry is damaged")
        *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        packed = os.pread(self._file, info.compress_size, start)
        if info.compress_type == zipfile.ZIP_STORED:
            content = packed
        elif info.compress_type == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-15).decompress(packed, info.file_size + 1)
            except zlib.error as error:
                raise OSError(f"the zip entry is damaged ({error})") from None
        else:
            raise OSError(f"compression method {info.compress_type} is not supported; use deflate")
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise OSError("the zip entry is damaged (check sum)")
        return content

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)
