"""Nothing that was started stays behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from tests.lightning import install as installing
from tests.lightning.install import CannotInstall
from tests.lightning.processes import ROOT, Process, until

STARTS_A_SLEEPER = """
import pathlib, sys, time
from tests.lightning.processes import Process
print(Process(["sleep", "600"], pathlib.Path(sys.argv[1])).process.pid, flush=True)
time.sleep(600)
"""


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_leaving_the_block_ends_a_process_that_does_not_listen(tmp_path):
    with Process(["sleep", "600"], tmp_path / "out") as started:
        started.must_live()
    assert started.process.returncode == -signal.SIGTERM


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="the kernel cannot be asked")
def test_what_a_killed_test_run_had_started_ends_too(tmp_path):
    command = [sys.executable, "-c", STARTS_A_SLEEPER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as starter:
        pid = int(starter.stdout.readline())
        # By then it has asked the kernel to be ended with its parent.
        until(lambda: psutil.Process(pid).name() == "sleep", 10, "the sleeper sleeps")
        starter.kill()
    until(lambda: gone(pid), 10, "the sleeper ends")


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_where_there_are_no_packages_it_says_so(tmp_path, monkeypatch, missing):
    monkeypatch.setenv("PYLON_ELECTRUM", str(tmp_path / "electrum"))
    which = shutil.which
    monkeypatch.setattr(installing.shutil, "which", lambda name: None if name == missing else which(name))
    with pytest.raises(CannotInstall, match=f"there is no {missing} here"):
        installing.install()
    assert not (tmp_path / "electrum" / installing.STAMP).exists()
