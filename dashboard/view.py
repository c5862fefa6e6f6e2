"""Where a browser stands: the path's parameters and the query, which hold the whole state of a page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode

from backend.domain.errors import BadInput


@dataclass(frozen=True)
class View:
    """One address: `params` from the path, `query` from behind the question mark."""

    path: str = "/"
    params: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str, default: str = "") -> str:
        return self.query.get(name, default)

    def one_of(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        """A word of a fixed list; anything else is the default."""
        found = self.query.get(name, default)
        return found if found in allowed else default

    def number(self, name: str) -> float | None:
        """A finite number, or None where it is missing.

        Raises:
            BadInput: something else stands there.
        """
        text = self.query.get(name, "").strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise BadInput(name, text, "a number")
        return value

    def pair(self, name: str) -> tuple[float, float] | None:
        """`low,high`, or None where it is missing or no such thing."""
        parts = self.query.get(name, "").split(",")
        try:
            low, high = (float(part) for part in parts)
        except ValueError:
            return None
        return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def parse_query(search: str | None) -> dict[str, str]:
    """`?a=1&b=` → {"a": "1"}: the last of each name, empty ones left out."""
    return dict(parse_qsl((search or "").lstrip("?")))


def match(pattern: str, path: str) -> dict[str, str] | None:
    """The parameters of a path that fits `/pairs/{teacher}/{student}`, or None."""
    shape = re.escape(pattern).replace(r"\{", "(?P<").replace(r"\}", ">[^/]+)")
    found = re.fullmatch(shape, path.rstrip("/") or "/")
    return None if found is None else {name: unquote(value) for name, value in found.groupdict().items()}


def link(*parts: str, **query: object) -> str:
    """An address of the dashboard: `link("pairs", "a", "b", dataset="digits")`."""
    path = "/" + "/".join(quote(part, safe="") for part in parts)
    kept = {name: str(value) for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(kept)}" if kept else path
