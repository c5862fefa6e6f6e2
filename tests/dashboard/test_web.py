"""CSV of every chart, and assets that are compressed and kept."""

import base64
import csv
import gzip
import hashlib
import io
import re

import pytest

from backend.domain.errors import StoreUnavailable
from dashboard.app import create_app
from dashboard.web import IMMUTABLE, PLOTLY_PATH, PLOTLY_SCRIPT, to_csv


@pytest.fixture
def client(zoo_store, settings):
    with create_app(settings, zoo_store).server.test_client() as client:
        yield client


def rows(answer):
    return list(csv.DictReader(io.StringIO(answer.get_data(as_text=True))))


def test_pairs_come_as_fractions_with_the_filters_of_the_address(client):
    answer = client.get("/download/pairs.csv?path=/pairs&on=pets/val&teacher=vit*")
    assert answer.status_code == 200
    assert answer.mimetype == "text/csv"
    found = rows(answer)
    assert {row["teacher"] for row in found} == {"vit_a", "vit_b"}
    assert len(found) == 8
    for row in found:
        difference = float(row["positive_flip_rate"]) - float(row["negative_flip_rate"])
        assert difference == pytest.approx(float(row["accuracy_difference"]), abs=1e-9)


@pytest.mark.parametrize(
    "table, path, count",
    [
        ("zoo", "/", 5),
        ("pairs-figure", "/pairs", 20),
        ("pairs-figure", "/pairs&view=heat", 20),
        ("pair-classes", "/pairs/vit_b/cnn_a", 4),
        ("scores", "/zoo/cnn_a", 1),
    ],
)
def test_tables_of_the_pages(client, table, path, count):
    assert len(rows(client.get(f"/download/{table}.csv?path={path}"))) == count


def test_samples_are_those_of_the_kind(client):
    found = rows(client.get("/download/pair-samples.csv?path=/pairs/vit_b/cnn_a&kind=positive"))
    assert found
    assert all(row["teacher_top1"] == row["label"] != row["student_top1"] for row in found)


@pytest.mark.parametrize(
    "address, status",
    [
        ("/download/nothing.csv?path=/pairs", 404),
        ("/download/pairs.csv?path=/nowhere", 404),
        ("/download/pair-classes.csv?path=/pairs/nobody/cnn_a", 404),
        ("/download/pairs.csv?path=/pairs&min=many", 400),
    ],
)
def test_what_cannot_be_downloaded_says_why(client, address, status):
    answer = client.get(address)
    assert answer.status_code == status
    assert answer.mimetype == "text/plain"
    assert answer.get_data()


def test_a_spreadsheet_runs_no_formula():
    lines = "".join(to_csv([{"name": "=1+1", "value": -0.5}, {"name": "plain", "value": None}]))
    assert lines == "name,value\n'=1+1,-0.5\nplain,\n"
    assert "".join(to_csv([])) == ""


def test_assets_are_compressed_once_and_kept_for_good(client):
    page = client.get("/").get_data(as_text=True)
    sources = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert sources
    assert not [one for one in sources if "//" in one]
    script = next(one for one in sources if "dash_renderer" in one or "zoograft.js" in one)
    with client.get(script) as answer:
        plain = answer.get_data()
    packed = client.get(script, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Cache-Control"] == IMMUTABLE
    assert gzip.decompress(packed.get_data()) == plain
    again = client.get(script, headers={"Accept-Encoding": "gzip"})
    assert again.get_data() == packed.get_data()


@pytest.mark.parametrize(
    "path, times",
    [("/pairs", 1), ("/pairs/vit_b/cnn_a", 1), ("/studies", 1), ("/plane", 1), ("/", 0), ("/jobs", 0), ("/nowhere", 0)],
)
def test_plotly_comes_with_the_pages_that_open_with_a_figure(client, path, times):
    assert client.get(path).get_data(as_text=True).count(PLOTLY_SCRIPT) == times


def test_no_page_asks_another_host(client):
    page = client.get("/").get_data(as_text=True)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


@pytest.mark.parametrize(
    "path, status",
    [
        ("/", 200),
        ("/pairs", 200),
        ("/zoo/cnn_a", 200),
        ("/zoo/nobody", 404),
        ("/pairs/vit_b/cnn_a", 200),
        ("/pairs/vit_b/nobody", 404),
        ("/pairs/vit_b/vit_b", 404),
        ("/jobs/not-an-id", 404),
        ("/jobs/00000000-0000-7000-8000-000000000001", 404),
        ("/studies/00000000-0000-7000-8000-000000000001", 404),
        ("/nowhere/at/all", 404),
    ],
)
def test_a_path_that_names_nothing_is_not_found_and_still_the_same_page(client, path, status):
    answer = client.get(path)
    assert answer.status_code == status
    assert "_dash-renderer" in answer.get_data(as_text=True)


def test_a_page_of_a_lost_database_is_unavailable(client, monkeypatch):
    def gone(*_):
        raise StoreUnavailable("the database does not answer")

    monkeypatch.setattr("dashboard.reads.Reads.model", gone)
    assert client.get("/zoo/cnn_a").status_code == 503


def test_pages_run_only_the_inline_scripts_that_their_policy_names(client):
    answer = client.get("/pairs")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert "unsafe" not in policy["script-src"]
    page = answer.get_data(as_text=True)
    inline = re.findall(r"<script(?![^>]*(?:src=|application/json))[^>]*>(.*?)</script>", page, re.DOTALL)
    assert len(inline) > 3
    for script in inline:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy["script-src"]


def test_plotly_is_the_part_that_the_figures_need_of_the_version_that_wrote_them(client):
    from plotly.offline import get_plotlyjs_version

    with client.get(PLOTLY_PATH, headers={"Accept-Encoding": "gzip"}) as script:
        text = gzip.decompress(script.get_data())[:200].decode()
    assert f"plotly.js (cartesian - minified) v{get_plotlyjs_version()}" in text
    with client.get(PLOTLY_PATH, headers={"If-None-Match": script.headers["ETag"]}) as again:
        assert again.status_code == 304
