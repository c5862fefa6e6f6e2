"""A study's table as people read it: the control with its interval, and several teachers beside one."""

from __future__ import annotations

import json
from typing import Any

from backend.cli.study_table import print_study
from backend.domain.study_pairs import PairSummary
from backend.domain.study_summary import StudyRow, StudyTable, summarise


def row(label: str, teachers: tuple[str, ...], delta: float, seed: int, **params: Any) -> StudyRow:
    return StudyRow(
        job_id=f"{label}-{'+'.join(teachers)}-{seed}",
        label=label,
        method="kl_dp",
        params={"lr": 1.0, "epochs": 1, "seed": seed, **params},
        teachers=teachers,
        student="s",
        seed=seed,
        n_samples=100,
        student_accuracy_before=0.5,
        student_accuracy_after=0.5 + delta,
        teacher_accuracy={"a": 0.9, "b": 0.4}.get(teachers[0]) if teachers else None,
        transfer_delta=delta,
        knowledge_gain=max(delta, 0.0),
        knowledge_loss=max(-delta, 0.0),
    )


def table() -> StudyTable:
    rows = []
    for seed, shift in ((0, 0.0), (1, 0.01)):
        rows += [
            row("control", (), 0.01 + shift, seed),
            row("kl_dp", ("a",), 0.02 + shift, seed),
            row("kl_dp", ("b",), 0.03 + shift, seed),
            row("kl_dp parallel ×2", ("a", "b"), 0.06 + 3 * shift, seed, multi="parallel"),
        ]
    return summarise(rows)


def test_several_teachers_and_the_control_are_printed_with_intervals(capsys):
    print_study(table())
    out = capsys.readouterr().out
    assert "above control [95 %]" in out
    assert "+1.5 [+1.5, +1.5]" in out
    assert (
        "kl_dp parallel ×2 − best single teacher, 2 sets and seeds: mean Δ +7.5 against +3.5, difference +4.0 "
        "[+3.0, +5.0] points (95 %), better in 100.0 %" in out.replace("100 %", "100.0 %")
    )
    assert "− most accurate teacher, 2 sets and seeds: mean Δ +7.5 against +2.5" in out


def test_the_dashboard_shows_the_same_comparison():
    from dashboard.components import transfer_charts

    shown = json.dumps(transfer_charts.teacher_sets(table()).to_plotly_json(), default=lambda one: one.to_plotly_json())
    for text in ("kl_dp parallel \\u00d72", "best single teacher", "+7.50 pp", "+4.00 pp", "3.00 to 5.00"):
        assert text in shown


def test_a_study_of_pairs_alone_is_printed(capsys):
    summary = PairSummary(
        n_pairs=3,
        n_missing=1,
        positive_flip_rate_min=0.02,
        positive_flip_rate_median=0.05,
        positive_flip_rate_max=0.1,
        n_weaker_teacher=2,
        positive_flip_rate_min_weaker=0.02,
        positive_flip_rate_median_weaker=0.03,
        entropy_median_nats=5.5,
        difference_and_entropy=0.944,
    )
    print_study(StudyTable(rows=(), methods=(), differences=(), pair_summary=summary))
    out = capsys.readouterr().out
    assert "3, 1 not counted" in out
    assert "2.00 % to 10.00 %, median 5.00 %" in out
    assert "Spearman 0.944" in out
