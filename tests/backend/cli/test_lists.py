"""Commands that show: the same numbers as REST, as tables, JSON and CSV."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backend.domain.pairs import ClassFlips, Pair
from backend.store.session import Store
from tests.backend.cli.conftest import Ran


def test_pairs(zoograft: Callable[..., Ran], zoo: Store, tmp_path: Path) -> None:
    items = zoograft("pairs", "--json").json["items"]
    assert len(items) == 6
    assert set(items[0]) == set(Pair.model_fields)
    rates = [item["positive_flip_rate"] for item in items]
    assert rates == sorted(rates, reverse=True)
    assert zoograft("pairs", "--limit", 2, "--json").json["items"] == items[:2]
    one = zoograft("pairs", "--teacher", "teacher", "--student", "student", "--json").json["items"]
    assert [(pair["positive_flip_rate"], pair["negative_flip_rate"]) for pair in one] == [(0.5, 0.25)]

    ran = zoograft("pairs", "--csv", tmp_path / "pairs.csv")
    assert ran.code == 0
    rows = list(csv.DictReader((tmp_path / "pairs.csv").read_text().splitlines()))
    assert list(rows[0]) == list(Pair.model_fields)
    assert [float(row["positive_flip_rate"]) for row in rows] == rates
    assert zoograft("pairs", "--csv", "-").out == (tmp_path / "pairs.csv").read_text()
    assert zoograft("pairs", "--csv", tmp_path / "none" / "x.csv").code == 2

    table = zoograft("pairs").out.splitlines()
    assert len(table) == 7
    assert table[0].split()[:2] == ["teacher", "student"]
    assert "50.00 %" in zoograft("pairs", "--teacher", "teacher", "--student", "student").out
    empty = zoograft("pairs", "--teacher", "nobody*")
    assert empty.code == 0
    assert "zoograft scan" in empty.err


def test_classes(zoograft: Callable[..., Ran], zoo: Store, tmp_path: Path) -> None:
    ask = ("classes", "--teacher", "teacher", "--student", "student", "--dataset", "golden")
    items = zoograft(*ask, "--json").json["items"]
    assert [(row["class_name"], row["positive_flips"]) for row in items] == [("cow", 3), ("ant", 2), ("bee", 1)]
    assert set(items[0]) == set(ClassFlips.model_fields)
    assert "75.00 %" in zoograft(*ask).out
    tops = zoograft(*ask, "--top-p", "20,80", "--json").json["items"]
    assert [(one["class_names"], one["n_flips"], one["mean_cosine"]) for one in tops] == [
        (["cow"], 3, None),
        (["cow", "ant"], 5, None),
    ]
    # Two of three classes have a vector, by name; 45 degrees between them.
    np.savez(tmp_path / "v.npz", embedding=[[1.0, 0.0], [2.0, 2.0], [0.0, 1.0]], names=["Cow", "ant", "zebra"])
    similar = (*ask, "--top-p", "80", "--embeddings", tmp_path / "v.npz")
    [one] = zoograft(*similar, "--json").json["items"]
    assert (one["n_covered"], one["n_covered_all"]) == (2, 2)
    assert one["mean_cosine"] == pytest.approx(2**-0.5)
    assert one["relative_similarity"] == pytest.approx(0)
    assert "2 of 2" in zoograft(*similar).out
    assert zoograft(*ask, "--embeddings", tmp_path / "v.npz").out.count(" %") >= 5
    zoograft(*similar, "--csv", tmp_path / "tops.csv")
    assert next(csv.DictReader((tmp_path / "tops.csv").read_text().splitlines()))["class_names"] == "cow;ant"
    for wrong, message in (("0", "--top-p"), ("5,x", "--top-p"), ("101", "--top-p")):
        ran = zoograft(*ask, "--top-p", wrong)
        assert (ran.code, message in ran.err) == (2, True)
    for content in ({"vectors": [1.0]}, {"vectors": [[1.0]], "names": ["zebra"]}, {"other": [1]}):
        np.savez(tmp_path / "wrong.npz", **content)
        ran = zoograft(*ask, "--embeddings", tmp_path / "wrong.npz")
        assert (ran.code, "embeddings" in ran.err) == (2, True)
    assert zoograft(*ask, "--embeddings", tmp_path / "none.npz").code == 2

    zoograft(*ask, "--csv", tmp_path / "classes.csv")
    assert next(csv.reader((tmp_path / "classes.csv").read_text().splitlines())) == list(ClassFlips.model_fields)


def test_models_and_data_sets(zoograft: Callable[..., Ran], zoo: Store) -> None:
    assert [item["name"] for item in zoograft("models", "ls", "--json").json["items"]] == [
        "after",
        "student",
        "teacher",
    ]
    assert [item["name"] for item in zoograft("models", "ls", "t*", "--json").json["items"]] == ["teacher"]
    assert "external" in zoograft("models", "ls").out
    shown = zoograft("models", "show", "teacher")
    assert "66.67 %" in shown.out
    assert zoograft("models", "show", "teacher", "--json").json["name"] == "teacher"
    assert "val 12" in zoograft("datasets", "ls").out
    assert zoograft("datasets", "show", "golden", "--json").json["class_names"] == ["ant", "bee", "cow"]
    assert zoograft("datasets", "show", "golden").code == 0


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_predictions_out_and_in_again(zoograft: Callable[..., Ran], zoo: Store, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"out.{suffix}"
    where = ("--dataset", "golden")
    assert zoograft("predictions", "export", "--model", "teacher", *where, "-o", file, "--json").json["rows"] == 12
    ran = zoograft("predictions", "import", file, "--model", "copy", *where, "--json")
    assert ran.json["accuracy"] == pytest.approx(8 / 12)
    # The pairs are there when the import returns.
    found = zoograft("pairs", "--teacher", "copy", "--student", "student", "--json").json["items"]
    assert [(pair["positive_flip_rate"], pair["negative_flip_rate"]) for pair in found] == [(0.5, 0.25)]
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    fresh = zoograft(
        "predictions", "import", file, "--model", "copy", "--dataset", "new", "--class-names", tmp_path / "classes.txt"
    )
    assert fresh.code == 0
    assert zoograft("datasets", "show", "new", "--json").json["class_names"] == ["ant", "bee", "cow"]


def test_names_of_others_cannot_draw_on_the_terminal(zoograft: Callable[..., Ran], zoo: Store, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("=cmd()\n\x1b[31mred\n[bold]b[/bold]\n")
    (tmp_path / "p.csv").write_text("sample_id,label,top1\n1,0,0\n2,1,1\n3,2,2\n")
    (tmp_path / "q.csv").write_text("sample_id,label,top1\n1,0,1\n2,1,0\n3,2,0\n")
    for name in ("p", "q"):
        assert (
            zoograft(
                *("predictions", "import", tmp_path / f"{name}.csv", "--model", name, "--dataset", "odd"),
                *("--class-names", tmp_path / "classes.txt"),
            ).code
            == 0
        )
    ask = ("classes", "--teacher", "p", "--student", "q", "--dataset", "odd")
    assert "\x1b" not in zoograft(*ask).out
    assert "[bold]b[/bold]" in zoograft(*ask).out
    zoograft(*ask, "--csv", tmp_path / "c.csv")
    names = [row["class_name"] for row in csv.DictReader((tmp_path / "c.csv").read_text().splitlines())]
    assert "'=cmd()" in names  # no spreadsheet runs it
