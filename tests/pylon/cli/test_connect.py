"""``pylon connect``: what it refuses and what it says of it, and the record of its sessions."""

from __future__ import annotations

import io
import json
import sys

import pytest
import trio

from pylon.cli.connect_run import secret_places
from pylon.clock import SystemClock
from pylon.config import ClaudeConfig, Config
from pylon.daemon.backup import note
from pylon.identity import unlock
from pylon.paths import Home
from pylon.store.database import open_store
from pylon.testing.scripted_claude import install
from pylon.tunnel import record
from pylon.tunnel.policy import Decision, rules_of

URL = "wss://tunnel.example/?token=topsecret"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("PYLON_TUNNEL_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path))


def error_of(pylon, *arguments, code=1):
    found, out, err = pylon("connect", *arguments)
    assert (found, out) == (code, "")
    assert "topsecret" not in err
    assert "hint: " in err
    return err


def test_what_is_missing_is_named_with_its_remedy(simnet, tmp_path, home):
    assert "pylon connect serve" in error_of(simnet, code=2)
    assert "begins with wss://" in error_of(simnet, "--tunnel-url", "https://x/?token=topsecret", code=2)
    assert "not encrypted" in error_of(simnet, "--tunnel-url", "ws://tunnel.example/?token=topsecret", code=2)
    assert "no claude on the PATH" in error_of(simnet, "--tunnel-url", URL)
    missing = str(tmp_path / "claude")
    assert missing in error_of(simnet, "--tunnel-url", URL, "--executable-path", missing)
    assert "there is no directory" in error_of(simnet, "--tunnel-url", URL, "--cwd", str(tmp_path / "missing"))
    assert "is the home of Pylon" in error_of(simnet, "--tunnel-url", URL, "--cwd", str(home.root))
    assert "no configuration" in error_of(simnet, "--tunnel-url", URL, "-c", str(tmp_path / "missing"))


def test_a_tunnel_has_to_be_allowed(simnet, tmp_path):
    config = tmp_path / "other.toml"
    config.write_text("[claude]\nenabled = false\n")
    assert "enabled = false" in error_of(simnet, "--tunnel-url", URL, "-c", str(config))


def test_without_an_identity_nothing_can_be_sealed(pylon, tmp_path):
    executable = install(tmp_path)
    assert "pylon init" in error_of(pylon, "--tunnel-url", URL, "--executable-path", str(executable))


def test_the_address_comes_from_stdin_or_the_environment_too(simnet, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ws://one.example/?token=topsecret\nmore\n"))
    assert "ws://one.example is not encrypted" in error_of(simnet, "--tunnel-url", "-", code=2)
    monkeypatch.setenv("PYLON_TUNNEL_URL", "ws://two.example/?token=topsecret")
    assert "ws://two.example is not encrypted" in error_of(simnet, code=2)


@pytest.mark.parametrize("cost", ["-1", "0.25", "$", "$1.2345678", "five", "1e6", "9" * 14, "$9999999"])
def test_what_is_no_cost(simnet, cost):
    code, _, err = simnet("connect", "--tunnel-url", URL, "--max-cost-usd", cost)
    assert code == 2
    assert "$0.25" in err or "No such option" in err


def test_a_cost_beyond_all_bounds_names_its_option(simnet):
    assert "--max-cost-usd" in error_of(simnet, "--tunnel-url", URL, "--max-cost-usd", "9" * 13)


@pytest.mark.parametrize(("text", "micro"), [("250000", 250_000), ("$0.25", 250_000), ("$3", 3_000_000), ("0", 0)])
def test_costs_are_millionths_or_dollars(text, micro):
    from pylon.cli.connect import MicroUsd

    assert MicroUsd().convert(text, None, None) == micro


def test_no_session_reaches_the_newest_backup_wherever_it_is(tmp_path):
    """Without a passphrase of the home it is not sealed: whoever reads it has the phrase."""
    home, work = Home(tmp_path / "other home"), tmp_path / "other work"
    home.data.mkdir(parents=True)
    work.mkdir()
    (work / "pylon.backup").write_text("abandon")
    note(home, work / "pylon.backup", 1.0)
    rules = rules_of(ClaudeConfig(), default_cwd=work, closed=secret_places(home, Config(), {}))
    assert rules.decide("Read", {"file_path": "pylon.backup"}).decision is Decision.DENY
    assert rules.decide("Grep", {"pattern": "abandon"}).decision is Decision.DENY
    assert rules.decide("Read", {"file_path": "other"}).decision is Decision.ALLOW


def test_one_tunnel_a_home(simnet, tmp_path, home):
    import filelock

    executable = install(tmp_path)
    home.prepare()
    with filelock.FileLock(home.data / "tunnel.lock"):
        err = error_of(simnet, "--tunnel-url", URL, "--executable-path", str(executable))
    assert "another pylon connect" in err


async def _fill(home) -> None:
    clock = SystemClock()
    async with open_store(home.database, vault=unlock(home).vault, clock=clock, durable=False) as store:
        rules = rules_of(ClaudeConfig(max_cost_usd=5), default_cwd=home.root.parent)
        died = await record.open_record(store, name="page-1", server="wss://x", rules=rules)
        await died.act("prompt", text="never answered")
        await record.tidy(store)
        done = await record.open_record(store, name="page-2", server="wss://x", rules=rules)
        await done.act("prompt", text="do \x1b[31mit")
        await done.act("approved", tool="Bash", text='{"command":"ls"}')
        await done.act("refused", tool="Write", text="{}")
        await done.turn(12_300, known=True, outcome="done")
        await done.end("stopped")
        await done.end("again")
        # What was written last is beside the database, in its journal.
        files = list(home.database.parent.glob(f"{home.database.name}*"))
        on_disk = b"".join(path.read_bytes() for path in files)
        assert b"page-1" in on_disk
        assert b"never answered" not in on_disk


def test_the_record_tells_what_was_asked_allowed_denied_and_its_cost(simnet, home):
    assert simnet("connect", "sessions")[1] == "no session was ever begun\n"
    trio.run(_fill, home)
    _, out, _ = simnet("connect", "sessions", "--json")
    done, died = json.loads(out)["sessions"]
    assert (done["cost_usd"], done["unsettled"], done["turns"], done["reason"]) == (12_300, False, 1, "stopped")
    assert done["counts"] == {"prompt": 1, "approved": 1, "refused": 1, "turn": 1}
    assert (died["unsettled"], died["reason"], died["ended_at"] is None) == (True, "pylon ended without a word", False)
    _, out, err = simnet("connect", "sessions")
    assert "$0.0123" in out, err
    assert "at least $0.00" in out
    _, out, _ = simnet("connect", "sessions", "page-2")
    assert 'approved Bash: {"command":"ls"}' in out
    assert "refused Write" in out
    assert "\x1b" not in out
    _, out, _ = simnet("connect", "sessions", done["id"][:6], "--json")
    assert [act["kind"] for act in json.loads(out)["acts"]] == ["prompt", "approved", "refused", "turn"]
    assert simnet("connect", "sessions", "page")[0] == 2
    assert simnet("connect", "sessions", "nobody")[0] == 1


def test_what_is_old_is_forgotten(simnet, home, monkeypatch):
    trio.run(_fill, home)
    monkeypatch.setattr(record, "KEPT_DAYS", -1)

    async def tidy() -> None:
        async with open_store(home.database, vault=unlock(home).vault, clock=SystemClock()) as store:
            await record.tidy(store)
            assert store.one("SELECT COUNT(*) AS n FROM tunnel_acts")["n"] == 0

    trio.run(tidy)
    assert json.loads(simnet("connect", "sessions", "--json")[1]) == {"sessions": []}
