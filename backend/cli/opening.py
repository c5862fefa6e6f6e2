"""How commands come by settings and store, and read what people type."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import ValidationError
from pydantic_settings import SettingsError

from backend.domain.errors import BadInput
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.store.session import Store


def read_settings(**changes: Any) -> Settings:
    """The settings of the environment, with what the command line says over them.

    Raises:
        BadInput: names the environment variable or option.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        return Settings(**given)
    except SettingsError as error:
        raise BadInput("environment", "ZOOGRAFT_*", f"lists as JSON ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        field = f"--{name}" if name in given else f"ZOOGRAFT_{name.upper()}"
        shown = "***" if "token" in name or "url" in name else first.get("input")
        raise BadInput(field, shown, first["msg"][:1].lower() + first["msg"][1:]) from None


@contextmanager
def open_store(settings: Settings | None = None) -> Iterator[tuple[Settings, Store]]:
    """Settings and an open store. The embedded default is brought to its newest tables first.

    Raises:
        StoreUnavailable: the database cannot be reached.
    """
    from backend.store.session import Store

    settings = settings or read_settings()
    if settings.embedded:
        migrate_embedded(settings)
    store = Store.open(settings.database, settings=settings)
    try:
        yield settings, store
    finally:
        store.close()


def migrate_embedded(settings: Settings) -> None:
    """Bring our own SQLite file to the newest tables.

    Raises:
        BadInput: the data directory cannot be written.
    """
    from backend.store.migrate import upgrade

    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            "ZOOGRAFT_DATA_DIR", str(settings.data_dir), f"a folder that can be written ({error.strerror})"
        ) from None
    upgrade(settings.database)


def parse_settings(pairs: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """`["lr=0.01", "partition=supervised"]` → `{"lr": 0.01, "partition": "supervised"}`.

    Values are JSON scalars; a word that is not JSON is text.

    Raises:
        BadInput: no `=`, the same key twice, a list or an object, NaN.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise BadInput(option, pair, "key=value")
        if key in values:
            raise BadInput(option, pair, f"each key once; {key} is given twice")
        try:
            value = json.loads(text, parse_constant=_not_a_number)
        except (ValueError, RecursionError):
            value = text
        if isinstance(value, (list, dict)):
            raise BadInput(option, pair, "a JSON scalar: a number, true, false, null or text")
        values[key] = value
    return values


def parse_json_settings(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """As `parse_settings`, but values may be any JSON (keyword arguments, reader options)."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip() or key in values:
            raise BadInput(option, pair, "key=value, each key once")
        try:
            values[key.strip()] = json.loads(text, parse_constant=_not_a_number)
        except (ValueError, RecursionError):
            values[key.strip()] = text
    return values


def parse_id(text: str, field: str = "id") -> UUID:
    """A UUID, or BadInput."""
    try:
        return UUID(text)
    except ValueError:
        raise BadInput(field, text, "a UUID, as `zoograft jobs ls` shows them") from None


def parse_numbers(text: str | None, option: str, kind: type = float) -> list[Any] | None:
    """`0.5,0.5,0.5` → numbers.

    Raises:
        BadInput: anything else.
    """
    if text is None:
        return None
    try:
        return [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        raise BadInput(option, text, "numbers separated by commas") from None


def read_names(names: Sequence[str], option: str) -> list[str]:
    """Names, patterns, comma-separated lists of them, and `@file` with one a line (`#` starts a comment).

    Raises:
        BadInput: a file that cannot be read, or no name at all.
    """
    found: list[str] = []
    for name in names:
        if name.startswith("@"):
            found += [line.split("#")[0].strip() for line in read_lines(Path(name[1:]), option)]
        else:
            found += [name] if "[" in name else [part.strip() for part in name.split(",")]
    found = list(dict.fromkeys(part for part in found if part))
    if not found:
        raise BadInput(option, list(names), "at least one name")
    return found


def read_lines(path: Path, option: str) -> tuple[str, ...]:
    """The lines of a text file.

    Raises:
        BadInput: it cannot be read as text.
    """
    try:
        return tuple(path.expanduser().read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise BadInput(option, str(path), f"a readable text file ({reason})") from None


def _not_a_number(text: str) -> float:
    raise BadInput("value", text, "a finite number")
