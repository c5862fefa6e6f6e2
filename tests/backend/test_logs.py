"""Logs carry what an event belongs to, and no secrets."""

import json

import pytest
import structlog

from backend import logs
from backend.settings import Settings


@pytest.fixture
def write(tmp_path, capsys):
    def wrote(log_format, **fields):
        logs.configure(Settings(data_dir=tmp_path, log_format=log_format))
        with structlog.contextvars.bound_contextvars(job="7", attempt=2):
            structlog.get_logger().info("said", **fields)
        return capsys.readouterr().err

    yield wrote
    structlog.reset_defaults()


def test_json_lines_carry_job_and_attempt(write):
    line = json.loads(write("json", step=3))
    assert (line["event"], line["job"], line["attempt"], line["step"], line["level"]) == ("said", "7", 2, 3, "info")
    assert line["timestamp"].endswith("Z")


def test_text_lines_do_too(write):
    line = write("text", step=3)
    assert "said" in line
    assert "job=7" in line


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize(
    "fields",
    [
        {"token": "geheim"},
        {"api_key": "geheim"},
        {"database_password": "geheim"},
        {"url": "postgresql://user:geheim@host/db"},
        {"error": "cannot reach redis://:geheim@host:1/0"},
    ],
)
def test_secrets_never_appear(write, log_format, fields):
    assert "geheim" not in write(log_format, **fields)
