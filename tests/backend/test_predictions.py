"""Import and export: exact on real models, and nothing half-written on bad files."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select

from backend.domain.errors import BadInput, Conflict, NotFound
from backend.pairing import refresh_pairs
from backend.prediction_files import load
from backend.predictions import export_predictions, import_predictions
from backend.settings import Settings
from backend.store import catalog, results, tables
from backend.store.queries.pairs import pairs
from backend.store.session import Store

LABELS = [0, 0, 1, 1, 2, 2]
IDS = [f"d/{i:03d}.png" for i in range(6)]


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


def write_csv(path: Path, columns: dict[str, list[Any]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def good(top1: list[int] | None = None) -> dict[str, list[Any]]:
    return {"sample_id": list(IDS), "label": list(LABELS), "top1": top1 or [0, 1, 1, 1, 2, 0]}


def everything(store: Store) -> dict[str, int]:
    with store.read() as connection:
        counted = (tables.models, tables.datasets, tables.evaluations, tables.pairs)
        return {one.name: connection.execute(select(func.count()).select_from(one)).scalar_one() for one in counted}


def files(settings: Settings) -> list[Path]:
    return [path for path in Path(settings.artifacts).rglob("*") if path.is_file()]


def stored_pairs(store: Store, split: str | None = None) -> dict[tuple[str, str], Any]:
    with store.read() as connection:
        return {(p.teacher, p.student): p for p in pairs(connection, split=split, limit=200).items}


def test_the_twelve_imagenet_models_give_exactly_the_reference_counts(
    store: Store, settings: Settings, shared_data: Path
) -> None:
    folder = shared_data / "imagenet-zoo-preds"
    reference = np.load(folder / "reference_flips_counts.npz")
    names = [str(name) for name in reference["models"]]
    began = time.perf_counter()
    for name in names:
        import_predictions(store, settings, folder / "val_top1_12models.npz", model=name, dataset="imagenet")
    assert time.perf_counter() - began < 60
    found = stored_pairs(store)
    assert len(found) == 132
    for t, teacher in enumerate(names):
        for s, student in enumerate(names):
            if t != s:
                pair = found[teacher, student]
                assert round(pair.positive_flip_rate * 50_000) == reference["pos_flips"][t, s]
                assert round(pair.teacher_accuracy * 50_000) == reference["correct"][t]
    smallest = min(found.values(), key=lambda pair: pair.positive_flip_rate)
    assert (smallest.teacher, smallest.student) == ("alexnet", "pnasnet5large")
    assert round(smallest.positive_flip_rate, 5) == 0.02114
    known = found["resnet18", "resnet50"]
    assert (round(known.positive_flip_rate, 5), round(known.negative_flip_rate, 5)) == (0.03946, 0.10318)
    with store.read() as connection:
        dataset = catalog.get_dataset(connection, "imagenet")
        assert (dataset.source, dataset.n_classes, dataset.splits["val"].n_samples) == ("external", 1000, 50_000)
        assert catalog.get_model(connection, "alexnet").source == "external"


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_what_is_exported_imports_as_the_same(store: Store, settings: Settings, tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 40)
    labels[0] = 6
    np.savez(tmp_path / "a.npz", logits=logits, labels=labels, sample_ids=np.array([f"{i:04d}" for i in range(40)]))
    first = import_predictions(store, settings, tmp_path / "a.npz", model="a", dataset="d")
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert first.accuracy == (logits.argmax(1) == labels).mean()
    path = tmp_path / f"out.{kind}"
    assert export_predictions(store, settings, path, model="a", dataset="d") == 40
    import_predictions(store, settings, path, model="b", dataset="d")
    with store.read() as connection:
        one, two = (load(results.current_evaluation(connection, name, "d", "val")) for name in "ab")
    np.testing.assert_allclose(one.p_top1, probs.max(1), rtol=1e-5)
    np.testing.assert_allclose(one.p_label, probs[np.arange(40), labels], rtol=1e-5)
    assert one.sample_ids.tolist() == [f"{i:04d}" for i in range(40)]
    for name in ("sample_ids", "labels", "top1", "p_top1", "p_label", "top5", "p_top5"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    pair = stored_pairs(store)["a", "b"]
    assert (pair.positive_flip_rate, pair.negative_flip_rate, pair.mcnemar_p_value) == (0, 0, 1)
    assert list(tmp_path.glob(".*")) == []


BAD: list[tuple[dict[str, list[Any]], str]] = [
    ({"sample_id": IDS, "top1": LABELS}, "label is missing"),
    ({**good(), "sample_id": [IDS[0], IDS[0], *IDS[2:]]}, "ids that are unique"),
    ({**good(), "sample_id": ["", *IDS[1:]]}, "an id in every row"),
    ({**good(), "label": [0, 0, 1, 1, 2, -1]}, "class indices from 0"),
    ({**good(), "top1": [0, 0, 1, 1, 2, 9]}, "a class of 'd', 0 to 2"),
    ({**good(), "label": [0, 0, 1, 1, 2, 3]}, "a class of 'd', 0 to 2"),
    ({**good(), "top1": [0, 0, 1, 1, 2, "nan"]}, "top1"),
    ({**good(), "top1": [0, 0, 1, 1, 2, ""]}, "top1"),
    ({**good(), "top1": [0, 0, 1, 1, 2, 0.5]}, "whole numbers"),
    ({**good(), "top1": [0, 0, 1, 1, 2, 10**12]}, "class indices"),
    ({**good(), "top1": ["cat"] * 6}, "numbers"),
    ({**good(), "p_top1": [0.5, 0.5, 0.5, 0.5, 0.5, 1.5]}, "probabilities"),
    ({**good(), "p_label": [0.5, 0.5, 0.5, 0.5, 0.5, "nan"]}, "p_label.*row 6"),
    ({**good(), "top5": ["0 1", "0 1", "0 1", "0 1", "0 1", "0 1 2"]}, "lists of one length"),
    ({**good(), "sample_id": [f"x{i}" for i in range(6)]}, "ids of the samples that other models"),
    ({name: [] for name in good()}, "at least one prediction"),
]


@pytest.mark.parametrize(("columns", "told"), BAD)
def test_bad_files_write_nothing(
    store: Store, settings: Settings, tmp_path: Path, columns: dict[str, list[Any]], told: str
) -> None:
    names = ("ant", "bee", "cow")
    path = write_csv(tmp_path / "a.csv", good())
    import_predictions(store, settings, path, model="a", dataset="d", class_names=names)
    import_predictions(store, settings, write_csv(tmp_path / "b.csv", good([0] * 6)), model="b", dataset="d")
    before, kept = everything(store), files(settings)
    assert before == {"models": 2, "datasets": 1, "evaluations": 2, "pairs": 2}
    with pytest.raises(BadInput, match=told):
        import_predictions(store, settings, write_csv(tmp_path / "c.csv", columns), model="c", dataset="d")
    assert everything(store) == before
    assert files(settings) == kept


def test_labels_that_disagree_write_nothing(store: Store, settings: Settings, tmp_path: Path) -> None:
    import_predictions(store, settings, write_csv(tmp_path / "a.csv", good()), model="a", dataset="d")
    before = everything(store)
    other = {**good(), "label": [0, 0, 1, 1, 2, 1]}
    with pytest.raises(Conflict, match=r"sample 'd/005\.png' disagree"):
        import_predictions(store, settings, write_csv(tmp_path / "b.csv", other), model="b", dataset="d")
    assert everything(store) == before


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"top1": np.zeros(3, int)}, "an array 'labels'"),
        ({"labels": np.zeros(3, int)}, "'logits'"),
        ({"labels": np.zeros(3, int), "logits": np.zeros((2, 4), np.float32)}, "one row for each"),
        ({"labels": np.full(3, 4), "logits": np.zeros((3, 4), np.float32)}, "a class below 4"),
        ({"labels": np.zeros(3, int), "logits": np.full((3, 4), np.nan, np.float32)}, "row 0"),
        (
            {"labels": np.zeros(3, int), "top1": np.zeros((2, 3), int), "models": np.array(["x", "y"])},
            "one of the models",
        ),
        ({"labels": np.zeros(3, int), "top1": np.zeros((2, 3), int)}, "one more with 'models'"),
        ({"labels": np.zeros(3, int), "top1": np.zeros(2, int)}, "one prediction and one id"),
    ],
)
def test_bad_npz_files(store: Store, settings: Settings, tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(BadInput, match=told):
        import_predictions(store, settings, tmp_path / "x.npz", model="m", dataset="d")
    assert everything(store) == {"models": 0, "datasets": 0, "evaluations": 0, "pairs": 0}


def test_files_that_are_none(store: Store, settings: Settings, tmp_path: Path) -> None:
    for name in ("x.csv", "x.parquet", "x.npz"):
        with pytest.raises(BadInput, match="existing file"):
            import_predictions(store, settings, tmp_path / name, model="m", dataset="d")
        (tmp_path / name).write_bytes(b"\x00\x01garbage\xff")
        with pytest.raises(BadInput, match=r"file|columns"):
            import_predictions(store, settings, tmp_path / name, model="m", dataset="d")
    with pytest.raises(BadInput, match="ends in"):
        import_predictions(store, settings, tmp_path / "x.txt", model="m", dataset="d")
    with pytest.raises(NotFound):
        export_predictions(store, settings, tmp_path / "y.csv", model="m", dataset="d")


def test_models_on_different_samples_pair_on_those_they_share(store: Store, settings: Settings, tmp_path: Path) -> None:
    import_predictions(store, settings, write_csv(tmp_path / "a.csv", good()), model="a", dataset="d")
    part = {name: list(reversed(values[2:])) for name, values in good([9, 9, 1, 0, 2, 2]).items()}
    import_predictions(store, settings, write_csv(tmp_path / "b.csv", part), model="b", dataset="d")
    pair = stored_pairs(store)["a", "b"]
    assert (pair.n_samples, pair.teacher_accuracy, pair.student_accuracy) == (4, 0.75, 0.75)
    assert (pair.positive_flip_rate, pair.negative_flip_rate) == (0.25, 0.25)


def test_step_by_step_is_the_same_as_all_at_once(store: Store, settings: Settings, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 80)
    labels[0] = 4
    for i in range(6):
        kept = np.sort(rng.permutation(80)[: 60 + 4 * i]) if i % 2 else np.arange(80)
        table = pa.table(
            {
                "sample_id": [f"{k:03d}" for k in kept],
                "label": labels[kept],
                "top1": np.where(rng.random(len(kept)) < 0.6, labels[kept], rng.integers(0, 5, len(kept))),
            }
        )
        pq.write_table(table, tmp_path / f"{i}.parquet")
        import_predictions(store, settings, tmp_path / f"{i}.parquet", model=f"m{i}", dataset="d")
    step_by_step = stored_pairs(store)
    assert len(step_by_step) == 30
    assert refresh_pairs(store, settings, "d", "val") == 30
    assert stored_pairs(store) == step_by_step


def test_an_external_data_set_grows_by_classes_and_splits(store: Store, settings: Settings, tmp_path: Path) -> None:
    import_predictions(store, settings, write_csv(tmp_path / "a.csv", good()), model="a", dataset="d")
    import_predictions(store, settings, write_csv(tmp_path / "b.csv", good([7] * 6)), model="b", dataset="d")
    import_predictions(store, settings, write_csv(tmp_path / "t.csv", good()), model="a", dataset="d", split="test")
    with store.read() as connection:
        dataset = catalog.get_dataset(connection, "d")
    assert dataset.class_names == tuple("01234567")
    assert set(dataset.splits) == {"val", "test"}
    assert len(stored_pairs(store, "val")) == 2
