"""What is not there at the start, and comes later; a clock that jumps an hour, both ways; what is on the disk."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import time

import pytest

from tests.e2e import traced_command
from tests.e2e.homes import PORTS_OF_ITS_OWN, PRICE_MSATS, READY_WITHIN, Daemon, command, free_port, until
from tests.e2e.http_backend import HttpBackend
from tests.e2e.scripted_relay import ScriptedRelay
from tests.e2e.scripted_stage import Play

pytestmark = pytest.mark.e2e

HOUR = 3_600.0


def test_relay_and_backend_are_gone_at_the_start_and_come_back(world):
    """Both daemons start without them and say what is missing; nothing is sold before there is what sells."""
    relay_port, backend_port = free_port(), free_port()
    url = f"ws://127.0.0.1:{relay_port}"
    table = HttpBackend.table.fget(_At(backend_port))
    provider = world.node("provider").configure(
        relays=[url], top=f"min_price_msats = {PRICE_MSATS}\n", more=f'[api]\nbind = "127.0.0.1:0"\n{table}'
    )
    buyer = world.node("buyer").configure(relays=[url])
    no_models = {"PYLON_MODELS": str(world.directory / "no models")}
    provider.start("provider", wait=False, more=no_models)
    buyer.start()
    provider.daemon.ready()
    buyer.fund()
    for node in (provider, buyer):
        (relay,) = node.ask("status")["relays"]
        assert relay["state"] != "connected"
    assert not any(backend["ok"] for backend in provider.ask("status")["backends"])
    findings = {row["check"]: row for row in json.loads(provider.run("doctor", "--json").stdout)["checks"]}
    assert findings["relays"]["status"] == "fail"
    assert url in findings["relays"]["detail"]
    relay = ScriptedRelay(relay_port)
    try:
        until(lambda: buyer.ask("status")["relays"][0]["state"] == "connected", 30, "the relay is found")
        until(lambda: provider.ask("status")["relays"][0]["state"] == "connected", 30, "by both")
        assert [event for event in list(relay.events.values()) if event.kind == 31990] == []
        with HttpBackend(backend_port) as backend:
            thread = threading.Thread(target=backend.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                until(
                    lambda: any(each["ok"] for each in provider.ask("status")["backends"]), 60, "the backend is found"
                )
                done = buyer.run(
                    "job", "submit", "-", "--wait", "--provider", provider.npub, stdin="in time", timeout=60
                )
                assert done.returncode == 0, done.stderr
            finally:
                backend.shutdown()
                thread.join()
        assert len(buyer.charges()) == 1
        for node in (provider, buyer):
            node.stop()
            node.check_books()
    finally:
        relay.close()


class _At:
    """Where a backend will be."""

    def __init__(self, port):
        self.server_port = port


def failed(play):
    return [tick for tick in play.ticks() if tick["status"] == "error" and tick["reason"]]


@pytest.mark.deep
def test_the_clock_jumps_an_hour_both_ways(world):
    """With both homes of a machine, as its clock does: ahead at the start, as without a battery, then right, then off
    either way. What is paid is answered, nothing storms, and when it is right again all is well."""
    relay = ScriptedRelay()
    off = world.directory / "clock"
    off.write_text(str(HOUR))
    try:
        play = Play.on(world, relay)
        play.open("--clock", str(off))
        assert relay.refused, "everything is from the future"
        off.write_text("0")
        until(lambda: announcements(relay), 30, "it is announced")
        play.hears("put right")
        ticks = len(play.ticks())
        for jump in (HOUR, -HOUR):
            off.write_text(str(jump))
            during = play.mention(f"while it is off by {jump}")
            time.sleep(3.0)
            off.write_text("0")
            play.hears(f"after it was off by {jump}", within=40)
            # It was thought about then, and nobody could be reached; or is heard when its date is no longer strange.
            until(lambda event=during: play.answered(event) or failed(play), 60, "what became of what was said then")
            play.check()
        assert len(play.ticks()) - ticks <= 8, "two mentions each way, a heartbeat each, and one that fails"
        assert [event.created_at <= time.time() + 900 for event in announcements(relay)] == [True]
        play.host.stop()
        play.provider.stop()
        play.host.check_books()
        play.provider.check_books()
    finally:
        relay.close()


def announcements(relay):
    return [event for event in list(relay.events.values()) if event.kind == 31990]


LOG = "pylon.db-wal"
_LOG_IN_HEX = "".join(f"\\x{byte:02x}" for byte in LOG.encode()) + ">"
_ENDS_A_TRANSACTION = re.compile(r'pwrite64\(\d+<[^>]*>, "(?:\\x..){4}(?!(?:\\x00){4})[^"]*"\.*, 24, ')


def _what(call):
    """A line of strace, as ``traced_command`` has it."""
    if not call.startswith("pwrite64"):
        return "sync"
    return "commit" if _ENDS_A_TRANSACTION.match(call) else "write"


def by_sqlite(trace):
    return [sys.executable, traced_command.__file__, str(trace)]


def by_the_kernel(trace):
    """One floor below: the calls of the process, of which SQLite may have been built to leave some."""
    wanted = "trace=pwrite64,fdatasync,fsync"
    return ["strace", "-f", "-qq", "-y", "-xx", "-e", wanted, "-o", str(trace), command()]


@pytest.mark.parametrize(
    "tracer",
    [
        by_sqlite,
        pytest.param(by_the_kernel, marks=pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")),
    ],
)
def test_what_is_written_down_is_on_the_disk_before_anybody_acts_on_it(world, tracer):
    """Power may fail at any time: the log is synced after each commit, before anything else is written to it.

    The last commit of all says nothing: who closes a database syncs its log.
    """
    node = world.node("home").configure(more=PORTS_OF_ITS_OWN)
    trace = world.directory / "trace"
    daemon = Daemon([*tracer(trace), "--home", str(node.root), "start", "-m", "host"], world.directory / "traced.out")
    world.daemons.append(daemon)
    until(lambda: daemon.process.poll() is not None or "\nready\n" in daemon.said(), READY_WITHIN, "it is ready")
    if "ptrace" in daemon.said().lower():
        pytest.skip("strace may not trace here")
    node.ask("wallet.freeze")
    node.ask("wallet.thaw")
    node.json("stop")
    assert daemon.process.wait(20) == 0, daemon.said()
    lines = trace.read_text().splitlines()
    if tracer is by_sqlite:
        calls = [line.split()[0] for line in lines if line.endswith(f" {LOG}")]
    else:
        calls = [_what(line.split(None, 1)[1]) for line in lines if _LOG_IN_HEX in line]
    assert traced_command.commits_synced(calls) >= 3
