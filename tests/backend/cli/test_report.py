"""Reports hold what the store holds, load nothing from anywhere, and show hostile texts as texts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from PIL import Image

from backend import thumbnails
from backend.cli.report import write_report
from backend.domain.errors import BadInput, NotFound
from backend.domain.kdep import estimate
from backend.domain.kdep_studies import KdepStudySpec, plan_kdep_study
from backend.domain.specs import TransferSpec, dump_spec
from backend.domain.studies import StudySpec, plan_study
from backend.predictions import import_predictions
from backend.settings import Settings
from backend.store import catalog
from backend.store.session import Store
from tests.services.driver import Driver

EVIL = "<script>alert(1)</script><img src=https://evil.example/x.png>"
LABEL = "KL <b>&</b> </script><script>alert(2)</script>"


class Parsed(HTMLParser):
    """Tags, their attributes, the text of scripts apart from the text that is shown."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.shown: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open and self.open[-1] != "style":
            self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.shown).split())

    def figures(self, scheme: str) -> list[dict[str, Any]]:
        return [json.loads(text) for attrs, text in self.scripts if attrs.get("class") == scheme]


def check(path: Path) -> Parsed:
    """What holds of every report."""
    page = Parsed(path.read_text(encoding="utf-8"))
    assert page.open == []
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value is not None
            assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
    assert not re.search(r"url\(|@import", path.read_text(encoding="utf-8").split("</style>")[0])
    policy = [value for tag, name, value in page.attributes if tag == "meta" and value and "default-src" in value]
    assert policy == ["default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"]
    # plotly.js, the page's own script, and two figures a plot; nothing that a text brought in
    plots = len(page.figures("light"))
    assert len(page.figures("dark")) == plots
    assert len(page.scripts) == 2 + 2 * plots
    assert "plotly.js v" in page.scripts[-2][1]
    for light, dark in zip(page.figures("light"), page.figures("dark"), strict=True):
        assert [trace["type"] for trace in light["data"]] == [trace["type"] for trace in dark["data"]]
        assert light["layout"]["template"] != dark["layout"]["template"]
    assert page.open == []
    return page


@pytest.fixture
def hostile(zoo: Store, settings: Settings, tmp_path: Path) -> Store:
    """The small zoo again on a data set whose class names and sample ids are markup, with one thumbnail."""
    for name, top1 in (("student", [0, 1, 1]), ("teacher", [0, 0, 1])):
        path = tmp_path / f"{name}-evil.npz"
        logits = np.full((3, 2), -1.0, dtype=np.float32)
        logits[np.arange(3), top1] = 2.0
        ids = np.array(["a.png", f"{EVIL.replace('/', '')}.png", "c.png"])
        np.savez(path, logits=logits, labels=np.array([0, 0, 1]), sample_ids=ids)
        import_predictions(zoo, settings, path, model=name, dataset="evil", split="val", class_names=(EVIL, "bee"))
    with zoo.read() as connection:
        fingerprint = catalog.get_dataset(connection, "golden").splits["val"].fingerprint
    thumbnails.pack(settings, fingerprint, {"dir/s03.png": thumbnails.make(Image.new("RGB", (8, 8), "red"))})
    return zoo


