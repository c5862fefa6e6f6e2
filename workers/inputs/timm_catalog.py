"""timm's pretrained tags as zoo entries, from metadata alone: no weights are downloaded, no model is built.

Input size, statistics, crop, classes and the family come from timm's configs; parameters and accuracies from timm's
results CSVs (`results-imagenet.csv` and its like; millions with thousands commas inside quotes, percent).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import timm
from pydantic import ValidationError
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from backend.domain.catalog import Model, Preprocessing
from backend.domain.errors import BadInput
from workers.inputs.families import family
from workers.inputs.label_spaces import head_space


@dataclass(frozen=True)
class Reported:
    """A row of a results CSV: top-1 as a fraction at an image size, parameters as a count; None where not given."""

    model: str
    img_size: int | None
    top1: float | None
    param_count: int | None


def pretrained_tags(pattern: str | None = None) -> list[str]:
    """timm's `architecture.tag` names, those that match a pattern such as `resnet*`.

    Raises:
        BadInput: nothing matches.
    """
    names = timm.list_pretrained(pattern or "")
    if not names:
        raise BadInput("filter", pattern, "a pattern that matches some of timm's pretrained tags, such as 'resnet*'")
    return list(names)


def read_results(path: Path) -> list[Reported]:
    """The rows of a results CSV.

    Raises:
        BadInput: no CSV, no column `model` with `top1` or `param_count`, or values that are no numbers.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput("results", str(path), f"a CSV file that can be read ({error})") from None
    columns = set(rows[0]) if rows else set()
    if "model" not in columns or not columns & {"top1", "param_count"}:
        raise BadInput(
            "results", path.name, "a CSV with the columns model and top1 (or param_count), as timm's results"
        )

    def number(row: dict[str, str], name: str, line: int) -> float | None:
        text = (row.get(name) or "").replace(",", "").strip()
        if not text:
            return None
        try:
            return float(text)
        except ValueError:
            raise BadInput("results", text, f"a number as {name} in line {line} of {path.name}") from None

    found = []
    for line, row in enumerate(rows, start=2):
        top1, millions, size = (number(row, name, line) for name in ("top1", "param_count", "img_size"))
        if top1 is not None and not 0 <= top1 <= 100:
            raise BadInput("results", top1, f"a percentage as top1 in line {line} of {path.name}")
        found.append(
            Reported(
                model=row["model"],
                img_size=None if size is None else int(size),
                top1=None if top1 is None else top1 / 100,
                param_count=None if millions is None else round(millions * 1e6),
            )
        )
    return found


def results_name(path: Path) -> str:
    """What a results CSV reports on: `results-imagenet-real.csv` → `imagenet-real`."""
    return path.stem.removeprefix("results-")


def describe_tags(
    tags: Sequence[str],
    reported: dict[str, Sequence[Reported]] | None = None,
    *,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Model]:
    """A zoo entry for every tag.

    Args:
        reported: Rows of results CSVs, by what they report on.
        step: Told how many of how many are done.
    """
    by_model: dict[str, list[tuple[str, Reported]]] = {}
    for what, rows in (reported or {}).items():
        for row in rows:
            by_model.setdefault(row.model, []).append((what, row))
    entries = []
    for done, tag in enumerate(tags, start=1):
        entries.append(_entry(tag, by_model.get(tag, [])))
        step(done, len(tags))
    return entries


def _entry(tag: str, rows: Sequence[tuple[str, Reported]]) -> Model:
    config = get_pretrained_cfg(tag)
    known = {} if config is None else config.to_dict()
    preprocessing = _preprocessing(known)
    num_classes = known.get("num_classes")
    try:
        space = head_space(tag, num_classes) if num_classes else None
    except BadInput:
        space = None  # a tag whose number of outputs contradicts it: nothing is assumed
    side = preprocessing.input_size[1] if preprocessing is not None else None
    accuracy: dict[str, float] = {}
    for what, row in sorted(rows, key=lambda item: item[1].img_size != side):
        if row.top1 is not None:
            accuracy.setdefault(what, row.top1)
    counts = [row.param_count for _, row in rows if row.param_count is not None]
    return Model(
        id=uuid4(),
        name=tag,
        source="timm",
        architecture=tag,
        pretrained=True,
        preprocessing=preprocessing,
        num_classes=num_classes or None,
        label_space=None if space is None else space.name,
        family=family(tag),
        param_count=counts[0] if counts else None,
        reported_accuracy=accuracy,
        created_at=datetime.now(UTC),
    )


def _preprocessing(config: dict[str, object]) -> Preprocessing | None:
    if not config.get("input_size"):
        return None
    resolved = resolve_data_config(pretrained_cfg=config)
    try:
        return Preprocessing.model_validate({name: resolved[name] for name in Preprocessing.model_fields})
    except ValidationError:
        return None  # inputs that are no images of up to 16 channels
