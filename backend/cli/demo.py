"""`zoograft demo`: the whole job on real data in about two minutes, through the same doors as everything else.

Six small timm models of three families learn scikit-learn's digits (seeded, stopped early), are scanned and paired, and
eight pairs are transferred by KL and by KL+DP, beside the control without a teacher: two tables and a report.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.cli.follow import attach, finish
from backend.cli.output import note, percent, print_json, print_table
from backend.cli.study_table import print_study
from backend.domain.jobs import JobState
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.store.session import Store

DATASET, SPLIT = "digits", "val"
SHOWN_PAIRS = 12


def _entry(name: str, architecture: str, epochs: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": architecture,
        "kwargs": {"num_classes": 10, **kwargs},
        "input_size": [3, 32, 32],
        "crop_pct": 1.0,
        "train": {"epochs": epochs, "lr": 0.02},
    }


STUDY: dict[str, Any] = {
    "name": "demo",
    "description": "KL against KL+DP on eight pairs of six small models on handwritten digits",
    "datasets": [{"name": DATASET, "source": "digits"}],
    "dataset": DATASET,
    "train_split": "train",
    "split": SPLIT,
    "zoo": [
        _entry("demo-resnet", "test_resnet", 3),
        _entry("demo-vit", "test_vit", 12, img_size=32),
        _entry("demo-efficientnet", "test_efficientnet", 3),
        _entry("demo-convnext", "test_convnext", 2),
        _entry("demo-mambaout", "test_mambaout", 3),
        _entry("demo-coatnet", "test_coatnet", 4, img_size=32),
    ],
    "pairs": [
        ["demo-vit", "demo-resnet"],
        ["demo-vit", "demo-convnext"],
        ["demo-vit", "demo-efficientnet"],
        ["demo-resnet", "demo-convnext"],
        ["demo-mambaout", "demo-convnext"],
        ["demo-convnext", "demo-vit"],
        ["demo-efficientnet", "demo-vit"],
        ["demo-resnet", "demo-vit"],
    ],
    "methods": ["kl", "kl_dp"],
    "settings": {"lr": 0.01, "epochs": 8, "batch_size": 64, "augment": "none"},
    "save_students": True,
}


def run_demo(settings: Settings, store: Store, *, output: Path | None, json: bool) -> None:
    """Run it, print what was found, write the report, and say what to try next. Exits 1 where a job failed."""
    from backend import studies, submission
    from backend.cli.report import write_report
    from backend.store.queries import pairs as queries

    report = output or Path("report.html")
    note("Training six small models on scikit-learn's digits, scanning them, and transferring between eight pairs.")
    job = submission.submit(store, settings, "study", studies.parse(STUDY)).job
    ended = attach(settings, store, job, json=False, finish_it=False)
    if ended.state != JobState.SUCCEEDED:
        finish(ended, json=json)
    with store.read() as connection:
        table = studies.study_table(connection, job.id)
        page = queries.pairs(
            connection, dataset=DATASET, split=SPLIT, teacher="demo-*", student="demo-*", limit=SHOWN_PAIRS
        )
    write_report(settings, store, report, pair=None, study=job.id, dataset=DATASET, split=SPLIT)
    if json:
        print_json({"study": ended, "table": table, "pairs": page.items, "report": str(report)})
        return
    print(f"\nWhat a model knows that another does not ({DATASET}/{SPLIT}, the {SHOWN_PAIRS} largest):\n")
    print_table(
        ("teacher", "student", "teacher acc.", "student acc.", "positive flips", "negative flips", "entropy (nats)"),
        (
            (
                pair.teacher,
                pair.student,
                percent(pair.teacher_accuracy, 1),
                percent(pair.student_accuracy, 1),
                percent(pair.positive_flip_rate, 1),
                percent(pair.negative_flip_rate, 1),
                f"{pair.flip_entropy_nats:.2f}",
            )
            for pair in page.items
        ),
    )
    print("\nGrafting it over, with and without partitioning the data (points are percentage points of accuracy):\n")
    print_study(table)
    best = max((row for row in table.rows if row.teachers), key=lambda row: row.transfer_delta)
    print(
        f"\nReport: {report.resolve()}\n\nNext:\n"
        f"  zoograft up                                    explore the pairs in the browser\n"
        f"  zoograft classes --teacher {best.teachers[0]} --student {best.student} --dataset {DATASET}\n"
        f"  zoograft transfer --teacher {best.teachers[0]} --student {best.student} --dataset {DATASET} "
        "--method kl_dp --set lr=0.01 --set epochs=20 --set 'augment=\"none\"'"
    )
