"""The app as a whole: what importing it loads, what every page exports, what addresses draw."""

import json
import subprocess
import sys
from uuid import uuid4

import pytest
from dash import dcc, html
from dash.development.base_component import Component

from dashboard import routing
from dashboard.app import create_app
from dashboard.pages import PAGES
from dashboard.reads import Reads


def texts(component):
    """All texts of a layout, in order."""
    if isinstance(component, str):
        return [component]
    if isinstance(component, list | tuple):
        return [text for one in component for text in texts(one)]
    if isinstance(component, Component):
        return [text for name in ("title", "label", "children") for text in texts(getattr(component, name, None))]
    return []


def components(component):
    """All components of a layout."""
    if isinstance(component, list | tuple):
        for one in component:
            yield from components(one)
    elif isinstance(component, Component):
        yield component
        for name in component._prop_names:
            value = getattr(component, name, None)
            if name != "figure" and isinstance(value, list | tuple | Component):
                yield from components(value)


def test_importing_the_dashboard_loads_no_torch():
    code = (
        "import sys, dashboard.app; print([m for m in ('torch', 'timm', 'torchvision', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_two_apps_in_one_process_both_have_all_callbacks(empty_store, settings):
    first, second = (create_app(settings, empty_store) for _ in range(2))
    with first.server.test_client() as client:
        one = client.get("/_dash-dependencies").get_json()
    with second.server.test_client() as client:
        two = client.get("/_dash-dependencies").get_json()
    assert len(one) == len(two) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.__name__.rsplit(".", 1)[-1])
def test_every_page_keeps_the_contract(page):
    assert page.PATH.startswith("/")
    assert page.TITLE
    assert page.NAV is None or (len(page.NAV) == 2 and page.HREF.startswith("/"))
    assert callable(page.layout)
    assert callable(page.register)
    assert all(callable(table) for table in page.TABLES.values())


def test_addresses_find_their_page_and_only_that():
    seen = {}
    for path in ("/", "/zoo/a", "/pairs", "/pairs/a/b", "/jobs", f"/jobs/{uuid4()}", "/studies", f"/studies/{uuid4()}"):
        found = routing.find(path, "?x=1")
        assert found is not None, path
        seen[found[0].PATH] = path
        assert found[1].query == {"x": "1"}
    assert len(seen) == 8
    assert routing.find("/nowhere/at/all", "") is None


@pytest.mark.parametrize("path", ["/", "/pairs", "/jobs", "/studies"])
def test_an_empty_store_says_what_to_do_next(path, empty_store, settings):
    content, title = routing.draw(Reads(empty_store, settings), path, "")
    said = " ".join(texts(content))
    assert "yet" in said
    assert "zoograft " in said
    assert title


@pytest.mark.parametrize(
    "path, named",
    [
        ("/zoo/nobody", "nobody"),
        ("/pairs/cnn_a/nobody", "nobody"),
        ("/pairs/nobody/cnn_a", "nobody"),
        ("/pairs/cnn_a/cnn_a", "cnn_a"),
        ("/jobs/not-an-id", "not-an-id"),
        ("/jobs/00000000-0000-7000-8000-000000000001", "no job named"),
        ("/studies/00000000-0000-7000-8000-000000000001", "no job named"),
        ("/nowhere", "/nowhere"),
        ("/pairs?on=nothing/val", "nothing"),
    ],
)
def test_unknown_things_get_a_page_that_names_them_and_a_way_out(path, named, reads):
    path, _, query = path.partition("?")
    content, _ = routing.draw(reads, path, query)
    found = list(components(content))
    assert named in " ".join(texts(content))
    assert any(getattr(one, "href", None) for one in found)


def test_a_lost_database_gets_a_page_that_tries_again(reads, monkeypatch):
    from backend.domain.errors import StoreUnavailable

    def gone(*_args, **_more):
        raise StoreUnavailable("the database does not answer")

    monkeypatch.setattr(reads, "boards", gone)
    content, _ = routing.draw(reads, "/pairs", "")
    assert any(isinstance(one, dcc.Interval) for one in components(content))
    assert "tries again" in " ".join(texts(content))


@pytest.mark.parametrize("path", ["/", "/pairs", "/pairs?view=heat", "/pairs/vit_b/cnn_a", "/zoo/cnn_a"])
def test_every_download_button_has_its_table(path, reads):
    path, _, query = path.partition("?")
    page, _view = routing.find(path, query)
    content, _ = routing.draw(reads, path, query)
    buttons = [one for one in components(content) if isinstance(one, html.Button) and "download" in str(one.className)]
    assert buttons
    assert {getattr(one, "data-table") for one in buttons} <= set(page.TABLES)


def test_layouts_are_json(reads):
    from plotly.utils import PlotlyJSONEncoder

    for path in ("/", "/pairs", "/pairs/vit_b/cnn_a", "/zoo/cnn_a", "/jobs", "/studies"):
        content, _ = routing.draw(reads, path, "")
        assert len(json.dumps(content, cls=PlotlyJSONEncoder)) < 400_000
