"""What a data grid asks for, as SQL: its filters (text, number, set), its sort order, a window of rows.

The vocabulary is AG Grid's filter model: `{"column": {"filterType": "number", "type": "inRange", "filter": 1,
"filterTo": 2}}`, or two conditions joined by `operator`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_

from backend.domain.errors import BadInput

Columns = Mapping[str, ColumnElement[Any]]
MAX_ROWS = 1000


def conditions(model: Mapping[str, Any] | None, columns: Columns) -> list[ColumnElement[bool]]:
    """One condition a filtered column.

    Raises:
        BadInput: a column or an operator that does not exist, a bound that is no number.
    """
    found = []
    for name, wanted in (model or {}).items():
        if name not in columns:
            raise BadInput("filter", name, f"one of {', '.join(columns)}")
        if not isinstance(wanted, Mapping):
            raise BadInput("filter", wanted, "an object")
        found.append(_condition(columns[name], wanted))
    return found


def order(model: Sequence[Mapping[str, Any]] | None, columns: Columns) -> list[ColumnElement[Any]]:
    """Sort keys, unknown values last in either direction.

    Raises:
        BadInput: a column that does not exist.
    """
    keys: list[ColumnElement[Any]] = []
    for one in model or ():
        name, direction = str(one.get("colId")), one.get("sort")
        if name not in columns or direction not in ("asc", "desc"):
            raise BadInput("sort", one, f"asc or desc by one of {', '.join(columns)}")
        column = columns[name]
        keys += [column.is_(None), column.desc() if direction == "desc" else column.asc()]
    return keys


def window(start: Any, end: Any) -> tuple[int, int]:
    """Offset and number of rows of a request for the rows from `start` to before `end`."""
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end and end - start <= MAX_ROWS):
        raise BadInput("rows", [start, end], f"at most {MAX_ROWS} rows, from one position to a later one")
    return start, end - start


def _condition(column: ColumnElement[Any], wanted: Mapping[str, Any]) -> ColumnElement[bool]:
    parts = wanted.get("conditions")
    if parts is not None:
        join = or_ if wanted.get("operator") == "OR" else and_
        return join(*(_condition(column, part) for part in parts))
    kind, value = wanted.get("type"), wanted.get("filter")
    if kind == "blank":
        return column.is_(None)
    if kind == "notBlank":
        return column.is_not(None)
    if wanted.get("filterType") == "number":
        return _number(column, str(kind), value, wanted.get("filterTo"))
    text = str(value if value is not None else "").lower()
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    lowered = func.lower(column)
    forms: dict[str, ColumnElement[bool]] = {
        "contains": lowered.like(f"%{escaped}%", escape="\\"),
        "notContains": or_(column.is_(None), lowered.not_like(f"%{escaped}%", escape="\\")),
        "equals": lowered == text,
        "notEqual": or_(column.is_(None), lowered != text),
        "startsWith": lowered.like(f"{escaped}%", escape="\\"),
        "endsWith": lowered.like(f"%{escaped}", escape="\\"),
    }
    if kind not in forms:
        raise BadInput("filter", kind, f"one of {', '.join(forms)}")
    return forms[str(kind)]


def _number(column: ColumnElement[Any], kind: str, value: Any, to: Any) -> ColumnElement[bool]:
    for one in (value, *([to] if kind == "inRange" else [])):
        if isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one):
            raise BadInput("filter", one, "a finite number")
    forms: dict[str, ColumnElement[bool]] = {
        "equals": column == value,
        "notEqual": column != value,
        "lessThan": column < value,
        "lessThanOrEqual": column <= value,
        "greaterThan": column > value,
        "greaterThanOrEqual": column >= value,
        "inRange": column.between(value, to),
    }
    if kind not in forms:
        raise BadInput("filter", kind, f"one of {', '.join(forms)}")
    return forms[kind]
