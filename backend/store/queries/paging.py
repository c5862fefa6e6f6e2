"""Keyset pages: a cursor holds the sort values of the last row shown, so that page 10,000 costs what page 1 costs.

A cursor belongs to its query (sort order and filters); it is refused under another one.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ColumnElement, tuple_

from backend.domain.errors import BadInput
from backend.domain.records import content_hash

LIMIT = 200
"""The longest page."""


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """One page of a list; `next_cursor` is null on the last one."""

    model_config = ConfigDict(frozen=True)

    items: tuple[T, ...]
    next_cursor: str | None = None


def encode_cursor(query: Any, values: Sequence[Any]) -> str:
    """The cursor after a row with these sort values, in a query described by any JSON value."""
    text = json.dumps([content_hash(query)[:12], *values], separators=(",", ":"), allow_nan=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(query: Any, cursor: str | None, kinds: Sequence[type | tuple[type, ...]]) -> list[Any] | None:
    """The sort values in `cursor`, checked against the query and their types; None for the first page.

    Raises:
        BadInput: not a cursor, or one of another query.
    """
    if cursor is None:
        return None
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        values = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, UnicodeError, binascii.Error, RecursionError):
        raise BadInput("cursor", cursor, "a next_cursor of an earlier page") from None
    if not isinstance(values, list) or len(values) != len(kinds) + 1:
        raise BadInput("cursor", cursor, "a next_cursor of an earlier page")
    if values[0] != content_hash(query)[:12]:
        raise BadInput("cursor", cursor, "a next_cursor of the same query: same sort, same filters")
    for value, kind in zip(values[1:], kinds, strict=True):
        bounded = not isinstance(value, int) or -(2**63) <= value < 2**63
        if not isinstance(value, kind) or isinstance(value, bool) or not bounded:
            raise BadInput("cursor", cursor, "a next_cursor of an earlier page")
    return values[1:]


def check_limit(limit: int) -> int:
    """A page's length, or BadInput."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LIMIT:
        raise BadInput("limit", limit, f"a whole number from 1 to {LIMIT}")
    return limit


def parse_sort(sort: str, columns: Mapping[str, Any]) -> tuple[str, Literal["asc", "desc"]]:
    """`-accuracy` → (`accuracy`, desc). Columns come from a fixed list, never from the request.

    Raises:
        BadInput: not one of `columns`.
    """
    name = sort.removeprefix("-")
    if name not in columns:
        raise BadInput("sort", sort, f"one of {', '.join(columns)}; a leading - turns the order round")
    return name, "desc" if sort.startswith("-") else "asc"


def after(columns: Sequence[ColumnElement[Any]], values: Sequence[Any], direction: str) -> ColumnElement[bool]:
    """Rows that come after `values` in the order of `columns`, all in one direction."""
    here, there = tuple_(*columns), tuple_(*values)
    return here < there if direction == "desc" else here > there


def cut(rows: Sequence[T], limit: int) -> tuple[Sequence[T], bool]:
    """`limit` rows of a fetch of `limit + 1`, and whether more follow."""
    return rows[:limit], len(rows) > limit
