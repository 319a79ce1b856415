"""How an installation runs itself again, frozen or not."""

from __future__ import annotations

import ast
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pylon
from pylon import ourselves
from pylon.inference import llamacpp

PACKAGE = Path(pylon.__file__).parent


@pytest.fixture
def program(monkeypatch, tmp_path):
    """As if we were frozen."""
    executable = tmp_path / "program" / "pylon"
    executable.parent.mkdir()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(executable))
    monkeypatch.setattr(sys, "_MEIPASS", str(executable.parent / "_internal"), raising=False)
    return executable


def test_a_package_is_run_by_its_interpreter():
    assert ourselves.command() == [sys.executable, "-P", "-m", "pylon"]
    assert ourselves.module("pylon.x") == [sys.executable, "-P", "-m", "pylon.x"]
    assert (sys.executable, "-P", "-m", "pylon.inference.engine") == llamacpp.ENGINE
    assert ourselves.bundled("anything") is None
    done = subprocess.run([*ourselves.command(), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pylon {pylon.__version__}\n"


def test_a_program_is_run_by_itself(program):
    assert ourselves.command() == [str(program)]
    assert ourselves.module("pylon.x") == [str(program), "--run-module", "pylon.x"]


def test_what_is_noted_down_is_the_single_file_and_not_what_it_has_unpacked(program, tmp_path):
    assert ourselves.lasting_command({}) == [str(program)]
    file = tmp_path / "pylon-file"
    assert ourselves.lasting_command({"_PYLON_FILE": str(file)}) == [str(program)], "it is gone"
    file.touch()
    assert ourselves.lasting_command({"_PYLON_FILE": str(file)}) == [str(file)]


def test_a_package_notes_down_its_interpreter_whatever_the_environment_says(tmp_path):
    (tmp_path / "pylon-file").touch()
    assert ourselves.lasting_command({"_PYLON_FILE": str(tmp_path / "pylon-file")}) == ourselves.command()


def test_what_travels_with_the_program(program):
    assert ourselves.bundled("models", "x.gguf") is None
    place = program.parent / "_internal" / "models"
    place.mkdir(parents=True)
    (place / "x.gguf").touch()
    assert ourselves.bundled("models", "x.gguf") == place / "x.gguf"


def test_others_get_their_own_libraries(program):
    ours = {"A": "1", "LD_LIBRARY_PATH": "/ours", "LD_LIBRARY_PATH_ORIG": "/theirs", "_PYI_X": "y", "_PYLON_FILE": "z"}
    assert ourselves.environment_of_others(ours) == {"A": "1", "LD_LIBRARY_PATH": "/theirs"}
    assert ourselves.environment_of_others({"A": "1", "LD_LIBRARY_PATH": "/ours"}) == {"A": "1"}


def test_a_package_changes_nothing_for_others():
    told = {"A": "1", "LD_LIBRARY_PATH": "/theirs"}
    assert ourselves.environment_of_others(told) == told


RUN = """
import os, sys
sys.frozen = True
from pylon import ourselves
print(ourselves.begin(sys.argv[1:]), sys.argv[1:])
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=dict(os.environ),
    )  # fmt: skip


def test_the_program_can_be_one_of_its_modules():
    # The engine ends at once where nobody tells it what to do.
    assert run("--run-module", "pylon.inference.engine").stdout == "True []\n"
    done = run("--run-module", "pylon.relays.server", "--help")
    assert "--port" in done.stdout, done


@pytest.mark.parametrize("arguments", [(), ("status",), ("--run-module",), ("start", "--run-module", "pylon.x")])
def test_anything_else_is_the_command(arguments):
    assert run(*arguments).stdout == f"False {list(arguments)}\n"


@pytest.mark.parametrize("name", ["http.server", "pylonx", "os"])
def test_it_is_no_interpreter_for_others(name):
    done = run("--run-module", name)
    assert done.returncode == 1
    assert "no module of ours" in done.stderr


def test_nobody_else_builds_a_command_line_of_ours():
    """Where ``sys.executable`` stands, a frozen program would run itself: only this module and pip's user may.

    ``pylon.testing`` is no part of such a program.
    """
    users = set()
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "testing"):
            continue
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "executable" in text else ():
            if isinstance(node, ast.Attribute) and node.attr == "executable" and ast.unparse(node) == "sys.executable":
                users.add(path.relative_to(PACKAGE).as_posix())
    assert users == {"ourselves.py", "inference/models.py"}


@pytest.mark.parametrize(
    ("system", "given", "told"),
    [(False, None, "ours"), (True, None, None), (False, "/theirs.pem", "/theirs.pem")],
    ids=["none here", "the system's", "the user's"],
)
def test_whom_to_trust_where_the_system_does_not_say(program, monkeypatch, tmp_path, system, given, told):
    monkeypatch.setattr(ourselves, "_BUNDLES", (str(tmp_path / "system.pem"),))
    if system:
        (tmp_path / "system.pem").touch()
    bundle = program.parent / "_internal" / "certifi" / "cacert.pem"
    bundle.parent.mkdir(parents=True)
    bundle.touch()
    monkeypatch.setenv("SSL_CERT_FILE", given or "")
    if given is None:
        monkeypatch.delenv("SSL_CERT_FILE")
    assert ourselves.begin([]) is False
    assert os.environ.get("SSL_CERT_FILE") == (str(bundle) if told == "ours" else told)


def test_what_was_unpacked_is_marked_as_used(program, monkeypatch):
    used = program.parent / ".used"
    used.touch()
    monkeypatch.setattr(ourselves, "_lock", None)
    assert ourselves.begin(["status"]) is False
    try:
        with used.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(ourselves._lock)
