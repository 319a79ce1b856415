"""A disk that is full: what sells stops, says why, and goes on by itself. On a small file system of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.e2e.homes import PRICE_MSATS, World, fetch, until

pytestmark = pytest.mark.e2e

SIZE_MIB = 96


def mount(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def small(tmp_path):
    """A directory on a tmpfs; skipped where we may not mount one."""
    place = tmp_path / "small"
    place.mkdir()
    if not sys.platform.startswith("linux") or shutil.which("mount") is None:
        pytest.skip("no mount here")
    done = mount("-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(place))
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def fill(place, leave):
    """Take all but ``leave`` MiB."""
    free = os.statvfs(place)
    size = free.f_bavail * free.f_frsize - (leave << 20)
    path = place / "ballast"
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, size))
    return path


def fill_up(place):
    """Take all."""
    path = place / "ballast"
    with path.open("ab", buffering=0) as file:
        for chunk in (1 << 20, 4_096, 1):
            try:
                while True:
                    file.write(b"x" * chunk)
            except OSError:
                pass
    return path


@pytest.fixture
def market(small, tmp_path):
    """A provider on the small disk, its customer and their relay elsewhere."""
    with World(tmp_path) as world:
        relay = world.relay()
        provider = world.node("small/provider").configure(relays=[relay], top=f"min_price_msats = {PRICE_MSATS}")
        (tmp_path / "small").mkdir(exist_ok=True)
        buyer = world.node("buyer").configure(relays=[relay])
        yield relay, provider, buyer


def buys(buyer, provider, text):
    return buyer.run("job", "submit", "-", "--wait", "--provider", provider.npub, stdin=text, timeout=60)


def closed(provider):
    return provider.ask("status")["provider"]["closed"]


def announced(relay, provider):
    return fetch(relay, kinds=[31990], authors=[provider.pubkey])


@pytest.mark.parametrize(
    "full", [pytest.param(False, marks=pytest.mark.deep, id="nearly full"), pytest.param(True, id="full")]
)
def test_no_paid_work_on_a_full_disk(market, small, full):
    relay, provider, buyer = market
    provider.start("provider", fake=True)
    buyer.start()
    buyer.fund()
    assert buys(buyer, provider, "while there is room").returncode == 0
    assert closed(provider) == ""
    until(lambda: announced(relay, provider), 10, "an announcement")

    ballast = fill_up(small) if full else fill(small, leave=16)
    why = until(lambda: closed(provider), 20, "it is closed")
    assert "MiB left" in why
    assert "CLOSED:   no paid work is taken" in provider.run("status").stdout
    if not full:
        until(lambda: not announced(relay, provider), 10, "the announcement is gone")
    assert buys(buyer, provider, "into a full disk").returncode != 0
    assert len(buyer.charges()) == 1, "nothing was paid for nothing"

    ballast.unlink()
    until(lambda: not closed(provider), 20, "it is open again")
    until(lambda: announced(relay, provider), 15, "it is announced again")
    assert buys(buyer, provider, "with room again").returncode == 0
    status = provider.ask("status")
    assert status["quarantined"] == []
    assert len(buyer.charges()) == 2
    records = provider.json_lines("logs", "--level", "warning")
    said = [record["event"] for record in records]
    assert any(event.startswith("paid work is taken again") for event in said)
    if not full:
        assert any(event.startswith("no paid work is taken: ") for event in said)
    provider.stop()
    buyer.stop()
    provider.check_books()
    buyer.check_books()


def test_a_home_that_cannot_be_written(small, tmp_path):
    """On a file system that is read-only: it says so and fails, and does not harm what is there."""
    with World(tmp_path) as world:
        node = world.node("small/home").configure(more='[relay]\nbind = "127.0.0.1:0"\n')
        node.start("host")
        node.stop()
        done = mount("-o", "remount,ro", str(small))
        assert done.returncode == 0, done.stderr
        for arguments in (("start", "-m", "host"), ("start", "-d", "-m", "host"), ("wallet", "balance")):
            refused = node.run(*arguments)
            assert refused.returncode == 1, arguments
            assert "Read-only file system" in refused.stderr
            assert "hint:" in refused.stderr
            assert "Traceback" not in refused.stderr
        assert node.run("status").returncode == 3
        assert mount("-o", "remount,rw", str(small)).returncode == 0
        node.start("host")
        node.stop()
        node.check_books()


def test_a_start_on_a_full_disk(small, tmp_path):
    """Whatever it can or cannot do then, it says why in words, and starts when there is room."""
    with World(tmp_path) as world:
        node = world.node("small/home").configure(more='[relay]\nbind = "127.0.0.1:0"\n')
        node.start("host")
        node.stop()
        ballast = fill_up(small)
        refused = node.run("start", "-d", "-m", "host")
        assert refused.returncode == 1
        assert "full" in refused.stderr or "No space left" in refused.stderr
        assert "Traceback" not in refused.stderr
        ballast.unlink()
        node.start("host")
        node.stop()
        node.check_books()
