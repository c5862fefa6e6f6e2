"""A KDEP study's result on the command line: downstream accuracy of every method with its interval, paired
differences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.cli.output import note, percent, print_table, write_csv
from backend.domain.errors import BadInput
from backend.domain.kdep import Estimate
from backend.domain.kdep_studies import KdepDifference, KdepRow, KdepTable

FLAT = tuple(name for name in KdepRow.model_fields if name not in ("sets", "metrics", "lrs"))
OVER_SEEDS = ("mean", "mean_low", "mean_high", "compared", "difference", "difference_low", "difference_high")


def print_kdep_study(table: KdepTable) -> None:
    """One line a method, teacher and share; then the first method against each other one."""
    if not table.rows:
        note("no pre-training has finished yet")
        return
    sets = list(dict.fromkeys(name for one in table.summaries for name in one.sets))
    print_table(
        ("method", "teacher", "share", "epochs", "seeds", "average [95 %]", *sets),
        (
            (
                one.label,
                one.teacher or "",
                f"{one.share:g}",
                str(one.epochs),
                str(len(one.average.values)),
                _interval(one.average),
                *(_interval(one.sets[name]) if name in one.sets else "" for name in sets),
            )
            for one in table.summaries
        ),
    )
    if table.differences:
        print()
    for one in table.differences:
        found = one.difference
        bounds = "" if found.low is None else f" [{100 * found.low:+.2f}, {100 * (found.high or 0):+.2f}]"
        taught = f" from {one.teacher}" if one.teacher else ""
        part = f" on {100 * one.share:g} %" if one.share < 1 else ""
        print(
            f"{one.label} − {one.baseline}{taught}{part}, {len(found.values)} paired seeds: "
            f"{100 * found.mean:+.2f}{bounds} points (95 %)"
        )
    if table.n_failed or table.n_open:
        note(f"{table.n_failed} pre-trainings failed or were cancelled, {table.n_open} are still to come")


def write_kdep_rows(table: KdepTable, path: Path) -> None:
    """One row a pre-training, a column for each downstream set, as CSV or Parquet by the file's name.

    What holds over seeds stands in every row it holds for: `mean` with its interval of this label, teacher and share;
    `difference` with its interval, paired over seeds, of the study's first label (`compared`) minus this one.

    Raises:
        BadInput: another ending, or a file that cannot be written.
    """
    sets = list(dict.fromkeys(name for row in table.rows for name in row.sets))
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            pq.write_table(pa.Table.from_pylist(list(_flat(table, sets))), path)
        except OSError as error:
            raise BadInput("--output", str(path), f"a file that can be written ({error})") from None
    elif path.suffix == ".csv" or str(path) == "-":
        write_csv(path, [*FLAT, *OVER_SEEDS, *sets], _flat(table, sets))
    else:
        raise BadInput("--output", str(path), "a name that ends in .csv or .parquet")


def _flat(table: KdepTable, sets: list[str]) -> Iterator[dict[str, Any]]:
    means = {(one.label, one.teacher, one.share): one.average for one in table.summaries}
    for row in table.rows:
        values = row.model_dump(mode="json")
        mean = means[row.label, row.teacher, row.share]
        compared = next((one for one in table.differences if _is_against(one, row)), None)
        difference = None if compared is None else compared.difference
        over_seeds = (
            *(mean.mean, mean.low, mean.high, None if compared is None else compared.label),
            *((None,) * 3 if difference is None else (difference.mean, difference.low, difference.high)),
        )
        yield {
            **{name: values[name] for name in FLAT},
            **dict(zip(OVER_SEEDS, over_seeds, strict=True)),
            **{name: row.sets.get(name) for name in sets},
        }


def _is_against(one: KdepDifference, row: KdepRow) -> bool:
    """Whether the difference is to this row's label, teacher and share."""
    return one.baseline == row.label and one.share == row.share and row.teacher in (one.teacher, None)


def _interval(one: Estimate) -> str:
    return percent(one.mean) if one.low is None else f"{percent(one.mean)} [{percent(one.low)}, {percent(one.high)}]"
