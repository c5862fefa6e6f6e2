"""One module per noun."""

from __future__ import annotations

from fastapi import APIRouter

from backend.api.routes import artifacts, catalog, health, jobs, pairs

ROUTERS: tuple[tuple[str, APIRouter], ...] = (
    ("", health.router),
    ("/api/v1", catalog.router),
    ("/api/v1", pairs.router),
    ("/api/v1", jobs.router),
    ("/api/v1", artifacts.router),
)
