"""Seed locks: two processes exclude each other, one shares, and a dead one holds nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.errors import ConfigError
from pylon.host import seedlock
from pylon.host.seedlock import FILE_NAME, SeedLocks, locks_path, offset_of

OTHER = """
import sys
from pylon.host import seedlock
from pylon.host.seedlock import SeedLocks
if sys.argv[2] == "files":
    seedlock._fcntl = None
locks = {}
print("ready", flush=True)
for line in sys.stdin:
    what, name, wallet = line.split()
    if what == "acquire":
        if name not in locks:
            locks[name] = SeedLocks(sys.argv[1])
        print(locks[name].acquire(wallet), flush=True)
    elif what == "release":
        locks[name].release(wallet)
        print("done", flush=True)
    else:
        locks.pop(name).close()
        print("done", flush=True)
"""


class Process:
    """Another process with locks of its own."""

    def __init__(self, path, kind="bytes") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, what, name, wallet="-"):
        self.process.stdin.write(f"{what} {name} {wallet}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def acquire(self, wallet, name="a") -> bool:
        return {"True": True, "False": False}[self.ask("acquire", name, wallet)]

    def release(self, wallet, name="a"):
        assert self.ask("release", name, wallet) == "done"

    def close_one(self, name):
        assert self.ask("close", name) == "done"

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def another(path, kind="bytes"):
    process = Process(path, kind)
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture(params=["bytes", "files"])
def kind(request, monkeypatch):
    """By ``fcntl``, and as where there is none."""
    if request.param == "files":
        monkeypatch.setattr(seedlock, "_fcntl", None)
    return request.param


@pytest.fixture
def path(tmp_path):
    yield tmp_path / "locks" / FILE_NAME
    assert not seedlock._open, "a test has left locks open"


# --- two processes ----------------------------------------------------------------------------------------------------


def test_two_processes_exclude_each_other(path, kind):
    with SeedLocks(path) as locks, another(path, kind) as other:
        assert locks.acquire("alice")
        assert not other.acquire("alice")
        assert other.acquire("bob")
        assert not locks.acquire("bob")
        locks.release("alice")
        assert other.acquire("alice")
        other.release("bob")
        assert locks.acquire("bob")


def test_kill_9_lets_everything_go(path, kind):
    with SeedLocks(path) as locks:
        with another(path, kind) as other:
            assert other.acquire("alice")
            assert not locks.acquire("alice")
        assert locks.acquire("alice")


def test_closing_lets_everything_go(path, kind):
    with another(path, kind) as other:
        with SeedLocks(path) as locks:
            assert locks.acquire("alice")
            assert locks.acquire("bob")
        assert other.acquire("alice")
        assert other.acquire("bob")


steps = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "acquire", "acquire", "release", "close"]),
        st.sampled_from(["here", "there"]),
        st.sampled_from("ab"),
        st.sampled_from(["w1", "w2", "w3"]),
    ),
    max_size=40,
)


@pytest.mark.parametrize("kind", ["bytes", "files"])
def test_any_steps_of_two_homes_in_each_of_two_processes(tmp_path, kind, monkeypatch):
    """A wallet is one process's at a time, and is free as soon as all homes of that process have let it go."""
    if kind == "files":
        monkeypatch.setattr(seedlock, "_fcntl", None)
    path = tmp_path / FILE_NAME

    with another(path, kind) as other:

        @settings(max_examples=60)
        @given(steps)
        def run(steps):
            here = {}
            holders = {}
            try:
                for what, side, name, wallet in steps:
                    held = holders.setdefault(wallet, set())
                    if what == "acquire":
                        free = all(where == side for where, _ in held)
                        if side == "there":
                            assert other.acquire(wallet, name) == free
                        else:
                            if name not in here:
                                here[name] = SeedLocks(path)
                            assert here[name].acquire(wallet) == free
                        if free:
                            held.add((side, name))
                    elif what == "release":
                        if side == "there":
                            if ("there", name) in held:
                                other.release(wallet, name)
                        elif name in here:
                            here[name].release(wallet)
                        held.discard((side, name))
                    else:
                        if side == "here" and name in here:
                            here.pop(name).close()
                        elif side == "there" and any(("there", name) in each for each in holders.values()):
                            other.close_one(name)
                        for each in holders.values():
                            each.discard((side, name))
            finally:
                for locks in here.values():
                    locks.close()
                for name in "ab":
                    other.acquire("-", name)
                    other.close_one(name)

        run()
    assert not seedlock._open


