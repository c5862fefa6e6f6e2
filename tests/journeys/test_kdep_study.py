"""A KDEP study from its file to its table, as on the command line: real images, pre-training, downstream, exports."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ZOOGRAFT = str(Path(sys.executable).with_name("zoograft"))
EXAMPLE = Path(__file__).parents[2] / "examples" / "kdep" / "tiny.yaml"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("kdep")
    for archive in ("cifar10/cifar10_sub_imagefolder.zip", "caltech101/caltech101_16cls.zip"):
        shutil.copy(shared_data / archive, folder)
    return folder


def zoograft(data_dir: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ZOOGRAFT_")}
    environment |= {"ZOOGRAFT_DATA_DIR": str(data_dir / "store"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [ZOOGRAFT, *arguments], env=environment, cwd=data_dir, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_tiny_study_runs_to_its_table(data_dir: Path) -> None:
    ran = json.loads(zoograft(data_dir, "study", "run", str(EXAMPLE), "--json"))
    assert ran["job"]["state"] == "succeeded"
    table = ran["table"]
    assert (table["n_failed"], table["n_open"]) == (0, 0)
    assert [(row["method"], row["seed"]) for row in table["rows"]] == [
        ("SVD+PTS", 0), ("SVD+PTS", 1), ("random", 0), ("random", 1)
    ]  # fmt: skip
    assert all(row["n_samples"] == 200 and row["job_s"] > 0 for row in table["rows"])
    taught, random = table["summaries"]
    assert (taught["label"], taught["teacher"], taught["images_seen"]) == ("SVD+PTS", "tiny-teacher", 400)
    assert (random["label"], random["teacher"], random["images_seen"]) == ("random", None, 0)
    for one in (taught, random):
        values = [row["average"] for row in table["rows"] if row["label"] == one["label"]]
        assert one["average"]["mean"] == pytest.approx(sum(values) / 2)
        assert one["average"]["low"] <= one["average"]["mean"] <= one["average"]["high"]
        assert one["sets"]["caltech101"]["values"] == one["average"]["values"]
    (difference,) = table["differences"]
    mine, theirs = taught["average"]["values"], random["average"]["values"]
    assert difference["difference"]["values"] == pytest.approx([a - b for a, b in zip(mine, theirs, strict=True)])

    id = ran["job"]["id"]
    shown = zoograft(data_dir, "study", "show", id)
    assert "SVD+PTS − random from tiny-teacher on 5 %, 2 paired seeds" in shown
    zoograft(data_dir, "study", "show", id, "-o", "rows.csv")
    zoograft(data_dir, "study", "show", id, "-o", "rows.parquet")
    with (data_dir / "rows.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    parquet = pq.read_table(data_dir / "rows.parquet").to_pylist()
    for rows in (written, parquet):
        assert [(row["method"], int(row["seed"])) for row in rows] == [
            ("SVD+PTS", 0), ("SVD+PTS", 1), ("random", 0), ("random", 1)
        ]  # fmt: skip
        assert float(rows[2]["mean"]) == pytest.approx(random["average"]["mean"])
        assert float(rows[2]["mean_low"]) == pytest.approx(random["average"]["low"])
        assert float(rows[2]["difference"]) == pytest.approx(difference["difference"]["mean"])
        assert float(rows[3]["caltech101"]) == pytest.approx(theirs[1])
    zoograft(data_dir, "report", "--study", id, "-o", "report.html")
    assert "Downstream average by the images seen" in (data_dir / "report.html").read_text()
