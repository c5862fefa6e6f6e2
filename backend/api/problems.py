"""Errors as `application/problem+json` (RFC 9457): one table from domain error to HTTP status."""

from __future__ import annotations

import json
import math
import re
import traceback
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from backend.domain.errors import (
    BadInput,
    Conflict,
    KeyReused,
    MissingExtra,
    NotAllowed,
    NotFound,
    StoreUnavailable,
    ZoograftError,
)
from backend.logs import hide_credentials

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5

# The nearest class of an error's ancestry decides.
STATUS: dict[type[ZoograftError], tuple[int, str]] = {
    BadInput: (422, "Bad input"),
    NotFound: (404, "Not found"),
    KeyReused: (422, "Key reused"),
    Conflict: (409, "Conflict"),
    NotAllowed: (403, "Not allowed"),
    MissingExtra: (501, "Not installed"),
    StoreUnavailable: (503, "Store unavailable"),
    ZoograftError: (500, "Failed"),
}

TITLES = {
    400: "Bad request",
    401: "Token needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Body too large",
    422: "Bad input",
    500: "Failed",
    501: "Not installed",
    503: "Store unavailable",
}

_SECRET = re.compile(r"token|secret|password|passwd|api_?key|authorization", re.IGNORECASE)


class FieldError(BaseModel):
    """What is wrong with one field, and what would be right."""

    field: str
    value: Any = None
    expected: str


class Problem(BaseModel):
    """An error as every route reports it."""

    type: str = Field(description="urn:zoograft: and the cause, the word that a failed job carries too")
    title: str
    status: int
    detail: str
    errors: list[FieldError] = Field(default_factory=list)


def problem(
    status: int,
    detail: str,
    *,
    cause: str | None = None,
    title: str | None = None,
    errors: list[FieldError] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """The response of one error."""
    title = title or TITLES.get(status, "Error")
    document = Problem(
        type=f"urn:zoograft:{cause or title.lower().replace(' ', '_')}",
        title=title,
        status=status,
        detail=detail,
        errors=errors or [],
    )
    return Response(
        document.model_dump_json(),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})},
    )


def problem_of(error: ZoograftError) -> Response:
    """The response of a domain error, by the table above."""
    status, title = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
    if isinstance(error, NotFound) and "." in error.field:
        status, title = STATUS[BadInput]  # the request names something unknown in its body; its own URL exists
    errors = []
    if isinstance(error, BadInput):
        errors = [
            FieldError(field=error.field, value=presentable(error.field, error.value), expected=error.expected or title)
        ]
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    detail = error.message
    if isinstance(error, StoreUnavailable) and not detail.endswith("zoograft migrate"):
        detail = "the database cannot be reached just now; try again"  # what drivers say may name hosts and users
    return problem(status, detail, cause=error.cause, title=title, errors=errors, headers=headers)


def presentable(field: str, value: Any) -> Any:
    """A refused value as it may be shown: secrets masked, long or unprintable values shortened, no NaN."""
    if _SECRET.search(field):
        return "***"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        text = None
    if text is not None and len(text) <= 200 and not _SECRET.search(text):
        return value
    shown = repr(value) if text is None else text
    return "***" if _SECRET.search(shown) else shown[:197] + "..." * (len(shown) > 197)


def _field(location: tuple[Any, ...]) -> str:
    """`("body", "spec", "lr")` → `spec.lr`: where the value stands in the request, without the container."""
    parts = [str(part) for part in location[1:]] if location and location[0] in _CONTAINERS else map(str, location)
    return ".".join(parts) or "body"


_CONTAINERS = ("body", "query", "path", "header", "cookie")


def _validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = []
    for item in error.errors()[:20]:
        message = str(item["msg"]).removeprefix("Value error, ")
        field = "body" if item["type"] == "json_invalid" else _field(tuple(item["loc"]))
        value = None if item["type"] == "missing" else presentable(field, item.get("input"))
        errors.append(FieldError(field=field, value=value, expected=message[:1].lower() + message[1:]))
    first = errors[0]
    return problem(422, f"{first.field}: {first.expected}", cause="bad_input", errors=errors)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {404: f"nothing at {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
    plain = error.detail in ("Not Found", "Method Not Allowed")
    detail = details.get(error.status_code, str(error.detail)) if plain else str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request)) or headers.get("Allow", "")
    return problem(error.status_code, detail, headers=headers)


def _methods(request: Request) -> list[str]:
    """Every method of every route at this path; Starlette's own header knows the first route alone."""
    found: set[str] = set()
    for path, methods in request.app.openapi()["paths"].items():
        pattern = re.sub(r"\\\{[^}]+\\\}", "[^/]+", re.escape(path))
        if re.fullmatch(pattern, request.url.path):
            found |= {method.upper() for method in methods}
    return sorted(found)


def _domain(_: Request, error: Exception) -> Response:
    assert isinstance(error, ZoograftError)
    return problem_of(error)


def _unexpected(request: Request, error: Exception) -> Response:
    structlog.get_logger("zoograft.api").error(
        "unexpected error",
        method=request.method,
        path=request.url.path,
        # As text without the values of variables: those may hold secrets.
        trace=hide_credentials("".join(traceback.format_exception(error))),
    )
    return problem(500, "an error of the server, not of the request; its log says more", cause="error")


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""
    app.add_exception_handler(ZoograftError, _domain)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": title,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, title in TITLES.items()
}
"""What every route may answer besides its own, for OpenAPI."""
