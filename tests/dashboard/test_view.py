"""Addresses: what is written is what is read."""

import pytest

from backend.domain.errors import BadInput
from dashboard.view import View, link, match, parse_query


def test_a_path_gives_its_parameters_and_nothing_else_matches():
    assert match("/pairs/{teacher}/{student}", "/pairs/a.b_c-1/d") == {"teacher": "a.b_c-1", "student": "d"}
    assert match("/pairs/{teacher}/{student}", "/pairs/a") is None
    assert match("/pairs/{teacher}/{student}", "/pairs/a/b/c") is None
    assert match("/", "/") == {}
    assert match("/pairs", "/pairs/") == {}
    assert match("/p.irs", "/pairs") is None


def test_links_are_read_back_as_they_were_written():
    href = link("pairs", "a/b", "c d", on="x y&z", empty="", nothing=None)
    path, _, query = href.partition("?")
    assert match("/pairs/{teacher}/{student}", path) == {"teacher": "a/b", "student": "c d"}
    assert parse_query("?" + query) == {"on": "x y&z"}


@pytest.mark.parametrize("search", [None, "", "?", "?a=", "?&&"])
def test_an_empty_query_is_empty(search):
    assert parse_query(search) == {}


def test_numbers_of_an_address():
    view = View(query={"min": "2.5", "bad": "two", "inf": "inf", "x": "-1,2", "turned": "2,1", "half": "1,"})
    assert view.number("min") == 2.5
    assert view.number("missing") is None
    for name in ("bad", "inf"):
        with pytest.raises(BadInput, match=name):
            view.number(name)
    assert view.pair("x") == (-1.0, 2.0)
    assert view.pair("turned") is view.pair("half") is view.pair("missing") is None


def test_a_word_that_is_not_on_the_list_is_the_default():
    assert View(query={"view": "heat"}).one_of("view", ("heat", "plane"), "plane") == "heat"
    assert View(query={"view": "<script>"}).one_of("view", ("heat", "plane"), "plane") == "plane"
