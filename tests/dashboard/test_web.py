"""CSV of every chart, and assets that are compressed and kept."""

import csv
import gzip
import io

import pytest

from dashboard.app import create_app
from dashboard.web import IMMUTABLE, to_csv


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


def test_no_page_asks_another_host(client):
    page = client.get("/").get_data(as_text=True)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
