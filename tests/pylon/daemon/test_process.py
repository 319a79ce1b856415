from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from pylon.daemon.holder import find
from pylon.daemon.holder import holder as holder_of
from pylon.daemon.process import hold_home, read_pid
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
    assert not home.pid.exists()
    assert holder_of(home.pid) is None


def test_a_second_one_is_refused_and_told_by_whom(home):
    holder = python(HOLDER, home)
    with pytest.raises(AlreadyRunning) as caught, hold_home(home, pid_file=True):
        pass
    assert str(holder.pid) in caught.value.message
    assert caught.value.exit_code == 1
    assert holder_of(home.pid) == holder.pid
    assert read_pid(home) == holder.pid, "the loser leaves the pid file alone"
    assert finish(holder) == 0
    with hold_home(home, pid_file=True):
        pass


def test_even_within_one_process(home):
    with hold_home(home), pytest.raises(AlreadyRunning, match="another pylon command"), hold_home(home):
        pass


def test_a_killed_one_leaves_nothing_that_matters(home):
    holder = python(HOLDER, home)
    holder.kill()
    finish(holder)
    assert read_pid(home) == holder.pid
    assert holder_of(home.pid) is None
    with hold_home(home, pid_file=True):
        assert read_pid(home) == os.getpid()


def test_a_reused_pid_is_not_believed(home):
    home.prepare()
    home.pid.write_text(f"{os.getppid()}\n")
    assert holder_of(home.pid) is None
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


# --- the kernel's word ------------------------------------------------------------------------------------------------


def test_a_pid_file_that_nobody_holds_names_nobody(home):
    """Neither a dead process nor a stranger who has its number now, nor one that locks another file of that name."""
    home.prepare()
    assert find(home.pid) is None
    for pid in (os.getpid(), os.getppid(), 1, 2**22 - 1):
        home.pid.write_text(f"{pid}\n")
        assert find(home.pid) is None
    holder_process = python(HOLDER, home)
    home.pid.rename(home.data / "away")
    home.pid.write_text(f"{holder_process.pid}\n")
    assert find(home.pid) is None
    assert find(home.data / "away").pid == holder_process.pid
    finish(holder_process)


@pytest.mark.parametrize("kind", ["directory", "fifo", "link to nothing"])
def test_what_is_no_pid_file(home, kind):
    home.prepare()
    if kind == "directory":
        home.pid.mkdir()
    elif kind == "fifo":
        os.mkfifo(home.pid)
    else:
        home.pid.symlink_to("nowhere")
    assert find(home.pid) is None


@pytest.mark.parametrize("pidfd", [True, False])
def test_signals_reach_the_holder_and_nobody_else(home, pidfd, monkeypatch):
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    process = python(HOLDER, home)
    with find(home.pid) as running:
        assert running.pid == process.pid
        assert not running.wait(0.05)
        assert running.signal(signal.SIGSTOP)
        assert running.signal(signal.SIGCONT)
        assert running.signal(signal.SIGTERM)
        assert running.wait(5)
        assert process.wait(5) == -signal.SIGTERM
        assert running.signal(signal.SIGKILL) is False
        assert running.wait(0)
    assert home.pid.exists()
    finish(process)


def test_the_lock_goes_with_the_holder_however_it_ends(home):
    for ending in (signal.SIGKILL, None):
        process = python(HOLDER, home)
        assert holder_of(home.pid) == process.pid
        if ending is not None:
            process.send_signal(ending)
        finish(process)
        assert holder_of(home.pid) is None


# --- the end ----------------------------------------------------------------------------------------------------------

LIVER = """
from pylon.daemon.process import Life

async def hangup():
    print("hangup", flush=True)
    await trio.sleep_forever()

async def main():
    life = Life()
    async with trio.open_nursery() as nursery:
        await nursery.start(life.watch, hangup)
        with life.scope as scope:
            print("ready", flush=True)
            if READY:
                life.ready()
                await life.over()
                print("over", flush=True)
                if HANG:
                    time.sleep(30)
                await trio.sleep(0.01)
                print("farewell", flush=True)
            else:
                await trio.sleep_forever()
        print("cancelled" if scope.cancelled_caught else "ended", flush=True)
        nursery.cancel_scope.cancel()

with hold_home(home, pid_file=True):
    trio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ready", [True, False])
def test_a_signal_brings_the_end_about(home, number, ready):
    process = python(f"READY, HANG = {ready}, False\n" + LIVER, home)
    process.send_signal(number)
    assert process.stdout.read().split() == (["over", "farewell", "ended"] if ready else ["cancelled"])
    assert finish(process) == 0
    assert not home.pid.exists()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_one_does_not_wait_for_what_hangs(home, second):
    process = python("READY, HANG = True, True\n" + LIVER, home)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "over\n"
    process.send_signal(second)
    assert finish(process) == -second


def test_hanging_up_is_no_end_without_a_terminal(home):
    process = python("READY, HANG = True, False\n" + LIVER, home)
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "hangup\n"
    process.terminate()
    assert process.stdout.readline() == "over\n"
    assert finish(process) == 0


def test_the_end_of_its_terminal_ends_it(home):
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, time, trio\nfrom pylon.paths import Home\n"
         "from pylon.daemon.process import *\nhome = Home(sys.argv[1])\nREADY, HANG = True, False\n"
         + LIVER, str(home.root)],
        stdin=follower, stderr=follower, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "hangup\n", "the terminal is there"
    os.close(leader)
    process.send_signal(signal.SIGHUP)
    assert process.stdout.read().split() == ["over", "farewell", "ended"]
    with process:
        assert process.wait(10) == 0


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
