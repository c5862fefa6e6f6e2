"""Reading data sets: what is found, how it is named, and what is refused."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.domain.datasets import Dataset, DatasetSpec
from backend.domain.errors import BadInput
from backend.settings import Settings
from workers.inputs.datasets import open_split, read_dataset
from workers.inputs.decoding import BadImage


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def png(value: int = 0, size: tuple[int, int] = (6, 5)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(sink, "PNG")
    return sink.getvalue()


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def read(settings: Settings, source: str, location: Path | str | None = None, **spec: Any) -> Dataset:
    where = None if location is None else str(location)
    return read_dataset(DatasetSpec(name="d", source=source, location=where, **spec), settings)  # type: ignore[arg-type]


FILES = {"train/cat/1.png": png(1), "train/dog/a/2.png": png(2), "val/cat/3.PNG": png(3), "val/dog/4.png": png(4)}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def test_digits_are_split_by_class_and_the_same_everywhere(settings: Settings) -> None:
    from sklearn.datasets import load_digits

    dataset = read(settings, "digits")
    assert {name: split.n_samples for name, split in dataset.splits.items()} == {
        "train": 900,
        "transfer": 397,
        "val": 500,
    }
    parts = {name: open_split(dataset, name, settings) for name in dataset.splits}
    ids = [int(sample_id) for part in parts.values() for sample_id in part.sample_ids]
    assert sorted(ids) == list(range(1797))
    original = load_digits()
    for name, part in parts.items():
        rows = np.array([int(sample_id) for sample_id in part.sample_ids])
        assert part.labels.tolist() == original.target[rows].tolist()
        assert part.array().shape == (len(part), 3, 8, 8)
        assert np.array_equal(part.array()[:, 0], np.rint(original.images[rows] * 255 / 16))
        share = np.bincount(part.labels) / np.bincount(original.target)
        assert np.abs(share - len(part) / 1797).max() < 0.01, name
    assert parts["val"].image(0).mode == "RGB"
    assert dataset.splits == read(settings, "digits").splits
    assert dataset.splits["val"].fingerprint != dataset.splits["train"].fingerprint


@pytest.mark.parametrize("form", ["folder", "zip", "wrapped zip"])
def test_image_folders_and_zips_of_them(settings: Settings, tmp_path: Path, form: str) -> None:
    extra = {"README.txt": b"hello", "train/cat/notes.txt": b"x"}
    if form == "folder":
        location = tree(tmp_path / "photos", {**FILES, **extra, ".hidden/x/1.png": png()})
    elif form == "zip":
        location = zipped(tmp_path / "p.zip", {**FILES, **extra, "__MACOSX/train/cat/._1.png": b"junk"})
    else:
        location = zipped(tmp_path / "p.zip", {f"my-photos/{name}": content for name, content in FILES.items()})
    dataset = read(settings, "imagefolder", location)
    assert dataset.class_names == ("cat", "dog")
    assert {name: split.n_samples for name, split in dataset.splits.items()} == {"train": 2, "val": 2}
    assert dataset.evaluation_split() == "val"
    train = open_split(dataset, "train", settings)
    assert train.sample_ids == ("cat/1.png", "dog/a/2.png")
    assert train.labels.tolist() == [0, 1]
    assert np.asarray(train.image(1))[0, 0].tolist() == [2, 2, 2]
    assert open_split(dataset, "val", settings).sample_ids == ("cat/3.PNG", "dog/4.png")
    assert train.array().shape == (2, 3, 5, 6)


def test_classes_alone_are_one_split(settings: Settings, tmp_path: Path) -> None:
    root = tree(tmp_path / "x", {"cat/1.png": png(), "dog/2.png": png()})
    assert list(read(settings, "imagefolder", root).splits) == ["all"]
    assert list(read(settings, "imagefolder", root, options={"split": "val"}).splits) == ["val"]
    one = tree(tmp_path / "one", {"cat/1.png": png(), "cat/2.png": png()})
    assert read(settings, "imagefolder", one).class_names == ("cat",)


def test_fingerprints_tell_contents_labels_and_names_apart(settings: Settings, tmp_path: Path) -> None:
    def fingerprint(files: dict[str, bytes]) -> str:
        place = tmp_path / f"f{len(list(tmp_path.iterdir()))}"
        return read(settings, "imagefolder", tree(place, files)).splits["all"].fingerprint

    base = {"cat/1.png": png(1), "dog/2.png": png(2)}
    first = fingerprint(base)
    assert fingerprint(base) == first
    assert len(png(1)) == len(png(3))
    for other in (
        {**base, "cat/1.png": png(3)},
        {"dog/1.png": png(1), "cat/2.png": png(2)},
        {"cat/1.png": png(1), "dog/3.png": png(2)},
    ):
        assert fingerprint(other) != first


def test_files_that_changed_since_are_told(settings: Settings, tmp_path: Path) -> None:
    root = tree(tmp_path / "x", {"cat/1.png": png(1), "dog/2.png": png(2)})
    dataset = read(settings, "imagefolder", root)
    (root / "cat/1.png").write_bytes(png(9))
    with pytest.raises(BadInput, match="did not change"):
        open_split(dataset, "all", settings)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"notes.txt": b"x"}, "no images"),
        ({"1.png": png(), "cat/2.png": png()}, "1.png.*no label"),
        ({"train/1.png": png(), "train/cat/2.png": png()}, "train/1.png.*no label"),
        ({"cat/1.png": png(), "dog/readme.txt": b"x"}, "dog.*every class folder"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_bad_trees_are_told(settings: Settings, tmp_path: Path, files: dict[str, bytes], told: str, form: str) -> None:
    place = tree(tmp_path / "x", files) if form == "folder" else zipped(tmp_path / "x.zip", files)
    with pytest.raises(BadInput, match=f"(?s){told}"):
        read(settings, "imagefolder", place)


def test_empty_folders_and_missing_places_are_told(settings: Settings, tmp_path: Path) -> None:
    tree(tmp_path / "x", {"cat/1.png": png()})
    (tmp_path / "x" / "dog").mkdir()
    with pytest.raises(BadInput, match=r"dog.*has none"):
        read(settings, "imagefolder", tmp_path / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no images"):
        read(settings, "imagefolder", tmp_path / "empty")
    with pytest.raises(BadInput, match="existing"):
        read(settings, "imagefolder", tmp_path / "nowhere")
    with pytest.raises(BadInput, match="location"):
        read(settings, "imagefolder", None)
    with pytest.raises(BadInput, match="options"):
        read(settings, "imagefolder", tmp_path / "x", options={"spilt": "val"})


def test_paths_stay_below_the_data_roots(tmp_path: Path) -> None:
    root = tree(tmp_path / "allowed" / "x", {"cat/1.png": png(), "dog/2.png": png()})
    outside = tree(tmp_path / "outside", {"cat/1.png": png(), "dog/2.png": png()})
    settings = Settings(data_dir=tmp_path, data_roots=(tmp_path / "allowed",))
    assert read(settings, "imagefolder", root).splits["all"].n_samples == 2
    with pytest.raises(BadInput, match="a path below"):
        read(settings, "imagefolder", outside)
    (tmp_path / "allowed" / "link").symlink_to(outside)
    with pytest.raises(BadInput, match="a path below"):
        read(settings, "imagefolder", tmp_path / "allowed" / "link")
    (root / "cat" / "3.png").symlink_to(outside / "cat" / "1.png")
    with pytest.raises(BadInput, match="links that stay inside"):
        read(settings, "imagefolder", root)


def test_folders_are_mapped_into_a_label_space(settings: Settings, tmp_path: Path) -> None:
    files = {"n01443537/1.png": png(), "tench/2.png": png(), "great_white_shark/3.png": png()}
    dataset = read(settings, "imagefolder", tree(tmp_path / "x", files), label_space="imagenet-1k")
    assert dataset.n_classes == 1000
    images = open_split(dataset, "all", settings)
    assert dict(zip(images.sample_ids, images.labels.tolist(), strict=True)) == {
        "great_white_shark/3.png": 2,
        "n01443537/1.png": 1,
        "tench/2.png": 0,
    }
    for folder, told in (("crane", "name of 2 classes"), ("zebrafish7", "unknown there")):
        with pytest.raises(BadInput, match=told):
            read(
                settings, "imagefolder", tree(tmp_path / folder, {f"{folder}/1.png": png()}), label_space="imagenet-1k"
            )
    same = tree(tmp_path / "same", {"tench/1.png": png(), "n01440764/2.png": png()})
    with pytest.raises(BadInput, match="two folders name the same class"):
        read(settings, "imagefolder", same, label_space="imagenet-1k")


def test_npz_files(settings: Settings, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2])
    np.savez(tmp_path / "a.npz", images=grey, labels=labels, class_names=np.array(["x", "y", "z"]))
    dataset = read(settings, "npz", tmp_path / "a.npz")
    assert dataset.class_names == ("x", "y", "z")
    images = open_split(dataset, "all", settings)
    assert images.sample_ids == tuple("012345")
    assert np.array_equal(images.array()[:, 1], grey)

    colour = rng.random((4, 3, 5, 5)).astype(np.float32)
    np.savez(
        tmp_path / "b.npz",
        x_train=colour,
        y_train=labels[:4, None],
        test_images=grey[:2, ..., None],
        test_labels=labels[:2],
    )
    dataset = read(settings, "npz", tmp_path / "b.npz")
    assert {name: split.n_samples for name, split in dataset.splits.items()} == {"train": 4, "test": 2}
    train = open_split(dataset, "train", settings)
    assert np.array_equal(train.array(), np.rint(colour * 255))
    assert np.array_equal(np.asarray(train.image(2)).transpose(2, 0, 1), train.array()[2])


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"images": np.zeros((3, 4, 4), np.uint8)}, "labels beside"),
        ({"images": np.zeros((3, 4, 4), np.uint8), "labels": np.zeros(2, int)}, "one label for each"),
        ({"images": np.zeros((3, 4, 4), np.uint8), "labels": np.array([0, -1, 1])}, "no label"),
        ({"images": np.zeros((3, 4, 4), np.uint8), "labels": np.zeros(3)}, "whole numbers"),
        ({"images": np.full((3, 4, 4), 300.0), "labels": np.zeros(3, int)}, "uint8, or floats"),
        ({"images": np.zeros((3, 4), np.uint8), "labels": np.zeros(3, int)}, "N, H, W"),
        ({"stuff": np.zeros(3)}, "an npz with images and labels"),
    ],
)
def test_bad_npz_files_are_told(settings: Settings, tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(BadInput, match=told):
        read(settings, "npz", tmp_path / "x.npz")


def test_npz_never_unpickles(settings: Settings, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.array([{"a": 1}], dtype=object), labels=np.zeros(1, int))
    with pytest.raises(BadInput, match="npz file that can be read"):
        read(settings, "npz", tmp_path / "x.npz")


def test_parquet_files(settings: Settings, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(10)],
            "label": [i % 2 for i in range(10)],
        }
    )
    names = b'{"info": {"features": {"label": {"names": ["cat", "dog"]}}}}'
    folder = tmp_path / "hf"
    folder.mkdir()
    pq.write_table(table.replace_schema_metadata({b"huggingface": names}), folder / "train-00000-of-00001.parquet")
    pq.write_table(table.slice(0, 4), folder / "test-00000-of-00001.parquet", row_group_size=1)
    dataset = read(settings, "parquet", folder)
    assert dataset.class_names == ("cat", "dog")
    assert {name: split.n_samples for name, split in dataset.splits.items()} == {"train": 10, "test": 4}
    images = open_split(dataset, "train", settings)
    assert [np.asarray(images.image(i))[0, 0, 0] for i in (7, 0, 3)] == [7, 0, 3]
    test = open_split(dataset, "test", settings)
    assert [np.asarray(test.image(i))[0, 0, 0] for i in range(4)] == [0, 1, 2, 3]

    named = pa.table({"picture": [png(1), png(2)], "kind": ["dog", "ant"]})
    pq.write_table(named, tmp_path / "n.parquet")
    dataset = read(settings, "parquet", tmp_path / "n.parquet", options={"image": "picture", "label": "kind"})
    assert dataset.class_names == ("ant", "dog")
    assert open_split(dataset, "all", settings).labels.tolist() == [1, 0]
    with pytest.raises(BadInput, match="a column 'image'; it has picture, kind"):
        read(settings, "parquet", tmp_path / "n.parquet")
    pq.write_table(pa.table({"image": [png()], "label": pa.array([None], pa.int64())}), tmp_path / "m.parquet")
    with pytest.raises(BadInput, match="row 0 has none"):
        read(settings, "parquet", tmp_path / "m.parquet")


def shard(path: Path, samples: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_webdataset_shards(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for part in range(2):
        samples: dict[str, bytes] = {}
        for i in range(3):
            samples |= {f"{part}{i}.png": png(10 * part + i), f"{part}{i}.cls": str(i % 2).encode()}
        shard(folder / f"train-{part:04d}.tar", samples)
    shard(folder / "val-0000.tar", {"x.png": png(99), "x.cls": b"1"})
    dataset = read(settings, "webdataset", folder, options={"class_names": ["cat", "dog"]})
    assert {name: split.n_samples for name, split in dataset.splits.items()} == {"train": 6, "val": 1}
    images = open_split(dataset, "train", settings)
    assert images.sample_ids == ("00.png", "01.png", "02.png", "10.png", "11.png", "12.png")
    assert images.labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert np.asarray(images.image(4))[0, 0, 0] == 11
    with pytest.raises(BadInput, match="a label beside every image"):
        read(settings, "webdataset", shard(tmp_path / "y.tar", {"x.png": png()}))
    with pytest.raises(BadInput, match="class index from 0"):
        read(settings, "webdataset", shard(tmp_path / "z.tar", {"x.png": png(), "x.cls": b"dog"}))
    in_json = shard(tmp_path / "j.tar", {"x.png": png(), "x.json": b'{"target": 3}'})
    labels = open_split(read(settings, "webdataset", in_json, options={"label": "target"}), "all", settings).labels
    assert labels.tolist() == [3]


def test_torchvision_data_sets_by_name(settings: Settings, tmp_path: Path) -> None:
    import gzip
    import struct

    raw = tmp_path / "tv" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 5), ("t10k", 3)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for kind, body in (
            ("images-idx3", struct.pack(">IIII", 2051, n, 28, 28) + pixels.tobytes()),
            ("labels-idx1", struct.pack(">II", 2049, n) + bytes(range(n))),
        ):
            (raw / f"{part}-{kind}-ubyte").write_bytes(body)
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(body))
    dataset = read(settings, "torchvision", "mnist", options={"root": str(tmp_path / "tv")})
    assert {name: split.n_samples for name, split in dataset.splits.items()} == {"train": 5, "val": 3}
    images = open_split(dataset, "val", settings)
    assert images.labels.tolist() == [0, 1, 2]
    assert np.array_equal(np.asarray(images.image(1))[..., 0], pixels[1])
    with pytest.raises(BadInput, match="a torchvision data set that is below"):
        read(settings, "torchvision", "cifar10", options={"root": str(tmp_path / "tv")})


def test_hugging_face_data_sets_by_name(settings: Settings, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    root = tree(tmp_path / "hf", {"train/cat/1.png": png(1), "train/dog/2.png": png(2)})
    dataset = read(settings, "huggingface", root)
    assert dataset.class_names == ("cat", "dog")
    assert open_split(dataset, "train", settings).labels.tolist() == [0, 1]


def test_images_that_cannot_be_read(settings: Settings, tmp_path: Path) -> None:
    root = tree(tmp_path / "x", {"cat/1.png": b"", "dog/2.png": png()})
    images = open_split(read(settings, "imagefolder", root), "all", settings)
    with pytest.raises(BadImage, match="empty"):
        images.image(0)
    with pytest.raises(BadInput, match=r"cat/1\.png"):
        images.array()
    (root / "dog/2.png").unlink()
    with pytest.raises(BadImage, match="cannot be read"):
        images.image(1)


def test_real_photos_of_any_mode(settings: Settings, shared_data: Path) -> None:
    dataset = read(settings, "imagefolder", shared_data / "caltech101" / "caltech101_16cls.zip")
    assert {name: split.n_samples for name, split in dataset.splits.items()} == {"train": 256, "test": 128}
    images = open_split(dataset, "test", settings)
    sizes = {images.image(i).size for i in range(len(images))}
    assert len(sizes) > 20
    assert {images.image(i).mode for i in range(20)} == {"RGB"}
