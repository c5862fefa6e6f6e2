"""A ReMem run in numbers: what its best setting was worth, and the table of settings (Dong et al., Table 1)."""

from __future__ import annotations

from collections.abc import Sequence

import dash_mantine_components as dmc
from dash import html

from backend.domain.remem_results import RememResult, SettingRow
from dashboard import formats
from dashboard.components import cards
from dashboard.figures.information_plane import LABELS


def numbers(result: RememResult) -> html.Div:
    """The best setting, its student, its gain, and the images of the three splits."""
    best = result.teachers[result.best]
    chosen = next((row for row in result.table if row.setting == best.setting), None)
    return cards.number_row(
        [
            cards.number_card("Best setting", LABELS[best.setting], f"stopped after {best.best_stop_point:,} steps"),
            cards.number_card(
                "Its student's accuracy",
                formats.percent(None if chosen is None else chosen.student_accuracy),
                _interval(chosen, "student_accuracy"),
            ),
            cards.number_card(
                "Above the baseline",
                formats.signed_percent(None if chosen is None else chosen.gain),
                _interval(chosen, "gain"),
            ),
            cards.number_card(
                "Images", f"{result.n_train:,}", f"{result.n_validation:,} to choose by, {result.n_test:,} to test"
            ),
        ]
    )


def settings_table(rows: Sequence[SettingRow]) -> html.Div:
    """One row a setting: accuracy of student and teacher, gain, excess in nats."""
    return cards.table(
        ("Setting", "Student", "Gain", "Teacher", "Excess"),
        [
            [
                LABELS[row.setting],
                formats.percent(row.student_accuracy),
                formats.signed_percent(row.gain),
                formats.percent(row.teacher_accuracy),
                formats.number(row.excess_nats, 4),
            ]
            for row in rows
        ],
        label="Settings",
        numeric=(1, 2, 3, 4),
    )


def left_out(result: RememResult) -> list[dmc.Text]:
    """Trainings that diverged, one line each."""
    return [dmc.Text(f"Left out: {text}", className="warning-text", size="sm") for text in result.failures]


def _interval(row: SettingRow | None, field: str) -> str:
    if row is None:
        return ""
    low, high = getattr(row, f"{field}_low"), getattr(row, f"{field}_high")
    if low is None or high is None:
        return f"{row.n_seeds} seed" + ("" if row.n_seeds == 1 else "s")
    return f"{formats.interval(low, high)}, {row.n_seeds} seeds"