# --- one process ------------------------------------------------------------------------------------------------------


def test_two_homes_of_one_process_share_and_the_last_lets_go(path, kind):
    with another(path, kind) as other, SeedLocks(path) as one:
        two = SeedLocks(path)
        assert one.acquire("alice")
        assert two.acquire("alice")
        one.release("alice")
        assert not other.acquire("alice")
        two.close()
        assert other.acquire("alice")


def test_closing_one_home_costs_the_other_nothing(path, kind):
    """What POSIX locks would do if the file were opened twice."""
    with another(path, kind) as other, SeedLocks(path) as one:
        assert one.acquire("alice")
        SeedLocks(path).close()
        assert not other.acquire("alice")


def test_another_name_of_the_file_is_the_same_file(path):
    with another(path) as other, SeedLocks(path) as one:
        assert one.acquire("alice")
        linked = path.with_name("other.lock")
        os.link(path, linked)
        (path.parent.parent / "way").symlink_to(path.parent)
        for name in (linked, path.parent.parent / "way" / FILE_NAME, path.parent / ".." / "locks" / FILE_NAME):
            SeedLocks(name).close()
        assert not other.acquire("alice")


def test_asking_again_and_releasing_what_is_not_held_change_nothing(path, kind):
    with another(path, kind) as other, SeedLocks(path) as locks:
        locks.release("alice")
        assert locks.acquire("alice")
        assert locks.acquire("alice")
        locks.release("alice")
        assert other.acquire("alice")
        locks.release("alice")
        assert not locks.acquire("alice")


def test_what_is_closed_refuses(path):
    locks = SeedLocks(path)
    locks.close()
    locks.close()
    with pytest.raises(RuntimeError, match="closed"):
        locks.acquire("alice")


FORK = """
import os, sys
from pylon.host.seedlock import SeedLocks
locks = SeedLocks(sys.argv[1])
print(locks.acquire("alice"), flush=True)
child = os.fork()
if child == 0:
    try:
        locks.acquire("bob")
    except RuntimeError as error:
        print(error)
    locks.close()
    with SeedLocks(sys.argv[1]) as own:
        print(own.acquire("alice"), own.acquire("bob"), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("over", flush=True)
sys.stdin.read()
"""


