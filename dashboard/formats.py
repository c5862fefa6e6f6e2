"""Numbers as people read them. Percent exists only here, in figures and in tables."""

from __future__ import annotations

from datetime import UTC, datetime

NONE = "–"


def percent(value: float | None, digits: int = 2) -> str:
    """.0395 → 3.95 %"""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def signed_percent(value: float | None, digits: int = 2) -> str:
    """A difference of rates, in percentage points."""
    return NONE if value is None else f"{100 * value:+.{digits}f}".replace("-", "−") + " pp"


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    if low is None or high is None:
        return NONE
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f} %".replace("-", "−")


def bracket(low: float | None, high: float | None, digits: int = 2) -> str:
    """The same in the narrow space of a card."""
    if low is None or high is None:
        return NONE
    return f"95 %: [{100 * low:.{digits}f}, {100 * high:.{digits}f}]".replace("-", "−")


def span(low: float, high: float, digits: int = 2) -> str:
    """An interval below a number whose unit is known."""
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    if value is None:
        return NONE
    return "≈ 0" if value < 1e-300 else f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def whole(value: float | None) -> str:
    """2390.4 → 2,390"""
    return NONE if value is None else f"{value:,.0f}"


def params(value: int | None) -> str:
    """25557032 → 25.6 M"""
    if value is None:
        return NONE
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}".replace("-", "−")


def size(value: int) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value} bytes"


def duration(seconds: float | None) -> str:
    """95 → 1 min 35 s"""
    if seconds is None:
        return NONE
    whole_s = round(max(0.0, seconds))
    if whole_s < 60:
        return f"{whole_s} s"
    minutes, rest = divmod(whole_s, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def moment(value: datetime | None) -> str:
    """In UTC, to the second."""
    return NONE if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def ran_for(started: datetime | None, finished: datetime | None, now: datetime | None = None) -> str:
    if started is None:
        return NONE
    return duration(((finished or now or datetime.now(UTC)) - started).total_seconds())
