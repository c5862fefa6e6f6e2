"""The dashboard as one Dash app: shell, pages, callbacks, assets. Nothing is built at import; nothing loads torch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import structlog
from dash import Dash, set_props

from backend.domain.errors import StoreUnavailable, ZoograftError
from backend.settings import Settings
from backend.store.session import Store
from dashboard import routing, web
from dashboard.actions import Actions
from dashboard.components.shell import shell
from dashboard.pages import PAGES
from dashboard.reads import Reads

LOOPBACK = ("127.0.0.1", "::1", "localhost")
INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}
<meta name="color-scheme" content="light dark">
<title>{%title%}</title>
<link rel="icon" type="image/svg+xml" href="/assets/logo.svg">
{%css%}
</head>
<body>
{%app_entry%}
<noscript>The dashboard needs JavaScript. The same data is at /api/v1 and in the command line.</noscript>
{%config%}
{%scripts%}
{%renderer%}
</body>
</html>"""


def create_app(settings: Settings, store: Store) -> Dash:
    """A Dash app over an open store; its `.server` is the WSGI callable to mount behind the guard."""
    reads = Reads(store, settings)
    actions = Actions(store, settings, reads)
    app = Dash(
        "zoograft",
        assets_folder=str(Path(__file__).parent / "assets"),
        title="Zoograft",
        update_title=None,
        suppress_callback_exceptions=True,
        index_string=INDEX,
        meta_tags=[
            {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            {"name": "description", "content": "What one pretrained image model knows that another does not."},
        ],
        on_error=_tell,
    )
    navigation = [(page.NAV[0], page.HREF, page.NAV[1]) for page in PAGES if page.NAV]
    app.layout = shell(navigation, sign_out=settings.token is not None or settings.host not in LOOPBACK)
    for page in PAGES:
        page.register(app, reads, actions)
    routing.register(app, reads)
    web.install(app, reads)
    threading.Thread(target=_warm, args=(reads,), name="warm-boards", daemon=True).start()
    return app


def _tell(error: Exception) -> None:
    """What went wrong in a callback, as a notice; the page stays as it was."""
    if isinstance(error, ZoograftError):
        title = "The database does not answer" if isinstance(error, StoreUnavailable) else "That did not work"
        text = error.message
    else:
        structlog.get_logger("zoograft.dashboard").error("a callback failed", exc_info=error)
        title, text = "Something went wrong", "The reason is in the server's log."
    notice: dict[str, Any] = {"title": title, "message": text, "action": "show", "color": "red", "autoClose": 10_000}
    set_props("notices", {"sendNotifications": [notice]})


def _warm(reads: Reads) -> None:
    try:
        reads.boards_cache.warm(reads.boards())
    except StoreUnavailable:
        return