def test_a_forked_child_holds_nothing_and_harms_nothing(path):
    with subprocess.Popen(
        [sys.executable, "-c", FORK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        said = [parent.stdout.readline().strip() for _ in range(4)]
        assert said == ["True", "these locks belong to the process that this one was forked from", "False True", "over"]
        with SeedLocks(path) as locks:
            assert not locks.acquire("alice")
            assert locks.acquire("bob")
        parent.stdin.close()


def test_threads_may_ask_too(path):
    with SeedLocks(path) as locks, another(path) as other:
        threads = [threading.Thread(target=locks.acquire, args=(f"w{n}",)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not any(other.acquire(f"w{n}") for n in range(20))


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_file_and_directory_are_closed_to_others(path, mask):
    before = os.umask(mask)
    try:
        SeedLocks(path).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o666)
    path.parent.chmod(0o755)
    SeedLocks(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_somebodys_own_directory_keeps_its_mode(path):
    path.parent.mkdir(mode=0o755)
    (path.parent / "thesis.txt").touch()
    SeedLocks(path).close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_when_the_file_is_deleted_what_is_held_is_taken_over_to_the_new_one(path):
    with SeedLocks(path) as locks, SeedLocks(path) as second:
        assert locks.acquire("alice")
        assert second.acquire("carol")
        path.unlink()
        path.parent.rmdir()
        assert locks.acquire("bob")
        with another(path) as other:
            assert [other.acquire(name) for name in ("alice", "bob", "carol")] == [False] * 3
            locks.release("alice")
            assert other.acquire("alice")


def test_a_deleted_file_that_another_process_has_made_anew_is_shared_again(path):
    with SeedLocks(path) as locks:
        assert locks.acquire("alice")
        path.unlink()
        with another(path) as other:
            assert other.acquire("bob")
            assert not locks.acquire("bob")
            assert not other.acquire("alice")


@pytest.mark.parametrize("make", ["directory", "link", "pipe", "parent"])
def test_what_is_no_file_is_refused(path, make):
    if make == "parent":
        path.parent.touch()
    else:
        path.parent.mkdir()
    if make == "directory":
        path.mkdir()
    elif make == "link":
        path.symlink_to(path.parent / "elsewhere")
    elif make == "pipe":
        os.mkfifo(path)
    with pytest.raises(ConfigError) as caught:
        SeedLocks(path)
    assert "PYLON_LOCKS" in caught.value.hint
    assert str(path) in caught.value.message


def test_another_users_file_is_refused(path, monkeypatch):
    SeedLocks(path).close()
    monkeypatch.setattr(os, "geteuid", lambda: 123_456)
    with pytest.raises(ConfigError, match="this user"):
        SeedLocks(path)


def test_a_system_that_cannot_lock_says_so(path, monkeypatch):
    def lockf(*_):
        raise OSError(37, "No locks available")

    with SeedLocks(path) as locks:
        monkeypatch.setattr(seedlock._fcntl, "lockf", lockf)
        with pytest.raises(ConfigError, match="No locks available"):
            locks.acquire("alice")
        monkeypatch.undo()
        assert locks.acquire("alice")


def test_where_it_is():
    home = Path("~").expanduser()
    assert locks_path({}, "linux") == home / ".cache/pylon/locks/seeds.lock"
    assert locks_path({}, "darwin") == home / "Library/Caches/pylon/locks/seeds.lock"
    assert locks_path({"XDG_CACHE_HOME": "/c", "PYLON_MODELS": "/m"}, "linux") == Path("/c/pylon/locks/seeds.lock")
    assert locks_path({"XDG_CACHE_HOME": "/c", "PYLON_LOCKS": "~/l"}, "linux") == home / "l/seeds.lock"


def test_the_default_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("PYLON_LOCKS", str(tmp_path / "l"))
    with SeedLocks() as locks, another(tmp_path / "l" / FILE_NAME) as other:
        assert locks.acquire("alice")
        assert not other.acquire("alice")


# --- many -------------------------------------------------------------------------------------------------------------


@given(st.text())
def test_an_offset_fits_and_is_always_the_same(wallet):
    assert 0 <= offset_of(wallet) < 1 << 62
    assert offset_of(wallet) == offset_of(wallet)


def test_an_offset_stays_what_it_is():
    """Two versions of Pylon meet in the file."""
    assert offset_of("02" * 33) == 3_006_496_380_917_480_616


def test_ten_thousand_wallets_need_one_descriptor(path):
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    began = time.perf_counter()
    with SeedLocks(path) as locks:
        assert all(locks.acquire(f"wallet-{n}") for n in range(10_000))
        if before is not None:
            assert len(os.listdir("/proc/self/fd")) == before + 1
        with another(path) as other:
            assert not other.acquire("wallet-0")
            assert not other.acquire("wallet-9999")
            assert other.acquire("wallet-10000")
    assert path.stat().st_size == 0
    assert time.perf_counter() - began < 60
