"""The child: found, of a version that will do, started with what it needs and nothing else, and ended."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest
import trio

from pylon.errors import ClaudeError
from pylon.testing.scripted_claude import install
from pylon.tunnel import claude as driver
from pylon.tunnel import stream
from pylon.tunnel.claude import Claude, Launch, arguments, environment, find_executable, version_of
from pylon.tunnel.policy import NEVER


def test_it_is_found_on_the_path_or_where_it_usually_is(tmp_path):
    executable = install(tmp_path)
    assert find_executable(None, {"PATH": str(tmp_path), "HOME": "/nowhere"}) == executable
    assert find_executable(executable, {}) == executable
    usual = tmp_path / "home" / ".local" / "bin"
    usual.mkdir(parents=True)
    assert (
        find_executable(None, {"PATH": "/nowhere", "HOME": str(tmp_path / "home")} | _with(usual)) == usual / "claude"
    )


def _with(directory: Path) -> dict[str, str]:
    install(directory)
    return {}


def test_where_it_is_not_the_remedy_is_said(tmp_path):
    (tmp_path / "plain").write_text("")
    for configured, environ in (
        (None, {"PATH": str(tmp_path), "HOME": str(tmp_path)}),
        (tmp_path / "missing", {}),
        (tmp_path, {}),
        (tmp_path / "plain", {}),
    ):
        with pytest.raises(ClaudeError) as error:
            find_executable(configured, environ)
        assert error.value.hint


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("2.0.77 (Claude Code)", "2.1.0 or newer is wanted"),
        ("GNU something", "is it Claude Code"),
        ("", "is it Claude Code"),
    ],
)
async def test_a_version_that_will_not_do(tmp_path, told, message):
    with pytest.raises(ClaudeError, match=message) as error:
        await version_of(install(tmp_path, version=told))
    assert error.value.hint


async def test_what_does_not_run_is_said(tmp_path):
    broken = tmp_path / "claude"
    broken.write_bytes(b"\x7fELF nothing")
    broken.chmod(0o755)
    with pytest.raises(ClaudeError, match="does not run"):
        await version_of(broken)
    launch = Launch(executable=broken, model="m", cwd=tmp_path, system_prompt="x")
    with pytest.raises(ClaudeError, match="does not start"):
        await Claude.start(launch)


async def test_the_version_of_one_that_will_do(tmp_path):
    assert await version_of(install(tmp_path)) == "2.1.240"


def test_what_the_child_is_not_told():
    ours = {"PYLON_HOME": "x", "pylon_x": "x", "NWC_SECRET": "x", "NOSTR_NSEC": "x", "OLD_MNEMONIC": "x"}
    theirs = {"PATH": "x", "HOME": "x", "ANTHROPIC_API_KEY": "x", "LANG": "x", "http_proxy": "x"}
    assert environment({**ours, **theirs, "CREDENTIALS_DIRECTORY": "x", "BREEZ_API_KEY": "x"}) == theirs
    assert environment({"CLAUDE_CODE_SIMPLE": "1"}) == {}  # with it, no hook is called, and nobody is asked


def test_its_arguments():
    closed = (Path("/home/me/.pylon"), Path("/home/a,b"))
    blocked = ("Bash", "a,b", "--x")
    launch = Launch(executable=Path("/c"), model="opus", cwd=Path("/"), max_cost_usd=5, blocked=blocked, closed=closed)
    found = arguments(launch, None)
    assert found[found.index("--max-budget-usd") + 1] == "0.000005"
    doors = "Read(//home/me/.pylon/**),Edit(//home/me/.pylon/**)"
    assert found[found.index("--disallowedTools") + 1] == f"{','.join(NEVER)},Bash,{doors}"
    assert found[found.index("--permission-prompt-tool") + 1] == "stdio"
    assert "--tools" not in found
    found_less = arguments(attrs.evolve(launch, tools=("Read", "--x", "Glob")), None)
    assert found_less[found_less.index("--tools") + 1] == "Read,Glob"
    assert "bypassPermissions" not in found
    assert "--dangerously-skip-permissions" not in found


@pytest.mark.parametrize("rules", [[], [{"when": "x", "do": []}]])
async def test_it_ends_with_its_stdin(tmp_path, rules):
    claude = await Claude.start(Launch(executable=install(tmp_path, rules), model="m", cwd=tmp_path))
    with trio.fail_after(10):
        await claude.aclose()
    with pytest.raises(ProcessLookupError):
        os.kill(claude.pid, 0)
    assert claude._process.returncode == 0


async def test_one_that_is_full_of_words_ends_too(tmp_path):
    rules = [{"when": "x", "do": [{"raw": "x" * 1_000_000}] * 3}]
    claude = await Claude.start(Launch(executable=install(tmp_path, rules), model="m", cwd=tmp_path))
    await claude.prompt("x")
    with trio.fail_after(10):
        await claude.aclose()
    assert claude._process.returncode == 0


async def test_a_child_that_dies_at_once_is_said(tmp_path):
    executable = tmp_path / "claude"
    executable.write_text("#!/bin/sh\nexit 1\n")
    executable.chmod(0o755)
    with pytest.raises(ClaudeError, match="ended"):
        await Claude.start(Launch(executable=executable, model="m", cwd=tmp_path))


async def test_a_child_that_says_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "STARTING", 0.3)
    monkeypatch.setattr(driver, "PATIENCE", 0.3)
    executable = tmp_path / "claude"
    executable.write_text("#!/bin/sh\nexec sleep 60\n")
    executable.chmod(0o755)
    with pytest.raises(ClaudeError, match="not ready within"):
        await Claude.start(Launch(executable=executable, model="m", cwd=tmp_path))


async def test_a_line_beyond_all_bounds_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "MAX_LINE_BYTES", 100_000)
    rules = [{"when": "x", "do": [{"raw": "x" * 1_000_000}]}]
    claude = await Claude.start(Launch(executable=install(tmp_path, rules), model="m", cwd=tmp_path))
    try:
        await claude.prompt("x")
        with pytest.raises(ClaudeError, match="a line of more than"):
            async for _ in claude.events():
                pass
    finally:
        await claude.aclose()
