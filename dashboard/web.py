"""What the dashboard serves besides pages: records as CSV, pictures that jobs drew, and assets, compressed and kept."""

from __future__ import annotations

import csv
import gzip
import io
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from dash import Dash
from flask import Response, request, send_file

from backend.domain.errors import BadInput, NotFound, StoreUnavailable, ZoograftError
from dashboard.reads import Reads
from dashboard.routing import find, opens_with_figure, status

IMMUTABLE = "public, max-age=31536000, immutable"
_FINGERPRINT = re.compile(r"\.v\d[\w-]*m\d+\.")
_COMPRESSIBLE = ("javascript", "text/", "json", "svg")
_SMALLEST = 1400
_LINES = 500
PAGE_ENDPOINTS = ("/", "/<path:path>")
"""Where Dash answers with its one HTML page."""


PLOTLY = Path(__file__).parent / "vendor" / "plotly-cartesian.min.js"
PLOTLY_PATH = "/_dash-component-suites/plotly/package_data/plotly.min.js"
"""Where Dash looks for all of Plotly. Our figures need its Cartesian part alone, which a browser reads three times as
fast (1.5 of 4.8 MB), and which compiles no code as it runs."""
PLOTLY_SCRIPT = f'<script async src="{PLOTLY_PATH}"></script>'
"""Dash loads Plotly when the first figure arrives. On a page that opens with one it is read meanwhile."""


def install(app: Dash, reads: Reads) -> None:
    """Add the CSV route, the status and policy of pages and the treatment of assets to a dashboard's server.

    The last thing to do with an app: its policy names the inline scripts that its callbacks have put into the page.
    """
    server = app.server
    policy = page_policy(list(dict.fromkeys(app.csp_hashes())))

    @server.before_request
    def plotly() -> Response | None:
        return send_file(PLOTLY, conditional=True) if request.path == PLOTLY_PATH else None

    @server.after_request
    def pages(response: Response) -> Response:
        if request.endpoint in PAGE_ENDPOINTS and response.mimetype == "text/html":
            response.headers["Content-Security-Policy"] = policy
            if opens_with_figure(request.path):
                response.set_data(response.get_data(as_text=True).replace("</head>", f"{PLOTLY_SCRIPT}</head>", 1))
            response.status_code = status(reads, request.path)
        return response

    server.add_url_rule("/download/<name>.csv", "download", lambda name: _download(reads, name))
    server.add_url_rule("/pictures/<uuid:id>.png", "picture", lambda id: _picture(reads, id))
    server.register_error_handler(ZoograftError, _refused)
    packed: dict[str, bytes] = {}
    lock = threading.Lock()

    @server.after_request
    def assets(response: Response) -> Response:
        path = request.path
        if not path.startswith(("/_dash-component-suites/", "/assets/")) or response.status_code != 200:
            return response
        lasting = bool(_FINGERPRINT.search(path)) or (path.startswith("/assets/") and "m" in request.args)
        if lasting:
            response.headers["Cache-Control"] = IMMUTABLE
        kind = response.mimetype or ""
        if "gzip" not in request.accept_encodings or not any(one in kind for one in _COMPRESSIBLE):
            return response
        # What has no fingerprint in its name is known by its date and length, and asked about again each time.
        stamp = "" if lasting else f"{response.headers.get('Last-Modified')} {response.headers.get('ETag')}"
        key = f"{path}?{request.query_string.decode('latin-1')} {stamp}"
        known = lasting or stamp != "None None"
        with lock:
            body = packed.get(key) if known else None
        if body is None:
            response.direct_passthrough = False
            plain = response.get_data()
            if len(plain) < _SMALLEST:
                return response
            body = gzip.compress(plain, 6)
            if known:
                with lock:
                    packed[key] = body
        response.close()  # the file behind it
        response.direct_passthrough = False
        response.set_data(body)
        response.headers["Content-Encoding"] = "gzip"
        response.headers.add("Vary", "Accept-Encoding")
        return response


def page_policy(inline: Sequence[str]) -> str:
    """What a page may load and run: only this server's files, and of inline scripts those with these hashes.

    No text is ever compiled into code. Styles stay free: Plotly and Mantine put their own into the page as they draw.
    """
    return (
        f"default-src 'self'; script-src 'self' {' '.join(inline)}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    )


def to_csv(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of CSV in pieces; the first row's names are the head. No rows, no head: an empty text."""
    sink = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for number, row in enumerate(rows, start=1):
        if writer is None:
            writer = csv.DictWriter(sink, fieldnames=list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _safe(value) for name, value in row.items()})
        if number % _LINES == 0:
            yield sink.getvalue()
            sink.seek(0)
            sink.truncate()
    yield sink.getvalue()


def _safe(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is kept a text."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value


def _download(reads: Reads, name: str) -> Response:
    """The records behind a figure or a grid, for the address in `path` and the rest of the query."""
    query = request.query_string.decode("latin-1")
    found = find(request.args.get("path", "/"), query)
    if found is None or name not in found[0].TABLES:
        raise NotFound("table", name, "the download buttons of the pages know which there are")
    page, view = found
    lines = to_csv(page.TABLES[name](reads, view))
    first = next(lines)  # errors come before the first byte
    headers = {"Content-Disposition": f'attachment; filename="zoograft-{name}.csv"', "Cache-Control": "no-store"}

    def body() -> Iterator[str]:
        yield first
        yield from lines

    return Response(body(), mimetype="text/csv", headers=headers)


def _picture(reads: Reads, id: UUID) -> Response:
    """A PNG that a job published; what has an id never changes."""
    return Response(reads.picture(id), mimetype="image/png", headers={"Cache-Control": IMMUTABLE})


def _refused(error: Exception) -> tuple[str, int, dict[str, str]]:
    if isinstance(error, NotFound):
        status = 404
    else:
        status = 503 if isinstance(error, StoreUnavailable) else 400 if isinstance(error, BadInput) else 409
    return str(error), status, {"Content-Type": "text/plain; charset=utf-8"}
