"""The command's frame: what it costs to be asked, and how it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest

from pylon import __version__
from pylon.cli import main as module
from pylon.cli.main import COMMANDS, cli, run
from pylon.cli.output import pass_state
from pylon.errors import InsufficientFunds

HEAVY = (
    "trio", "attrs", "attr", "rich", "cattrs", "tomlkit", "sqlite_utils", "sqlite3", "asyncio", "orjson", "httpx",
    "cryptography", "secp256k1", "structlog", "filelock", "pylon.config", "pylon.identity", "pylon.store",
)  # fmt: skip

PROBE = """
import sys
from pylon.cli.main import run
code = run(sys.argv[1:])
print(sorted(set(%r) & set(sys.modules)), code, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--version"], 0), (["status"], 3), (["status", "--json"], 3), (["--json", "status"], 3)],
)
def test_a_question_costs_click_and_the_standard_library(tmp_path, arguments, code):
    """Also with a configuration in the home, as long as it names no data_dir."""
    (tmp_path / "config.toml").write_text('network = "simnet"\n')
    environ = {**os.environ, "PYLON_HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROBE % (HEAVY,), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    assert done.stderr.splitlines()[-1] == f"[] {code}"


def test_help_lists_the_table(capsys):
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for name, (_, text) in COMMANDS.items():
        assert name in out
        assert text in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there_and_helps(name, capsys):
    assert isinstance(cli.get_command(click.Context(cli), name), click.Command)
    assert run([name, "--help"]) == 0
    assert f"pylon {name}" in capsys.readouterr().out


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"pylon {__version__}\n"


def test_what_a_command_writes_is_its_owners(capsys):
    before = os.umask(0o022)
    try:
        with pytest.raises(SystemExit):
            module.main(["--version"])
        assert os.umask(before) == 0o077
    finally:
        os.umask(before)


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "pylon", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pylon {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["--nonsense"], ["status", "--nonsense"], ["status", "too", "much"]]
)
def test_usage_errors_exit_2(arguments, capsys):
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "hint: " in err
    assert run(["--json", *arguments]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "usage"


def test_a_near_miss_is_suggested(capsys):
    run(["statsu"])
    assert "pylon status" in capsys.readouterr().err


@pytest.fixture
def command(monkeypatch):
    """Put a command of one's own into the table."""

    def put(function):
        made = click.command("test")(pass_state(lambda state: function()))
        monkeypatch.setattr(module, "_test_command", made, raising=False)
        monkeypatch.setitem(COMMANDS, "test", ("pylon.cli.main:_test_command", "For a test."))

    return put


def raiser(error):
    def function():
        raise error

    return function


def test_money_refused_exits_4(command, capsys):
    command(raiser(InsufficientFunds(2_000, 1_000)))
    assert run(["test"]) == 4
    assert capsys.readouterr().err.splitlines() == [
        "error: needs 2.000 sat with fees, 1.000 sat are available",
        "hint: fund the wallet: pylon wallet fund",
    ]
    assert run(["--json", "test"]) == 4
    assert set(json.loads(capsys.readouterr().err)["error"]) == {"code", "message", "hint"}


def test_an_interrupt_exits_130(command):
    command(raiser(KeyboardInterrupt()))
    assert run(["test"]) == 130


def test_what_should_not_happen_is_one_line_and_a_place(command, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("PYLON_DEBUG", raising=False)
    command(raiser(ZeroDivisionError("oh")))
    assert run(["--home", str(tmp_path), "test"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines() == ["error: unexpected ZeroDivisionError: oh", "hint: PYLON_DEBUG=1 shows the traceback"]
    (tmp_path / "logs").mkdir()
    assert run(["--home", str(tmp_path), "test"]) == 1
    log = tmp_path / "logs" / "pylon.log"
    assert str(log) in capsys.readouterr().err
    assert "Traceback" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_the_traceback_is_shown_when_asked_for(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PYLON_DEBUG", "1")
    command(raiser(ZeroDivisionError("oh")))
    run(["--home", str(tmp_path), "test"])
    assert "Traceback" in capsys.readouterr().err


def test_warnings_of_the_home_are_told_once_on_stderr(tmp_path, capsys):
    (tmp_path / "config.toml").write_text('data_dir = "/elsewhere"\n')
    assert run(["--home", str(tmp_path), "--json", "status"]) == 3
    out, err = capsys.readouterr()
    assert err.count("data_dir") == 1
    assert json.loads(out)["daemon"]["running"] is False
