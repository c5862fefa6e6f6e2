"""Bearer tokens: random, shown once, stored as SHA-256, compared in constant time. 256 random bits need no salt."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from sqlalchemy import Connection, insert, select, update

from backend.domain.errors import BadInput, NotFound
from backend.domain.records import Record
from backend.store.job_records import moment, new_id
from backend.store.session import db_now
from backend.store.tables import tokens

Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "zg_"
# What a scope includes: who may submit may read, who administers may do both.
_INCLUDED: dict[str, frozenset[str]] = {
    "read": frozenset({"read"}),
    "submit": frozenset({"read", "submit"}),
    "admin": frozenset(SCOPES),
}


class Principal(Record):
    """Who is asking, and what they may do. `scopes` holds every scope, the included ones too."""

    owner: str
    scopes: frozenset[str]

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes


class TokenInfo(Record):
    """A token as lists show it: never the token itself."""

    id: UUID
    owner: str
    scopes: tuple[str, ...]
    created_at: datetime | None
    revoked_at: datetime | None = None


LOCAL = Principal(owner="local", scopes=frozenset(SCOPES))


def create(connection: Connection, owner: str, scopes: Sequence[str], secret: str | None = None) -> tuple[UUID, str]:
    """Store a new token; returns its id and the token, which cannot be shown again.

    `secret` stores a given one instead (ZOOGRAFT_TOKEN); storing it twice is harmless.

    Raises:
        BadInput: No owner, no or unknown scopes, or a secret shorter than 16 characters.
    """
    if not owner.strip() or len(owner) > 200 or "\x00" in owner:
        raise BadInput("owner", owner, "1 to 200 characters")
    if not scopes or any(scope not in SCOPES for scope in scopes):
        raise BadInput("scopes", list(scopes), f"one or more of {', '.join(SCOPES)}")
    if secret is not None and len(secret) < 16:
        raise BadInput("token", "(not shown)", "at least 16 characters")
    value = secret or PREFIX + secrets.token_urlsafe(32)
    known = connection.scalar(select(tokens.c.id).where(tokens.c.sha256 == _hash(value)))
    if known is not None:
        return known, value
    token_id = new_id()
    row = {"id": token_id, "owner": owner, "sha256": _hash(value), "scopes": sorted(set(scopes))}
    connection.execute(insert(tokens).values(**row, created_at=db_now()))
    return token_id, value


def verify(connection: Connection, secret: str) -> Principal | None:
    """Who a token belongs to; None when it is unknown or was revoked."""
    given = _hash(secret)
    row = connection.execute(select(tokens).where(tokens.c.sha256 == given)).one_or_none()
    if row is None or row.revoked_at is not None or not hmac.compare_digest(row.sha256, given):
        return None
    return Principal(owner=row.owner, scopes=frozenset().union(*(_INCLUDED[scope] for scope in row.scopes)))


def revoke(connection: Connection, token_id: UUID) -> None:
    """Make a token useless from now on; harmless when it is already.

    Raises:
        NotFound: No such token.
    """
    row = connection.execute(
        update(tokens)
        .where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
        .values(revoked_at=db_now())
        .returning(tokens.c.id)
    ).one_or_none()
    if row is None and connection.scalar(select(tokens.c.id).where(tokens.c.id == token_id)) is None:
        raise NotFound("token", str(token_id))


def list_tokens(connection: Connection) -> list[TokenInfo]:
    """Every token that was ever made, the newest first."""
    rows = connection.execute(select(tokens).order_by(tokens.c.created_at.desc(), tokens.c.id.desc()))
    return [
        TokenInfo(
            id=row.id,
            owner=row.owner,
            scopes=tuple(row.scopes),
            created_at=moment(row.created_at),
            revoked_at=moment(row.revoked_at),
        )
        for row in rows
    ]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
