import base64
import json

import pytest

from backend.domain.errors import BadInput
from backend.store.queries.paging import check_limit, decode_cursor, encode_cursor, parse_sort

QUERY = ["pairs", "-positive_flip_rate", None]


def test_a_cursor_gives_back_its_values_to_the_bit() -> None:
    values = [0.1 + 0.2, 7, "val", "ü/…"]
    cursor = encode_cursor(QUERY, values)
    assert cursor.isascii()
    assert decode_cursor(QUERY, cursor, ((int, float), int, str, str)) == values
    assert decode_cursor(QUERY, None, (int,)) is None


def test_a_cursor_belongs_to_its_query() -> None:
    with pytest.raises(BadInput, match="same sort, same filters"):
        decode_cursor(["pairs", "positive_flip_rate", None], encode_cursor(QUERY, [1]), (int,))


def _forged(values: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "%%%",
        "ünicode",
        "AAAA",
        "=" * 50,
        _forged({}),
        _forged([]),
        _forged("text"),
        _forged([json.loads(base64.urlsafe_b64decode(encode_cursor(QUERY, [1]) + "=="))[0], 2**70]),
        _forged([json.loads(base64.urlsafe_b64decode(encode_cursor(QUERY, [1]) + "=="))[0], "1; drop table pairs"]),
        _forged([json.loads(base64.urlsafe_b64decode(encode_cursor(QUERY, [1]) + "=="))[0], True]),
        _forged([json.loads(base64.urlsafe_b64decode(encode_cursor(QUERY, [1]) + "=="))[0], 1, 2]),
        "W" * 100_000,
    ],
)
def test_anything_else_is_bad_input(cursor: str) -> None:
    with pytest.raises(BadInput) as caught:
        decode_cursor(QUERY, cursor, (int,))
    assert caught.value.field == "cursor"


@pytest.mark.parametrize("limit", [0, -1, 201, True, 1.5])
def test_limits(limit: int) -> None:
    with pytest.raises(BadInput, match="from 1 to 200"):
        check_limit(limit)


def test_sort_columns_come_from_the_list() -> None:
    assert parse_sort("-a", {"a": 1}) == ("a", "desc")
    assert parse_sort("a", {"a": 1}) == ("a", "asc")
    for wrong in ("b", "", "-", "--a", "a; drop table pairs", "a desc"):
        with pytest.raises(BadInput, match="one of a"):
            parse_sort(wrong, {"a": 1})
