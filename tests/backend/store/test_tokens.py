"""Bearer tokens: shown once, kept as hashes, with scopes that include each other."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import select

from backend.domain.errors import BadInput, NotFound
from backend.store import tokens
from backend.store.session import Store
from backend.store.tables import tokens as token_table


def test_a_token_is_known_by_its_secret_and_only_its_hash_is_kept(store: Store) -> None:
    with store.write() as connection:
        _, secret = tokens.create(connection, "ada", ["submit"])
    with store.read() as connection:
        assert tokens.verify(connection, secret) == tokens.Principal(owner="ada", scopes=frozenset({"read", "submit"}))
        rows = connection.execute(select(token_table)).mappings().all()
    assert secret not in str(rows)
    assert len(secret) >= 43


def test_two_tokens_differ(store: Store) -> None:
    with store.write() as connection:
        assert tokens.create(connection, "ada", ["read"])[1] != tokens.create(connection, "ada", ["read"])[1]


@pytest.mark.parametrize(
    ("scope", "may"), [("read", {"read"}), ("submit", {"read", "submit"}), ("admin", {"read", "submit", "admin"})]
)
def test_scopes_include_the_lesser_ones(store: Store, scope: str, may: set[str]) -> None:
    with store.write() as connection:
        _, secret = tokens.create(connection, "ada", [scope])
        principal = tokens.verify(connection, secret)
    assert principal is not None
    assert {one for one in tokens.SCOPES if principal.may(one)} == may


@pytest.mark.parametrize("secret", ["", "zg_", "zg_wrong", "\x00", "ü" * 50])
def test_an_unknown_secret_is_nobody(store: Store, secret: str) -> None:
    with store.write() as connection:
        tokens.create(connection, "ada", ["admin"])
        assert tokens.verify(connection, secret) is None


def test_a_revoked_token_is_nobody(store: Store) -> None:
    with store.write() as connection:
        token_id, secret = tokens.create(connection, "ada", ["read"])
        tokens.revoke(connection, token_id)
        tokens.revoke(connection, token_id)
        assert tokens.verify(connection, secret) is None
        assert tokens.list_tokens(connection)[0].revoked_at is not None
        with pytest.raises(NotFound):
            tokens.revoke(connection, uuid4())


def test_a_given_secret_can_be_stored_again_and_again(store: Store) -> None:
    with store.write() as connection:
        first = tokens.create(connection, "ada", ["read"], "a secret of my own")
        assert tokens.create(connection, "ada", ["read"], "a secret of my own") == first
        assert [info.owner for info in tokens.list_tokens(connection)] == ["ada"]


@pytest.mark.parametrize(
    ("owner", "scopes", "secret", "field"),
    [
        (" ", ["read"], None, "owner"),
        ("x" * 201, ["read"], None, "owner"),
        ("ada", [], None, "scopes"),
        ("ada", ["root"], None, "scopes"),
        ("ada", ["read"], "short", "token"),
    ],
)
def test_bad_tokens_are_refused(store: Store, owner: str, scopes: list[str], secret: str | None, field: str) -> None:
    with pytest.raises(BadInput) as caught, store.write() as connection:
        tokens.create(connection, owner, scopes, secret)
    assert caught.value.field == field
    assert secret is None or secret not in str(caught.value)
