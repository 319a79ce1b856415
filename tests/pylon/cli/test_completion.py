"""Shell completion: click's own, by ``_PYLON_COMPLETE``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROBE = "from pylon.cli.main import main; import sys; sys.argv[0] = 'pylon'; main()"


def complete(shell: str, words: str = "", number: int = 0) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "_PYLON_COMPLETE": shell, "COMP_WORDS": words, "COMP_CWORD": str(number)}
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
