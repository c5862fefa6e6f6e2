"""What preparing a teacher does to it and to its student (Dong et al., arXiv:2506.23041): Table 1 by setting, and
sweeps over ρ (Fig. 3), the weight of a branch, and pruned blocks (Fig. 4, 6).
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from backend.domain.remem_results import SettingRow, SweepRow
from dashboard.figures.frame import figure, nothing
from dashboard.figures.information_plane import LABELS
from dashboard.theme import Scheme, colour, series

PARAMETERS = {
    "rho": "Radius of SAM, ρ",
    "mlp_weight": "Weight of the MLP branches, α",
    "attention_weight": "Weight of the attention branches",
    "pruned_blocks": "Pruned blocks, counted from the top",
    "lr": "Learning rate of the teacher",
}
LOGARITHMIC = ("lr",)


def settings(rows: Sequence[SettingRow], scheme: Scheme) -> go.Figure:
    """Test accuracy of the chosen student and of its teacher, by setting; mean over seeds, bars 95 %."""
    if not rows:
        return nothing("No setting has been measured", scheme)
    made = figure(scheme, barmode="group")
    for label, field, meaning in (("teacher", "teacher_accuracy", "neutral"), ("student", "student_accuracy", "delta")):
        shown = [row for row in rows if getattr(row, field) is not None]
        if not shown:
            continue
        made.add_trace(
            go.Bar(
                x=[LABELS[row.setting] for row in shown],
                y=[100 * getattr(row, field) for row in shown],
                error_y=_ends(shown, field),
                name=label,
                marker={"color": colour(meaning, scheme)},
                customdata=[row.n_seeds for row in shown],
                hovertemplate="%{y:.2f} % over %{customdata} seeds<extra>" + label + "</extra>",
            )
        )
    made.update_yaxes(title_text="Accuracy on test (%), bars 95 %")
    return made


def sweep(rows: Sequence[SweepRow], scheme: Scheme) -> go.Figure:
    """Accuracy of teacher and chosen student over the values of one parameter; mean over seeds, bars 95 %."""
    if len(rows) < 2:
        return nothing("Only one value was tried", scheme)
    made = figure(scheme, hovermode="closest")
    branches = list(dict.fromkeys(row.branch for row in rows))
    for branch in branches:
        members = sorted((row for row in rows if row.branch == branch), key=lambda row: row.value)
        of = f" ({branch})" if branch is not None and len(branches) > 1 else ""
        for label, field, meaning in (
            ("teacher", "teacher_accuracy", "neutral"),
            ("student", "student_accuracy", "delta"),
        ):
            shown = [row for row in members if getattr(row, field) is not None]
            if not shown:
                continue
            made.add_trace(
                go.Scatter(
                    x=[row.value for row in shown],
                    y=[100 * getattr(row, field) for row in shown],
                    error_y=_ends(shown, field),
                    mode="lines+markers",
                    name=label + of,
                    line={
                        "color": colour(meaning, scheme),
                        "width": 2,
                        "dash": "solid" if branch == branches[0] else "dash",
                    },
                    marker={"size": 8},
                    customdata=[row.n_seeds for row in shown],
                    hovertemplate="%{x:g}: %{y:.2f} % over %{customdata} seeds<extra>" + label + of + "</extra>",
                )
            )
    parameter = rows[0].parameter
    made.update_xaxes(title_text=PARAMETERS[parameter], type="log" if parameter in LOGARITHMIC else "linear")
    made.update_yaxes(title_text="Accuracy on test (%), bars 95 %")
    return made


def pruning(rows: Sequence[SweepRow], against: str, scheme: Scheme) -> go.Figure:
    """Teachers with branches pruned from the top, by their test error: against what they still know (4, `excess_nats`)
    or against their student's error (6, `student_accuracy`); one line a branch, a number at each depth."""
    titles = {
        "excess_nats": "Excess reconstruction loss (nats; lower = more information)",
        "student_accuracy": "Test error of the student (%)",
    }
    shown = [row for row in rows if getattr(row, against) is not None]
    if not shown:
        return nothing("No pruned teacher was measured in this way", scheme)
    made = figure(scheme, hovermode="closest")
    for i, branch in enumerate(dict.fromkeys(row.branch for row in shown)):
        members = sorted((row for row in shown if row.branch == branch), key=lambda row: row.value)
        values = [getattr(row, against) for row in members]
        made.add_trace(
            go.Scatter(
                x=[100 * (1 - row.teacher_accuracy) for row in members],
                y=values if against == "excess_nats" else [100 * (1 - value) for value in values],
                mode="lines+markers+text",
                text=[f"{row.value:g}" for row in members],
                textposition="top center",
                name=f"{branch} branches pruned",
                line={"color": series(scheme)[i % len(series(scheme))], "width": 2},
                marker={"size": 9},
                hovertemplate="%{text} blocks pruned: teacher %{x:.2f} %, %{y:.4g}<extra>" + str(branch) + "</extra>",
            )
        )
    made.update_xaxes(title_text="Test error of the teacher (%)")
    made.update_yaxes(title_text=titles[against])
    return made


def _ends(rows: Sequence[SettingRow | SweepRow], field: str) -> dict[str, object]:
    """Distances to the ends of the intervals; 0 where one seed has none."""
    above, below = [], []
    for row in rows:
        value, low, high = (getattr(row, field + end) for end in ("", "_low", "_high"))
        above.append(0 if high is None else 100 * (high - value))
        below.append(0 if low is None else 100 * (value - low))
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.2, "width": 4}
