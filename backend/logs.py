"""Structured logs: one line per event with what it belongs to (job, attempt), as text or JSON, and no secrets in it."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from backend.settings import Settings

SECRET_FIELD = re.compile(r"(token|secret|password|passwd|authorization|api_?key|credential)", re.IGNORECASE)
URL_CREDENTIALS = re.compile(r"(\w[\w+.-]*://[^\s:/@]*:)[^\s@]+@")
HIDDEN = "[hidden]"


def configure(settings: Settings) -> None:
    """Send structlog to stderr, in the format the settings ask for (`log_format` text or json)."""
    final: Any
    if settings.log_format == "json":
        final = structlog.processors.JSONRenderer(sort_keys=False)
    else:
        final = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            final,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide values of fields that are named like secrets, and passwords inside URLs."""
    for name, value in event.items():
        if SECRET_FIELD.search(name):
            event[name] = HIDDEN
        elif isinstance(value, str):
            event[name] = hide_credentials(value)
    return event


def hide_credentials(text: str) -> str:
    """A text without the passwords of the URLs in it."""
    return URL_CREDENTIALS.sub(rf"\1{HIDDEN}@", text)
