"""The base of every record: frozen, strict about names, one canonical JSON and hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from backend.domain.errors import BadInput

NAME_PATTERN = r"^[A-Za-z0-9._-]+$"

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NAME_PATTERN)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _not_blank(value: str) -> str:
    if not value.strip() or "\x00" in value:
        raise ValueError("must not be blank")
    return value


Text = Annotated[str, Field(max_length=4096), AfterValidator(_not_blank)]


class Record(BaseModel):
    """An immutable fact. Unknown fields are errors, NaN and infinity are not numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


R = TypeVar("R", bound=Record)


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no spaces, no NaN; equal values give equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_record_as_json
    )


def _record_as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def content_hash(*parts: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `parts`: the key by content."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def bad_input(error: ValidationError, prefix: str = "") -> BadInput:
    """The first complaint of pydantic, as field, value and what would be right."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in (*([prefix] if prefix else []), *first["loc"])) or "input"
    expected = first["msg"].removeprefix("Value error, ")
    return BadInput(field, first.get("input"), expected[0].lower() + expected[1:] if expected else "not valid")


def iso(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC with a Z, as every time we show."""
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def parted(record: type[R], values: Mapping[str, Any]) -> tuple[R, dict[str, Any]]:
    """A record from its fields among `values` (a job's result, say), and the values beside them."""
    known = {name: value for name, value in values.items() if name in record.model_fields}
    rest = {name: value for name, value in values.items() if name not in record.model_fields}
    return record.model_validate(known), rest
