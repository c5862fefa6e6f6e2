"""The demo, as a newcomer runs it: one command, a report, and a store that everything else goes on from."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ZOOGRAFT = str(Path(sys.executable).with_name("zoograft"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def zoograft(data_dir: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ZOOGRAFT_")}
    environment |= {"ZOOGRAFT_DATA_DIR": str(data_dir), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [ZOOGRAFT, *arguments], env=environment, cwd=data_dir, capture_output=True, text=True, timeout=800
    )
    assert result.returncode == expect, result.stderr[-4000:]
    return result


@pytest.fixture(scope="module")
def demo(data_dir: Path) -> dict[str, Any]:
    return json.loads(zoograft(data_dir, "demo", "--json", "-o", "report.html").stdout)


def test_the_demo_finds_complementary_knowledge_and_transfers_it(demo: dict[str, Any], data_dir: Path) -> None:
    assert demo["study"]["state"] == "succeeded"
    methods = {one["label"]: one for one in demo["table"]["methods"]}
    assert set(methods) == {"control", "kl", "kl_dp"}
    assert methods["kl_dp"]["n_transfers"] == methods["kl"]["n_transfers"] == 8
    assert methods["kl_dp"]["success_rate"] > methods["kl"]["success_rate"]
    assert methods["kl_dp"]["mean_delta"] > 0
    for pair in demo["pairs"]:
        difference = pair["positive_flip_rate"] - pair["negative_flip_rate"]
        assert difference == pytest.approx(pair["accuracy_difference"], abs=1e-12)
        assert pair["n_samples"] == 500
    assert (data_dir / "report.html").stat().st_size > 100_000


def test_the_report_loads_nothing_from_anywhere(demo: dict[str, Any], data_dir: Path) -> None:
    text = (data_dir / "report.html").read_text()
    for tag in ('src="http', "src='http", '<link rel="stylesheet" href="http', "@import url(http"):
        assert tag not in text
    assert "demo-vit" in text


def test_everything_goes_on_from_the_demo(demo: dict[str, Any], data_dir: Path) -> None:
    pairs = json.loads(zoograft(data_dir, "pairs", "--dataset", "digits", "--json").stdout)["items"]
    zoo = [pair for pair in pairs if pair["teacher"].startswith("demo-") and pair["student"].startswith("demo-")]
    assert len(zoo) == 30
    zoograft(data_dir, "pairs", "--dataset", "digits", "--csv", "pairs.csv")
    with open(data_dir / "pairs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(pairs)
    assert set(rows[0]) == set(pairs[0])

    pair = zoo[0]
    arguments = ("--teacher", pair["teacher"], "--student", pair["student"], "--dataset", "digits", "--json")
    classes = json.loads(zoograft(data_dir, "classes", *arguments).stdout)["items"]
    assert sum(one["positive_flips"] for one in classes) == round(pair["positive_flip_rate"] * pair["n_samples"])

    # The students of the study are in the catalog, and plain timm opens their folders.
    models = json.loads(zoograft(data_dir, "models", "ls", "--json").stdout)["items"]
    students = [model for model in models if (model["lineage"] or {}).get("method") == "kl_dp"]
    assert len(students) == 8
    import timm

    folder = Path(students[0]["checkpoint"]).parent
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 10

    rows_file = data_dir / "study.parquet"
    zoograft(data_dir, "study", "show", demo["study"]["id"], "-o", str(rows_file))
    import pyarrow.parquet as pq

    table = pq.read_table(rows_file)
    assert table.num_rows == len(demo["table"]["rows"])


def test_doing_it_again_trains_nothing_twice_and_says_the_same(demo: dict[str, Any], data_dir: Path) -> None:
    again = zoograft(data_dir, "predictions", "export", "--help")
    assert again.returncode == 0
    table = json.loads(zoograft(data_dir, "study", "show", demo["study"]["id"], "--json").stdout)["table"]
    assert table["methods"] == demo["table"]["methods"]