def result(delta: float, teachers: tuple[str, ...], student: str, epochs: int = 2) -> dict[str, Any]:
    gain, loss = (delta + 0.02, 0.02)
    numbers = {
        "student_accuracy_after": 0.5 + delta,
        "transfer_delta": delta,
        "knowledge_gain": gain,
        "knowledge_loss": loss,
    }
    ends = {
        f"{name}_{end}": value + (0.01 if end == "high" else -0.01)
        for name, value in numbers.items()
        for end in ("low", "high")
    }
    return {
        **numbers,
        **ends,
        "n_samples": 12,
        "n_classes": 3,
        "student_accuracy_before": 0.5,
        "control_delta": 0.015 if teachers else None,
        "transfer_rate": {"2": 0.5, "5": 0.5, "20": 0.4, "50": 0.3, "100": 0.25} if teachers else {},
        "teachers": {
            name: {
                "teacher_accuracy": 0.6,
                "positive_flip_rate_before": 0.3,
                "negative_flip_rate_before": 0.2,
                "positive_flip_rate_delta": -0.1,
                "negative_flip_rate_delta": -0.1,
            }
            for name in teachers
        },
        "teacher_names": list(teachers),
        "method": "kl",
        "student": student,
        "dataset": "golden",
        "epochs": [
            {
                "epoch": i + 1,
                "student_accuracy": 0.5,
                "transfer_delta": 0.0,
                "knowledge_gain": 0.0,
                "knowledge_loss": 0.0,
            }
            for i in range(epochs)
        ],
        "provenance": {"versions": {"torch": "2.99", "zoograft": "0.1.0"}, "device": "cpu"},
    }


def run_study(store: Store) -> UUID:
    """A study of two methods on all pairs of three models, finished but for one transfer that failed."""
    spec = StudySpec.model_validate(
        {
            "name": "grafts",
            "description": f"What {EVIL} brings",
            "dataset": "golden",
            "models": ["student", "teacher", "after"],
            "methods": [{"method": "kl", "label": LABEL}, "kl_dp"],
            "scan": False,
        }
    )
    driver = Driver(store)
    parent = driver.add_one(kind="study", spec=dump_spec(spec))
    for number, child in enumerate(plan_study(spec)):
        assert isinstance(child.spec, TransferSpec)
        driver.add_one(kind="transfer", spec=dump_spec(child.spec), parent=parent)
        claim = driver.claimed()
        delta = 0.01 * (number % 5) - 0.015
        driver.publish(claim, result(delta, child.spec.teachers, child.spec.student))
    return parent


def test_a_pair(zoo: Store, hostile: Store, settings: Settings, tmp_path: Path) -> None:
    driver = Driver(zoo)
    spec = TransferSpec.model_validate(
        {"teachers": ["teacher"], "student": "student", "dataset": "golden", "method": "kl_dp"}
    )
    job = driver.add_one(kind="transfer", spec=dump_spec(spec))
    driver.publish(driver.claimed(), result(0.25, ("teacher",), "student"))
    output = tmp_path / "pair.html"
    write_report(settings, zoo, output, pair=("teacher", "student"), study=None, dataset="golden", split=None)
    page = check(output)
    # six positive flips and three negative ones of twelve samples
    assert "Positive flips: only the teacher is right 50.00 %" in page.text
    assert "Negative flips: only the student is right 25.00 %" in page.text
    assert "teacher − student +25.00 pp" in page.text
    assert str(job) in page.text
    assert "+25.00 pp (+24.00 to +26.00)" in page.text
    assert "2.99" in page.text
    figures = page.figures("light")
    assert [trace["type"] for trace in figures[0]["data"]] == ["bar", "bar"]
    assert figures[1]["data"][0]["x"] == [25.0]
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(pictures) == 1  # the only sample with a thumbnail
    assert page.text.count("no thumbnail") == 8
    assert page.text.count("id dir/s") == 9


def test_hostile_texts_are_shown_as_texts(hostile: Store, settings: Settings, tmp_path: Path) -> None:
    output = tmp_path / "evil.html"
    write_report(settings, hostile, output, pair=("teacher", "student"), study=None, dataset="evil", split=None)
    page = check(output)
    assert EVIL in page.text
    names = [point[0] for trace in page.figures("light")[0]["data"] for point in trace["customdata"]]
    assert all("<" not in name for name in names)
    assert any("&lt;script&gt;" in name for name in names)
    assert "None has finished yet" in page.text


