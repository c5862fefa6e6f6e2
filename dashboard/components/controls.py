"""Controls whose values live in the address: whoever changes one changes the URL, and pages read the URL only.

A control's id is `{"type": "q", "name": …}`; the script in assets writes its value to the query, under that name, and
leaves out what equals the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc

from backend.domain.errors import BadInput
from dashboard.reads import Board
from dashboard.view import View


def query_id(name: str, default: str = "") -> dict[str, str]:
    return {"type": "q", "name": name, "default": default}


def text(name: str, label: str, view: View, *, placeholder: str = "", w: int | str = 200) -> dmc.TextInput:
    return dmc.TextInput(
        id=query_id(name), label=label, value=view.text(name), placeholder=placeholder, debounce=350, w=w
    )


def number(
    name: str, label: str, view: View, *, placeholder: str = "", w: int = 120, step: float = 1
) -> dmc.NumberInput:
    """A number; what cannot be read in the address is shown as empty."""
    try:
        value = view.number(name)
    except BadInput:
        value = None
    return dmc.NumberInput(
        id=query_id(name),
        label=label,
        value="" if value is None else value,
        placeholder=placeholder,
        debounce=350,
        step=step,
        w=w,
    )


def select(
    name: str,
    label: str,
    view: View,
    options: Sequence[tuple[str, str]],
    *,
    default: str = "",
    w: int | str = 200,
    searchable: bool = False,
    clearable: bool = False,
) -> dmc.Select:
    """One of `options` = (value, label)."""
    value = view.text(name, default)
    return dmc.Select(
        id=query_id(name, default),
        label=label,
        value=value if any(value == one for one, _ in options) else default or None,
        data=[{"value": one, "label": shown} for one, shown in options],
        searchable=searchable,
        clearable=clearable,
        allowDeselect=False,
        w=w,
        comboboxProps={"withinPortal": True},
        **({} if label else {"aria-label": name}),
    )


def segments(name: str, view: View, options: Sequence[tuple[str, str]], *, default: str, label: str) -> dmc.Box:
    """One of few, all visible."""
    value = view.one_of(name, tuple(one for one, _ in options), default)
    return dmc.Box(
        dmc.SegmentedControl(
            id=query_id(name, default),
            value=value,
            data=[{"value": one, "label": shown} for one, shown in options],
            attributes={"root": {"aria-label": label}},
        )
    )


def board_key(board: Board | None) -> str:
    return "" if board is None else f"{board.dataset}/{board.split}"


def board_select(boards: Sequence[Board], board: Board | None, view: View) -> dmc.Select:
    """Which data set and split; in the address as `on=dataset/split`."""
    first = board_key(boards[0]) if boards else ""
    chosen = View(view.path, view.params, {"on": board_key(board)})
    options = [(board_key(one), f"{one.dataset} ({one.split})") for one in boards]
    return select("on", "Scored on", chosen, options, default=first, w=220, searchable=len(boards) > 8)


def filters(*controls: Any) -> dmc.Group:
    return dmc.Group(list(controls), gap="sm", align="flex-end", mb="md", className="filters")


def split_board(text: str) -> tuple[str, str]:
    dataset, _, split = text.partition("/")
    return dataset, split
