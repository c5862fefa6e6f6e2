"""Who is asking, and what may they do? Tokens, scopes, and the rule which request needs which scope."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from backend.domain.errors import BadInput
from backend.settings import Settings
from backend.store.tokens import LOCAL, Principal, Scope

COOKIE = "zoograft_token"
HEALTH = "/healthz"
SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"


Lookup = Callable[[str], Principal | None]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address one listens on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").split("%")[0]).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]").split("%")[0])
    except ValueError:
        return False
    return True


def required_scope(method: str, path: str) -> Scope | None:
    """The scope a request needs; None: no token at all.

    Dash sends reads and writes through one callback route; those need `read` here, and the dashboard's actions check
    `submit` themselves.
    """
    if path in (HEALTH, SIGN_IN, SIGN_OUT):
        return None
    if method in ("GET", "HEAD", "OPTIONS") or not is_api(path):
        return "read"
    return "submit"


def is_api(path: str) -> bool:
    """Whether REST answers a path; everything else is the dashboard's."""
    return path in ("/api", HEALTH, "/readyz", "/metrics", SIGN_IN, SIGN_OUT) or path.startswith("/api/")


@dataclass
class Door:
    """Checks tokens: the one of the settings, then those of the store (remembered for a few seconds)."""

    settings: Settings
    stored: Lookup | None = None
    remember_s: float = 5.0
    _known: dict[str, tuple[float, Principal | None]] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether callers need no token: loopback, and none was set."""
        return is_loopback(self.settings.host) and self.settings.token is None

    def check_address(self, has_stored_tokens: Callable[[], bool]) -> None:
        """Refuses to listen where others can reach us while no token exists."""
        token = self.settings.token
        if token is not None and len(token.get_secret_value()) < 16:
            raise BadInput("token", "***", "at least 16 characters, such as: openssl rand -hex 24")
        if is_loopback(self.settings.host) or token is not None or has_stored_tokens():
            return
        raise BadInput(
            "host",
            self.settings.host,
            "an address that others can reach needs a token: set ZOOGRAFT_TOKEN (openssl rand -hex 24), "
            "or listen on 127.0.0.1",
        )

    def principal(self, token: str) -> Principal | None:
        """Who holds this token, or None. Reads the store: call it from a thread."""
        mine = self.settings.token
        if mine is not None and hmac.compare_digest(token.encode(), mine.get_secret_value().encode()):
            return LOCAL
        if self.stored is None or not token or len(token) > 512:
            return None
        digest = sha256(token.encode()).hexdigest()
        until, known = self._known.get(digest, (0.0, None))
        now = time.monotonic()
        if now < until:
            return known
        found = self.stored(token)
        if len(self._known) > 1000:
            self._known.clear()
        self._known[digest] = (now + self.remember_s, found)
        return found

    def host_allowed(self, name: str) -> bool:
        """Whether a Host header may name us: DNS rebinding arrives under a name of the attacker's.

        A literal address cannot be rebound, so beyond loopback any is fine; names must be ours or listed.
        """
        name = name.lower().rstrip(".")
        if name in ("localhost", "127.0.0.1", "[::1]", self.settings.host.lower()):
            return True
        if name in {allowed.lower() for allowed in self.settings.allowed_hosts}:
            return True
        return not is_loopback(self.settings.host) and is_address(name)
