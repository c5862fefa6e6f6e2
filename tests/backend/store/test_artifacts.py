"""Files that jobs leave behind: one suite over a folder, memory and a local S3 server."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.domain.errors import BadInput, Conflict
from backend.store import artifacts
from backend.store.artifacts import CorruptArtifact

DATA = b"weights " * 1000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def s3_bucket() -> Iterator[str]:
    """A bucket on a moto server of this module, reached the way users reach S3: by the AWS_ variables."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"])
        client.create_bucket(Bucket="zoograft")
        yield "s3://zoograft/artifacts"
        client.close()
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["folder", "memory", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "artifacts")
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    return str(request.getfixturevalue("s3_bucket")) + "/" + tmp_path.name


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(DATA)
    return path


def test_what_is_put_is_read_from_bytes_and_from_a_file(base: str, source: Path) -> None:
    for relative, data in (("job/1/a.bin", DATA), ("job/1/deep/er/b.bin", source)):
        uri, size, sha256 = artifacts.put(base, relative, data)
        assert (size, sha256) == (len(DATA), SHA)
        assert artifacts.read(uri, SHA) == DATA
        with artifacts.open(uri) as file:
            assert file.read(8) == b"weights "
        assert artifacts.exists(uri)
        assert artifacts.digest_of(uri) == SHA


def test_fetch_gives_a_local_file_and_downloads_once(base: str, tmp_path: Path) -> None:
    uri, _, _ = artifacts.put(base, "job/1/model.safetensors", DATA)
    cache = tmp_path / "cache"
    path = artifacts.fetch(uri, SHA, cache=cache)
    assert path.read_bytes() == DATA
    assert path.suffix == ".safetensors"
    first = path.stat()
    again = artifacts.fetch(uri, SHA, cache=cache)
    assert (again, again.stat().st_ino, again.stat().st_mtime_ns) == (path, first.st_ino, first.st_mtime_ns)


def test_a_changed_file_is_never_read_as_the_one_that_was_stored(base: str, tmp_path: Path) -> None:
    uri, _, _ = artifacts.put(base, "job/1/model.bin", DATA)
    artifacts.put(base, "job/1/model.bin", b"x" + DATA[1:])
    with pytest.raises(CorruptArtifact, match="SHA-256"):
        artifacts.read(uri, SHA)
    with pytest.raises(CorruptArtifact, match="SHA-256"):
        artifacts.fetch(uri, SHA, cache=tmp_path / "cache")
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
    assert not (tmp_path / "cache").exists() or os.listdir(tmp_path / "cache") == []


def test_a_damaged_cache_is_downloaded_again(tmp_path: Path) -> None:
    uri, _, _ = artifacts.put(f"memory://{tmp_path.name}", "job/1/model.bin", DATA)
    cache = tmp_path / "cache"
    artifacts.fetch(uri, SHA, cache=cache).write_bytes(b"rotten")
    assert artifacts.fetch(uri, SHA, cache=cache).read_bytes() == DATA


def test_without_a_checksum_the_newest_bytes_are_fetched(base: str, tmp_path: Path) -> None:
    uri, _, _ = artifacts.put(base, "job/1/a.bin", b"old")
    assert artifacts.fetch(uri, cache=tmp_path / "cache").read_bytes() == b"old"
    artifacts.put(base, "job/1/a.bin", b"new")
    assert artifacts.fetch(uri, cache=tmp_path / "cache").read_bytes() == b"new"


def test_a_taken_place_can_be_protected(base: str) -> None:
    uri, _, _ = artifacts.put(base, "job/1/a.bin", DATA, replace=False)
    assert artifacts.put(base, "job/1/a.bin", DATA, replace=False) == (uri, len(DATA), SHA)
    with pytest.raises(Conflict, match="taken"):
        artifacts.put(base, "job/1/a.bin", b"other", replace=False)
    assert artifacts.read(uri) == DATA


def test_what_is_gone_is_file_not_found(base: str, tmp_path: Path) -> None:
    uri, _, _ = artifacts.put(base, "job/1/a.bin", DATA)
    artifacts.remove(uri)
    artifacts.remove(uri)
    assert not artifacts.exists(uri)
    for look in (artifacts.open, artifacts.read, artifacts.digest_of, lambda one: artifacts.fetch(one, SHA)):
        with pytest.raises(FileNotFoundError):
            look(uri)


@pytest.mark.parametrize(
    "relative", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "..\\x", "a\\b", "a\x00b", "x" * 300]
)
def test_paths_that_lead_elsewhere_are_refused(base: str, relative: str) -> None:
    with pytest.raises(BadInput, match="artifact"):
        artifacts.put(base, relative, DATA)


def test_addresses_of_no_known_kind_are_refused() -> None:
    with pytest.raises(BadInput, match="artifacts_url"):
        artifacts.put("gopher9://somewhere", "a", DATA)


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    base = str(tmp_path / "artifacts")
    uri, _, _ = artifacts.put(base, "job/1/a.bin", DATA)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            artifacts.put(base, "job/1/a.bin", b"y" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert artifacts.read(uri, SHA) == DATA
    assert os.listdir(Path(uri).parent) == ["a.bin"]


def test_the_private_cache_belongs_to_us_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = artifacts.private_cache()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(BadInput, match="belongs to you alone"):
        artifacts.private_cache()


def test_a_source_that_is_missing_leaves_nothing(tmp_path: Path) -> None:
    base = tmp_path / "artifacts"
    with pytest.raises(FileNotFoundError):
        artifacts.put(str(base), "job/1/a.bin", tmp_path / "nowhere")
    assert [path for path in base.rglob("*") if path.is_file()] == []
