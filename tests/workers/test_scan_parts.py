"""Parts: there when committed, whole or done again."""

from pathlib import Path

import numpy as np
import pytest

from backend.prediction_files import Predictions
from workers.scan_parts import Part, Parts

IDS = ["a", "b", "c"]


def part(with_logits: bool = False) -> Part:
    predictions = Predictions(
        np.array(["a", "c"]),
        np.array([0, 1]),
        np.array([0, 0]),
        np.array([0.5, 0.6], np.float32),
        np.array([0.5, 0.4], np.float32),
        np.array([[0, 1], [0, 1]]),
        np.array([[0.5, 0.5], [0.6, 0.4]], np.float32),
    )
    return Part(predictions, {"b": "the file is empty"}, np.eye(2, dtype=np.float32) if with_logits else None)


@pytest.mark.parametrize("base", ["folder", "memory://parts"])
def test_a_part_comes_back_as_it_was_committed(tmp_path: Path, base: str) -> None:
    parts = Parts(str(tmp_path) if base == "folder" else base, "k" * 64, with_logits=True)
    assert parts.find(0, IDS) is None
    parts.commit(0, part(True), IDS)
    found = parts.find(0, IDS)
    assert found is not None
    assert found.bad == {"b": "the file is empty"}
    assert found.predictions.sample_ids.tolist() == ["a", "c"]
    assert np.array_equal(found.predictions.p_top5, part().predictions.p_top5)
    assert np.array_equal(found.logits, np.eye(2))
    assert parts.find(0, ["a", "b", "d"]) is None
    assert parts.find(1, IDS) is None
    parts.clear(1)
    assert parts.find(0, IDS) is None


def test_an_empty_part_is_a_part(tmp_path: Path) -> None:
    nothing = np.zeros(0, dtype=np.int64)
    parts = Parts(str(tmp_path), "k")
    parts.commit(3, Part(Predictions(np.array([], dtype=np.str_), nothing, nothing), dict.fromkeys(IDS, "gone")), IDS)
    found = parts.find(3, IDS)
    assert found is not None
    assert len(found.predictions) == 0
    assert set(found.bad) == set(IDS)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "no checksum", "other logits"])
def test_a_damaged_part_is_not_there(tmp_path: Path, damage: str) -> None:
    parts = Parts(str(tmp_path), "k", with_logits=True)
    parts.commit(0, part(True), IDS)
    file = next(tmp_path.rglob("*.npy" if damage == "other logits" else "*.parquet"))
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-10])
    elif damage in ("flip", "other logits"):
        file.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    elif damage == "gone":
        file.unlink()
    else:
        next(tmp_path.rglob("*.sha256")).unlink()
    assert parts.find(0, IDS) is None
