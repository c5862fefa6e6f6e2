"""What commands print: tables on a terminal, plain columns elsewhere, JSON when asked for; messages on stderr."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from backend.domain.errors import BadInput
from backend.domain.records import iso

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as REST answers it.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most this many; all of them by default.")]

PAGE = 200


def plain(value: Any) -> Any:
    """A record, or anything made of records, as JSON types."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return iso(value)
    return value


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN is an error, not a number."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))


def print_items(items: Iterable[Any]) -> None:
    """A whole list in REST's shape."""
    print_json({"items": list(items), "next_cursor": None})


def note(text: str) -> None:
    """A message for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table: drawn on a terminal; elsewhere columns padded with spaces, one line a row."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[i]) for row in cells) and bool(cells) for i in range(len(columns))]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name, right in zip(columns, numeric, strict=True):
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(columns)]
    for row in [list(columns), *cells]:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(padded).rstrip())


def print_fields(fields: Mapping[str, Any]) -> None:
    """One record: a name and a value a line, nested values indented."""
    _print_fields(plain(fields), "")


def _print_fields(fields: Mapping[str, Any], indent: str) -> None:
    width = max((len(str(name)) for name in fields), default=0)
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{name}:")
            _print_fields(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{indent}{name}: {len(value)} entries")
        else:
            shown = ", ".join(map(_cell, value)) if isinstance(value, list) else _cell(value)
            print(f"{indent}{str(name).ljust(width)}  {shown}")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Rows as CSV with these columns (`-`: stdout); the number of rows.

    Raises:
        BadInput: the file cannot be written.
    """
    if str(path) == "-":
        return _write_rows(sys.stdout, columns, rows)
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            return _write_rows(file, columns, rows)
    except OSError as error:
        raise BadInput("csv", str(path), f"a file that can be written ({error.strerror})") from None


def _write_rows(file: Any, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> int:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    count = 0
    for row in rows:
        writer.writerow([_csv_cell(row[name]) for name in columns])
        count += 1
    return count


def _csv_cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula is quoted; numbers keep all their digits."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None else repr(value) if isinstance(value, float) else value


def pages(fetch: Callable[[int, str | None], Any], limit: int | None) -> Iterator[Any]:
    """The items of a paged list to its end, or to `limit`. `fetch(limit, cursor)` returns a page."""
    cursor: str | None = None
    left = limit
    while left is None or left > 0:
        page = fetch(PAGE if left is None else min(PAGE, left), cursor)
        yield from page.items
        left = None if left is None else left - len(page.items)
        cursor = page.next_cursor
        if cursor is None:
            return


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction for people."""
    return "" if value is None else f"{100 * value:.{digits}f} %"


def count(value: int | None) -> str:
    """A large number for people: 11.7 M."""
    if value is None:
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return str(value)


def when(moment: datetime | None) -> str:
    """A time for people, in UTC."""
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "".join(character if character.isprintable() else "?" for character in str(value))


def _is_number(cell: str) -> bool:
    text = cell.removesuffix(" %").replace(" ", "").rstrip("kMG")
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
