"""A study's result on the command line: success rates, mean Δ, the control beside every method, paired differences."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from backend.cli.kdep_table import print_kdep_study, write_kdep_rows
from backend.cli.output import note, percent, print_fields, print_table, write_csv
from backend.domain.errors import BadInput
from backend.domain.kdep_studies import KdepTable
from backend.domain.pairs import Pair
from backend.domain.study_pairs import PairSummary
from backend.domain.study_summary import MethodSummary, StudyRow, StudyTable


def print_study(table: StudyTable | KdepTable) -> None:
    """The methods, then the differences between them; points are percentage points."""
    if isinstance(table, KdepTable):
        print_kdep_study(table)
        return
    if table.pair_summary is not None:
        _print_pairs(table.pair_summary)
    if not table.rows:
        note("no transfer has finished yet" if table.pair_summary is None else "no transfers in this study (yet)")
        return
    print_table(
        (
            "method",
            "transfers",
            "success [95 %]",
            "weaker teachers",
            "mean Δ",
            "above control [95 %]",
            "beats control",
            "gain",
            "loss",
        ),
        (_method_cells(one) for one in table.methods),
    )
    if table.differences:
        print()
    for one in table.differences:
        print(
            f"{one.label} − {one.baseline}, {one.n_pairs} paired transfers: success "
            f"{_points(one.success_rate_difference)} "
            f"[{_points(one.success_rate_difference_low)}, {_points(one.success_rate_difference_high)}] points, "
            f"mean Δ {_points(one.mean_delta_difference)} "
            f"[{_points(one.mean_delta_difference_low)}, {_points(one.mean_delta_difference_high)}] points (95 %)"
        )
    if table.teacher_set_summaries:
        print()
    for several in table.teacher_set_summaries:
        print(
            f"{several.label} − {several.against}, {several.n_transfers} sets and seeds: mean Δ "
            f"{_points(several.mean_delta)} against {_points(several.mean_single_delta)}, difference "
            f"{_points(several.mean_delta_difference)} [{_points(several.mean_delta_difference_low)}, "
            f"{_points(several.mean_delta_difference_high)}] points (95 %), better in {percent(several.win_rate, 0)}"
            + (f"; {several.n_incomplete} sets lack a single teacher" if several.n_incomplete else "")
        )
    if table.n_failed or table.n_open:
        note(f"{table.n_failed} transfers failed or were cancelled, {table.n_open} are still to come")


def _print_pairs(summary: PairSummary) -> None:
    fields = [
        ("pairs", f"{summary.n_pairs}" + (f", {summary.n_missing} not counted (yet)" if summary.n_missing else "")),
        (
            "positive flips",
            f"{percent(summary.positive_flip_rate_min)} to {percent(summary.positive_flip_rate_max)}, median "
            f"{percent(summary.positive_flip_rate_median)}",
        ),
    ]
    if summary.positive_flip_rate_min_weaker is not None and summary.positive_flip_rate_median_weaker is not None:
        fields.append(
            (
                f"of {summary.n_weaker_teacher} weaker teachers",
                f"at least {percent(summary.positive_flip_rate_min_weaker)}, median "
                f"{percent(summary.positive_flip_rate_median_weaker)}",
            )
        )
    fields.append(("entropy of the flips", f"median {summary.entropy_median_nats:.3f} nats"))
    if summary.difference_and_entropy is not None:
        fields.append(("accuracy difference and entropy", f"Spearman {summary.difference_and_entropy:.3f}"))
    print_fields(dict(fields))
    print()


def write_rows(table: StudyTable | KdepTable, path: Path) -> None:
    """One row a transfer, as CSV or Parquet by the file's name.

    Raises:
        BadInput: another ending, or a file that cannot be written.
    """
    if isinstance(table, KdepTable):
        write_kdep_rows(table, path)
        return
    if table.pairs and not table.rows:
        write_records(path, list(Pair.model_fields), [pair.model_dump(mode="json") for pair in table.pairs])
        return
    columns = [name for name in StudyRow.model_fields if name not in ("params", "transfer_rate")]
    write_records(path, columns, [_flat(row, columns) for row in table.rows])


def write_records(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Rows as CSV or Parquet by the file's name.

    Raises:
        BadInput: another ending, or a file that cannot be written.
    """
    if path.suffix == ".parquet":
        _write_parquet(rows, path)
    elif path.suffix == ".csv" or str(path) == "-":
        write_csv(path, columns, rows)
    else:
        raise BadInput("--output", str(path), "a name that ends in .csv or .parquet")


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.write_table(pa.Table.from_pylist(rows), path)
    except OSError as error:
        raise BadInput("--output", str(path), f"a file that can be written ({error})") from None


def _flat(row: StudyRow, columns: Iterable[str]) -> dict[str, Any]:
    values = row.model_dump(mode="json")
    return {name: "+".join(values[name]) if name == "teachers" else values[name] for name in columns}


def _method_cells(one: MethodSummary) -> tuple[str, ...]:
    weaker = "" if one.success_rate_weaker is None else f"{percent(one.success_rate_weaker, 0)} of {one.n_weaker}"
    return (
        one.label,
        str(one.n_transfers),
        f"{percent(one.success_rate, 0)} [{percent(one.success_rate_low, 0)}, {percent(one.success_rate_high, 0)}]",
        weaker,
        _points(one.mean_delta),
        _interval(one.mean_delta_above_control, one.mean_delta_above_control_low, one.mean_delta_above_control_high),
        "" if one.success_rate_above_control is None else percent(one.success_rate_above_control, 0),
        percent(one.mean_gain, 1),
        percent(one.mean_loss, 1),
    )


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return "" if value is None or low is None or high is None else f"{_points(value)} [{_points(low)}, {_points(high)}]"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"
