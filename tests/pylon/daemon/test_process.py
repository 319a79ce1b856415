from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from pylon.daemon.process import hold_home, read_pid, running_pid
from pylon.errors import AlreadyRunning
from pylon.paths import Home


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def python(code: str, home: Home) -> subprocess.Popen:
    """A process of its own; it says ``ready`` when it is."""
    header = "import os, sys, time, trio\nfrom pylon.paths import Home\nfrom pylon.daemon.process import *\n"
    process = subprocess.Popen(
        [sys.executable, "-c", header + "home = Home(sys.argv[1])\n" + textwrap.dedent(code), str(home.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen) -> int:
    with process:
        process.stdin.close()
        return process.wait(10)


HOLDER = """
with hold_home(home, pid_file=True):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_the_pid_file_comes_and_goes(home):
    with hold_home(home, pid_file=True):
        assert home.pid.read_text() == f"{os.getpid()}\n"
        assert stat.S_IMODE(home.pid.stat().st_mode) == 0o600
        assert running_pid(home) == os.getpid()
    assert not home.pid.exists()
    assert running_pid(home) is None


def test_a_second_one_is_refused_and_told_by_whom(home):
    holder = python(HOLDER, home)
    with pytest.raises(AlreadyRunning) as caught, hold_home(home, pid_file=True):
        pass
    assert str(holder.pid) in caught.value.message
    assert caught.value.exit_code == 1
    assert running_pid(home) == holder.pid
    assert read_pid(home) == holder.pid, "the loser leaves the pid file alone"
    assert finish(holder) == 0
    with hold_home(home, pid_file=True):
        pass


def test_even_within_one_process(home):
    with hold_home(home), pytest.raises(AlreadyRunning, match="no pid file"), hold_home(home):
        pass


def test_a_killed_one_leaves_nothing_that_matters(home):
    holder = python(HOLDER, home)
    holder.kill()
    finish(holder)
    assert read_pid(home) == holder.pid
    assert running_pid(home) is None
    with hold_home(home, pid_file=True):
        assert read_pid(home) == os.getpid()


def test_a_reused_pid_is_not_believed(home):
    home.prepare()
    home.pid.write_text(f"{os.getppid()}\n")
    assert running_pid(home) is None
    with hold_home(home, pid_file=True):
        assert read_pid(home) == os.getpid()


def test_a_pid_file_of_another_is_not_removed(home):
    with hold_home(home, pid_file=True):
        home.pid.write_text("1\n")
    assert home.pid.read_text() == "1\n"


@pytest.mark.parametrize("content", ["", "\n", "zero", "-1", "0", "1 2", "9" * 30, "²", "\udcff"])
def test_nonsense_in_the_pid_file(home, content):
    home.prepare()
    home.pid.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_pid(home) is None
    with hold_home(home), pytest.raises(AlreadyRunning), hold_home(home):
        pass


WAITER = """
async def main():
    async with trio.open_nursery() as nursery:
        @nursery.start_soon
        async def say():
            await trio.testing.wait_all_tasks_blocked()
            print("ready", flush=True)
        print((await until_signal()).name, flush=True)
        if HANG:
            time.sleep(30)

import trio.testing
with hold_home(home, pid_file=True):
    trio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(home, number):
    process = python("HANG = False\n" + WAITER, home)
    process.send_signal(number)
    assert process.stdout.readline() == number.name + "\n"
    assert finish(process) == 0
    assert not home.pid.exists()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(home, first, second):
    process = python("HANG = True\n" + WAITER, home)
    process.send_signal(first)
    assert process.stdout.readline() == first.name + "\n"
    process.send_signal(second)
    assert finish(process) == -second