def test_a_study(hostile: Store, settings: Settings, tmp_path: Path) -> None:
    study = run_study(hostile)
    output = tmp_path / "study.html"
    write_report(settings, hostile, output, pair=None, study=study, dataset=None, split=None)
    page = check(output)
    assert f"What {EVIL} brings" in page.text
    assert LABEL in page.text
    assert "kl_dp − " in page.text
    kinds = [{trace["type"] for trace in figure["data"]} for figure in page.figures("light")]
    assert {"box"} in kinds
    assert {"heatmap"} in kinds
    assert kinds.count({"scatter"}) >= 8
    # 3 controls and 6 pairs by each of 2 methods, every one a row with its job
    assert len(set(re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", page.text))) == 15 + 1
    assert "hash of the spec" in page.text
    assert "models: - student - teacher - after" in page.text
    drawn = json.dumps(page.figures("light"))
    assert "click opens" not in drawn
    assert "<b>&</b>" not in drawn


def test_a_study_that_has_nothing_yet(zoo: Store, settings: Settings, tmp_path: Path) -> None:
    spec = {"name": "s", "dataset": "nowhere", "models": ["student", "unknown"], "methods": ["kl"]}
    study = Driver(zoo).add_one(kind="study", spec=dump_spec(StudySpec.model_validate(spec)))
    output = tmp_path / "study.html"
    write_report(settings, zoo, output, pair=None, study=study, dataset=None, split=None)
    assert "No transfer of this study has finished yet." in check(output).text


def run_kdep_study(store: Store) -> UUID:
    """Two methods on two seeds, one of them without a teacher."""
    spec = KdepStudySpec.model_validate(
        {
            "name": "small",
            "student": {"name": "tiny", "architecture": "test_resnet"},
            "teachers": ["teacher"],
            "dataset": "golden",
            "settings": {"epochs": 2},
            "methods": [{"label": LABEL}, {"label": "random", "method": "none"}],
            "seeds": [0, 1],
            "downstream": ["golden"],
        }
    )
    driver = Driver(store)
    parent = driver.add_one(kind="study", spec=spec.model_dump(mode="json"))
    for number, child in enumerate(plan_kdep_study(spec)):
        if child.kind == "kdep":
            driver.add_one(kind="kdep", spec=dump_spec(child.spec), parent=parent)
            found = estimate([0.5 + 0.01 * number])
            downstream = {
                "average": found.model_dump(),
                "sets": [{"dataset": "golden", "lr": 0.1, "validation": {}, "test": found.model_dump()}],
            }
            told = {"teacher": getattr(child.spec, "teacher", None), "n_samples": 12, "downstream": downstream}
            driver.publish(driver.claimed(), told)
    return parent


def test_a_kdep_study(hostile: Store, settings: Settings, tmp_path: Path) -> None:
    study = run_kdep_study(hostile)
    output = tmp_path / "kdep.html"
    write_report(settings, hostile, output, pair=None, study=study, dataset=None, split=None)
    page = check(output)
    assert LABEL in page.text
    assert f"{LABEL} − random" in page.text
    means = [point for trace in page.figures("light")[0]["data"] for point in trace["y"]]
    # the register jobs of two students come first
    assert means == pytest.approx([52.5, 54.5])
    assert [trace["type"] for trace in page.figures("dark")[1]["data"]] == ["bar", "bar"]


def test_bad_questions(zoo: Store, settings: Settings, tmp_path: Path) -> None:
    def write(output: Path, pair: Any = None, study: Any = None) -> None:
        write_report(settings, zoo, output, pair=pair, study=study, dataset=None, split=None)

    output = tmp_path / "r.html"
    with pytest.raises(BadInput, match="either a pair or a study"):
        write(output)
    with pytest.raises(NotFound, match="nobody"):
        write(output, pair=("teacher", "nobody"))
    with pytest.raises(NotFound):
        write(output, study=uuid4())
    with pytest.raises(BadInput, match="--output"):
        write(tmp_path / "no" / "folder" / "r.html", pair=("teacher", "student"))
    with pytest.raises(BadInput, match="--output"):
        write(tmp_path, pair=("teacher", "student"))
    assert list(tmp_path.glob("*.html")) == []
    assert list(tmp_path.glob(".*")) == []
