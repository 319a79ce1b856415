"""The tutorial, typed into a shell line by line by somebody who has just installed Pylon."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pylon.inference.models import models_directory
from pylon.paths import Home
from tests.docs.pages import ROOT, blocks
from tests.e2e.homes import command, environment

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("model")]

BOUND = 60.0


def typed():
    """What is to be typed, from the making of a home on: how Pylon got here is another matter."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    _, begin, rest = text.partition("## A home\n")
    assert begin
    return [line for block in blocks(rest) if block.language == "bash" for line in block.text.splitlines() if line]


def test_line_by_line(world, tmp_path):
    user = tmp_path / "user"
    user.mkdir()
    home = Home(user / ".openagents" / "pylon")
    world.detached.append(home)
    found = environment()
    more = {
        "HOME": str(user),
        "PATH": f"{Path(command()).parent}:{found['PATH']}",
        "PYLON_MODELS": str(models_directory()),
        # The ports are the machine's, and others may have them.
        "PYLON_RELAY_BIND": "127.0.0.1:0",
        "PYLON_API_BIND": "127.0.0.1:0",
    }
    said = []
    for line in typed():
        done = subprocess.run(
            ["bash", "-c", line],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND,
            check=False,
            env={**found, **more},
        )
        said.append((line.split("#")[0].strip(), done.stdout + done.stderr))
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    states = [words for line, words in said if line == "pylon agent list"]
    assert [next(state for state in ("spawning", "dormant", "active") if state in words) for words in states] == [
        "spawning",
        "dormant",
        "active",
    ]
    assert [words for line, words in said if "withdraw ada 5000" in line and "low_balance" not in words] == []
    assert [words for line, words in said if "withdraw ada 4700" in line and "hibernating" not in words] == []
    assert not home.pid.exists(), "it was told to stop"
