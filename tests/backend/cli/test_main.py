"""Every command: help that teaches, `--json`, exit codes, errors on stderr."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer.main

from backend.cli import main
from backend.settings import environment
from tests.backend.cli.conftest import Ran

COMMANDS = {
    *("demo", "up", "web", "worker", "migrate", "doctor", "scan", "pairs", "classes", "transfer", "remem", "kdep"),
    *("analyse", "finetune", "report"),
    *("models ls", "models show", "models add", "models sync", "datasets ls", "datasets show", "datasets add"),
    *("predictions import", "predictions export", "study run", "study ls", "study show"),
    *("jobs ls", "jobs show", "jobs logs", "jobs cancel", "jobs retry", "jobs resume"),
}


def commands(group: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    group = group or typer.main.get_command(main.app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def test_the_commands_of_the_contract_are_there() -> None:
    assert {name for name, _ in commands()} >= COMMANDS


def test_every_command_has_json_and_help_that_says_what_it_does() -> None:
    for name, command in commands():
        options = [option for parameter in command.params for option in parameter.opts]
        assert "--json" in options, name
        assert command.help, name
        assert len(command.help.split()) >= 3, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, ""),
        (["dance"], 2, "No such command"),
        (["models", "ls", "--colour"], 2, "--colour"),
        (["models", "ls", "--limit", "0"], 2, "--limit"),
        (["models", "show", "nobody"], 2, "no model named 'nobody'"),
        (["models", "ls", "--family", "tree"], 2, "family"),
        (["models", "ls", "--sort", "size"], 2, "one of name"),
        (["datasets", "show", "none"], 2, "none"),
        (["jobs", "show", "7"], 2, "UUID"),
        (["jobs", "cancel", "00000000-0000-0000-0000-000000000000"], 2, "no job"),
        (["jobs", "ls", "--state", "done"], 2, "queued"),
        (["pairs", "--sort", "name"], 2, "positive_flip_rate"),
        (["pairs", "--dataset", "none"], 2, "none"),
        (["scan", "--models", "x", "--dataset", "none"], 2, "none"),
        (["scan", "--models", "@nothing.txt", "--dataset", "d"], 2, "nothing.txt"),
        (["scan", "--models", "x", "--dataset", "d", "--limit", "-3"], 2, "limit"),
        (["transfer", "--student", "a", "--dataset", "d", "--method", "magic"], 2, "kl_dp"),
        (["transfer", "--student", "a", "--dataset", "d", "--set", "lr"], 2, "key=value"),
        (["transfer", "--student", "a", "--dataset", "d", "--set", "lr=[1]"], 2, "scalar"),
        (["transfer", "--student", "a", "--dataset", "d", "--set", "lr=NaN"], 2, "finite"),
        (["transfer", "--student", "a", "--dataset", "d", "--set", "lr=0"], 2, "> 0"),
        (["transfer", "--student", "a", "--dataset", "d", "--set", "leanring=1"], 2, "leanring"),
        (["transfer", "--student", "a", "--dataset", "d", "--set", "lr=1", "--set", "lr=2"], 2, "twice"),
        (["datasets", "add", "x", "/no/such/folder"], 2, "existing"),
        (["datasets", "add", "x"], 2, "digits"),
        (["models", "add", "a b", "--arch", "resnet18"], 2, "name"),
        (["models", "add", "a", "--arch", "resnet18", "--checkpoint", "none.pt"], 2, "none.pt"),
        (["models", "add", "a", "--arch", "resnet18", "--input-size", "big"], 2, "numbers"),
        (["models", "add", "a", "--arch", "resnet18", "--kwarg", "x"], 2, "key=value"),
        (["study", "run", "none.yaml"], 2, "none.yaml"),
        (["study", "show", "x"], 2, "UUID"),
        (["report", "-o", "x.html"], 2, "--pair"),
        (["classes", "--teacher", "a", "--student", "b"], 2, "no model named"),
        (["predictions", "import", "none.csv", "--model", "m", "--dataset", "d"], 2, "none.csv"),
        (["worker", "--queues", "tpu"], 2, "gpu"),
        (["web", "--host", "0.0.0.0", "--port", "0"], 2, "port"),
    ],
)
def test_exit_codes(zoograft: Callable[..., Ran], arguments: list[str], code: int, said: str) -> None:
    ran = zoograft(*arguments)
    assert ran.code == code
    if code:
        assert said in ran.err
        assert ran.out == ""
        assert "Traceback" not in ran.err


def test_bad_settings_name_the_variable(zoograft: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ZOOGRAFT_PORT", "70000"), ("ZOOGRAFT_LEASE_S", "soon"), ("ZOOGRAFT_ALLOWED_HOSTS", "web")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            ran = zoograft("models", "ls")
            assert ran.code == 2
            assert name.split("_")[0] in ran.err


def test_a_database_that_is_away_fails_with_one_line(
    zoograft: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOGRAFT_DATABASE_URL", "postgresql+psycopg://user:canary@127.0.0.1:1/none")
    ran = zoograft("models", "ls")
    assert ran.code == 1
    assert ran.err.startswith("error: ")
    assert "canary" not in ran.err


def test_a_fresh_start_migrates_by_itself(
    zoograft: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("ZOOGRAFT_DATABASE_URL")
    monkeypatch.setenv("ZOOGRAFT_DATA_DIR", str(tmp_path / "fresh"))
    assert zoograft("models", "ls", "--json").json == {"items": [], "next_cursor": None}
    assert (tmp_path / "fresh" / "zoograft.db").exists()
    assert zoograft("migrate", "--json").json["revision"]


def test_the_console_command(tmp_path: Any) -> None:
    """As it is installed: a process of its own, quick, without torch, and quiet when its reader leaves."""
    env = environment(ZOOGRAFT_DATA_DIR=str(tmp_path), ZOOGRAFT_DATABASE_URL=None)
    program = "import sys; from backend.cli.main import run; code = run(['jobs', 'ls', '--json']); "
    program += "sys.exit(3 if {'torch', 'timm', 'dash', 'fastapi'} & set(sys.modules) else code)"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"items": []' in done.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "backend.cli.main", "--help"], env=env, capture_output=True, text=True
    )
    assert "zoograft demo" in shown.stdout


def test_without_torch_a_scan_says_what_to_install(
    zoograft: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    for arguments, what in (
        (["scan", "--models", "x", "--dataset", "d"], "scan"),
        (["demo"], "demo"),
        (["datasets", "add", "digits"], "datasets add"),
        (["transfer", "--student", "a", "--teacher", "b", "--dataset", "d"], "transfer"),
    ):
        ran = zoograft(*arguments)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == f"error: {what} needs: pip install 'zoograft[workers]'\n"
    assert zoograft("jobs", "ls", "--json").json["items"] == []  # nothing half-written
