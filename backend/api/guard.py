"""The one door in front of REST and dashboard: address, Host, Origin, token, body size, response headers.

Plain ASGI, outside both frameworks, because a check inside one of them leaves the other open.
"""

from __future__ import annotations

import html
import re
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote, unquote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.access import COOKIE, SIGN_IN, SIGN_OUT, Door, is_address, is_api, is_loopback
from backend.api.access import required_scope as scope_of
from backend.api.problems import problem, problem_of
from backend.domain.errors import ZoograftError
from backend.store.tokens import LOCAL, Principal

BODY_LIMIT = 1_000_000
SAFE = ("GET", "HEAD", "OPTIONS")

API_POLICY = "default-src 'none'; frame-ancestors 'none'"
# A page of the dashboard sends its own, which names the hashes of its inline scripts; this is for all else it serves.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
SIGN_IN_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_HOST = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?$")


class Guard:
    """Lets a request through to `app` with `state.principal` set, or answers it."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(scope, send)
        # The path is decoded once by the server; what still hides a climb after that is refused, not cleaned.
        refusal = self._misdirected(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        body, too_large = await _body(scope, receive)
        if too_large:
            await problem(413, f"a body of at most {BODY_LIMIT} bytes")(scope, receive, send)
            return
        receive = _replay(body, receive)
        if scope["path"] in (SIGN_IN, SIGN_OUT):
            await (await self._sign(scope, body))(scope, receive, send)
            return
        try:
            answer = await self._admit(scope)
        except ZoograftError as error:
            answer = problem_of(error)
        if isinstance(answer, Response):
            await answer(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = answer
        await self.app(scope, receive, send)

    def _misdirected(self, scope: Scope) -> Response | None:
        """A request that was not meant for us: by name, by another site's page, or past the address we listen on."""
        headers = Headers(scope=scope)
        server = (scope.get("server") or ("", None))[0]
        if self.door.open and server and is_address(server) and not is_loopback(server):
            return problem(403, "this server has no token and answers on loopback only")
        named = headers.getlist("host")
        match = _HOST.match(named[0]) if len(named) == 1 else None
        if match is None or not self.door.host_allowed(match[1]):
            return problem(403, "the Host header does not name this server; see ZOOGRAFT_ALLOWED_HOSTS")
        if any(ord(character) < 32 or ord(character) == 127 for character in scope["path"]):
            return problem(404, "nothing at that path")
        origin = headers.get("origin")
        if origin is not None and not _same_origin(origin, scope, named[0]):
            return problem(403, "requests from pages of another site are refused")
        if scope["method"] not in SAFE and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return problem(403, "requests from pages of another site are refused")
        return None

    async def _admit(self, scope: Scope) -> Principal | Response:
        needed = scope_of(scope["method"], scope["path"])
        if self.door.open or needed is None:
            return LOCAL
        headers = Headers(scope=scope)
        token = _token(headers)
        principal = await run_in_threadpool(self.door.principal, token) if token else None
        if principal is None:
            return _sign_in_first(scope, headers, wrong=bool(token))
        if not principal.may(needed):
            return problem(403, f"the token of {principal.owner!r} lacks the scope {needed}", cause="not_allowed")
        return principal

    async def _sign(self, scope: Scope, body: bytes) -> Response:
        """The sign-in page and its form: a token becomes a session cookie that no script can read."""
        secure = scope.get("scheme") == "https"
        if scope["path"] == SIGN_OUT:
            if scope["method"] != "POST":
                return problem(405, "sign out with POST", headers={"Allow": "POST"})
            response: Response = RedirectResponse(SIGN_IN, status_code=303)
            response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=secure)
            return response
        if scope["method"] in ("GET", "HEAD"):
            wanted = parse_qs(scope["query_string"].decode("latin-1")).get("next", ["/"])[0]
            return _page(wanted)
        if scope["method"] != "POST":
            return problem(405, "GET or POST", headers={"Allow": "GET, POST"})
        form = parse_qs(body.decode("utf-8", "replace"))
        token, wanted = form.get("token", [""])[0].strip(), form.get("next", ["/"])[0]
        try:
            known = self.door.open or (token and await run_in_threadpool(self.door.principal, token))
        except ZoograftError as error:
            return problem_of(error)
        if not known:
            return _page(wanted, status=401, wrong=True)
        response = RedirectResponse(_local_path(wanted), status_code=303)
        if token:
            response.set_cookie(COOKIE, quote(token, safe=""), httponly=True, samesite="strict", secure=secure)
        return response


def _token(headers: Headers) -> str | None:
    """The bearer token, else the cookie's."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme:
        return credentials.strip() if scheme.lower() == "bearer" else "\x00"
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return unquote(cookie.value) if cookie is not None and cookie.value else None


def _same_origin(origin: str, scope: Scope, host: str) -> bool:
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _sign_in_first(scope: Scope, headers: Headers, *, wrong: bool) -> Response:
    if not is_api(scope["path"]) and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
        query = scope["query_string"].decode("latin-1")
        return _page(scope["path"] + (f"?{query}" if query else ""), status=401, wrong=wrong)
    detail = "this token is not known here" if wrong else "send Authorization: Bearer TOKEN"
    return problem(401, detail, cause="not_allowed", headers={"WWW-Authenticate": 'Bearer realm="zoograft"'})


def _local_path(wanted: str) -> str:
    """A path on this server, whatever the form asked for."""
    parts = urlsplit(wanted)
    safe = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and not parts.netloc
    return wanted if safe and wanted.isprintable() else "/"


def _page(wanted: str, *, status: int = 200, wrong: bool = False) -> Response:
    complaint = '<p role="alert">This token is not known here.</p>' if wrong else ""
    return HTMLResponse(
        _PAGE.format(complaint=complaint, action=SIGN_IN, wanted=html.escape(_local_path(wanted), quote=True)),
        status_code=status,
        headers={"Content-Security-Policy": SIGN_IN_POLICY, "Cache-Control": "no-store"}
        | ({"WWW-Authenticate": 'Bearer realm="zoograft"'} if status == 401 else {}),
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Zoograft: sign in</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 0; }}
form {{ width: min(22rem, 90vw); display: grid; gap: .75rem; }}
h1 {{ font-size: 1.4rem; margin: 0; }}
input, button {{ font: inherit; padding: .55rem .7rem; border-radius: .4rem; border: 1px solid #8888; }}
button {{ background: #1f6f5c; color: #fff; border: 0; cursor: pointer; }}
[role=alert] {{ color: #c0392b; margin: 0; }}
</style></head>
<body><main><form method="post" action="{action}">
<h1>Zoograft</h1>
<label for="token">Token of this server (ZOOGRAFT_TOKEN, or one of your own)</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input type="hidden" name="next" value="{wanted}">
{complaint}<button type="submit">Sign in</button>
</form></main></body></html>
"""


async def _body(scope: Scope, receive: Receive) -> tuple[bytes, bool]:
    """The whole body, and whether it is larger than we take."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return b"", False
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdigit() and int(declared) > BODY_LIMIT:
        return b"", True
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body), False
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT:
            return b"", True
        if not message.get("more_body", False):
            return bytes(body), False


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body was read already; afterwards what the server says (disconnects)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(scope: Scope, send: Send) -> Send:
    policy = API_POLICY if is_api(scope["path"]) else PAGE_POLICY

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Content-Security-Policy", policy)
            if scope["path"].startswith("/api/"):
                headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return guarded
