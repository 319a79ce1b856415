"""Shell completion: click's own, by ``_PYLON_COMPLETE``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time

import click
import pytest

from pylon.cli.completion import complete_agents

PROBE = "from pylon.cli.main import main; import sys; sys.argv[0] = 'pylon'; main()"


def complete(shell: str, words: str = "", number: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **more, "_PYLON_COMPLETE": shell, "COMP_WORDS": words, "COMP_CWORD": str(number)}
    return subprocess.run([sys.executable, "-c", PROBE], env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("shell", "line"), [("bash", "complete -o nosort"), ("zsh", "#compdef pylon"), ("fish", "complete --no-files")]
)
def test_the_script_for_a_shell(shell, line):
    done = complete(f"{shell}_source")
    assert line in done.stdout
    assert "_PYLON_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("words", "number", "found"),
    [
        ("pylon jo", 1, ["plain,job"]),
        ("pylon job ", 2, [f"plain,{verb}" for verb in ("cancel", "list", "results", "status", "submit")]),
        ("pylon start --mode p", 3, ["plain,provider"]),
        ("pylon ag", 1, ["plain,agent"]),
        ("pylon agent re", 2, ["plain,resume", "plain,revoke", "plain,reveal"]),
        ("pylon agent spawn --autonomy su", 4, ["plain,supervised"]),
        ("pylon agent grant alice pay", 4, ["plain,pay_invoice"]),
        ("pylon agent goals ", 3, ["plain,add", "plain,list", "plain,set"]),
        ("pylon agent goals set alice 9a --status pau", 7, ["plain,paused"]),
        ("pylon nonsense x", 2, []),
    ],
)
def test_what_bash_is_told(words, number, found):
    done = complete("bash_complete", words, number)
    assert done.stdout.split() == found
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("shell", "line"), [("bash", "complete -o nosort"), ("zsh", "#compdef pylon"), ("fish", "complete --no-files")]
)
def test_the_command_prints_what_the_variable_prints(pylon, home, shell, line):
    code, out, err = pylon("completion", shell)
    assert (code, err) == (0, "")
    assert out.strip() == complete(f"{shell}_source").stdout.strip()
    assert line in out
    report = json.loads(pylon("completion", shell, "--json")[1])
    assert (report["shell"], report["script"].strip()) == (shell, out.strip())
    assert not home.root.exists()
    assert pylon("completion", "csh")[0] == 2


@pytest.fixture
def agents(home):
    """A home with agents, as far as completion looks."""
    home.root.mkdir()
    with contextlib.closing(sqlite3.connect(home.database)) as database:
        database.execute("CREATE TABLE agents (name TEXT)")
        database.executemany("INSERT INTO agents VALUES (?)", [("alice",), ("alfred",), ("bob",), (None,)])
        database.commit()
    return home


@pytest.mark.parametrize(
    ("words", "number", "found"),
    [
        ("pylon agent info al", 3, ["plain,alfred", "plain,alice"]),
        ("pylon agent info ", 3, ["plain,alfred", "plain,alice", "plain,bob"]),
        ("pylon agent fund b", 3, ["plain,bob"]),
        ("pylon agent info %", 3, []),
        ("pylon config get relay.b", 3, ["plain,relay.bind"]),
        ("pylon config set netw", 3, ["plain,network"]),
        ("pylon completion z", 2, ["plain,zsh"]),
    ],
)
def test_names_and_keys(agents, words, number, found):
    done = complete("bash_complete", words, number, PYLON_HOME=str(agents.root))
    assert done.stdout.split() == found
    assert done.stderr == ""


def test_the_home_that_is_named_counts(agents, tmp_path):
    words = f"pylon --home {agents.root} agent info al"
    done = complete("bash_complete", words, 5, PYLON_HOME=str(tmp_path / "other"))
    assert done.stdout.split() == ["plain,alfred", "plain,alice"]
    assert complete("bash_complete", "pylon agent info al", 3, PYLON_HOME=str(tmp_path / "other")).stdout.strip() == ""
    assert not (tmp_path / "other").exists()


def test_a_locked_or_damaged_database_keeps_nobody_waiting(agents):
    context = click.Context(click.Command("x"))
    context.params["home"] = str(agents.root)
    assert complete_agents(context, click.Argument(["name"]), "a") == ["alfred", "alice"]
    with contextlib.closing(sqlite3.connect(agents.database)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert complete_agents(context, click.Argument(["name"]), "a") == []
        assert time.monotonic() - began < 3
        holder.rollback()
    agents.database.write_bytes(b"no database" * 1_000)
    done = complete("bash_complete", "pylon agent info a", 3, PYLON_HOME=str(agents.root))
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash(agents, tmp_path):
    program = tmp_path / "bin" / "pylon"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{PROBE.replace('; ', chr(10))}\n")
    program.chmod(0o700)
    script = complete("bash_source").stdout
    line = (
        f"{script}\nCOMP_WORDS=(pylon agent info al); COMP_CWORD=3; _pylon_completion pylon; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", line],
        env={**os.environ, "PATH": path, "PYLON_HOME": str(agents.root)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["alfred", "alice"], done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_told_the_same(agents, shell):
    more = {"COMP_WORDS": "pylon agent info al", "COMP_CWORD": "al" if shell == "fish" else "3"}
    environ = {**os.environ, "_PYLON_COMPLETE": f"{shell}_complete", "PYLON_HOME": str(agents.root), **more}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environ, capture_output=True, text=True, check=False)
    assert "alfred" in done.stdout
    assert "bob" not in done.stdout
