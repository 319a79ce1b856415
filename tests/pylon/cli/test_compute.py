"""``pylon compute``: with a daemon and without one, for people and as JSON."""

from __future__ import annotations

import json
import threading
import time
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from protocols.heartbeat import build_heartbeat
from protocols.keys import SecretKey
from protocols.nip19 import encode_npub
from protocols.nip89 import build_announcement
from pylon.clock import SystemClock
from pylon.config_backends import DEFAULT_URLS
from pylon.relays.relay import open_relay
from pylon.relays.server import serve_relay
from pylon.testing.backends import OllamaServer, OpenAIServer

SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """Nobody where one looks for backends, and no model."""
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    for kind in DEFAULT_URLS:
        monkeypatch.setitem(DEFAULT_URLS, kind, "http://127.0.0.1:1/v1")
    monkeypatch.setenv("PYLON_RELAYS", "")
    monkeypatch.setenv("PYLON_RELAY_BIND", "127.0.0.1:0")


@contextmanager
def serving(*servers):
    """Servers in a thread of their own, for a command that runs its own loop."""
    ready, end = threading.Event(), None

    async def main():
        nonlocal end
        async with trio.open_nursery() as nursery:
            for server in servers:
                await nursery.start(hold, server)
            end = nursery.cancel_scope
            ready.set()
            await trio.sleep_forever()

    async def hold(server, *, task_status):
        async with server.running():
            task_status.started()
            await trio.sleep_forever()

    token = []

    async def root():
        token.append(trio.lowlevel.current_trio_token())
        await main()

    thread = threading.Thread(target=trio.run, args=(root,))
    thread.start()
    try:
        assert ready.wait(5)
        yield
    finally:
        token[0].run_sync_soon(end.cancel)
        thread.join(5)


@contextmanager
def relay_of(*events):
    """A relay with these events, on a real socket."""
    urls = []

    class Served:
        @asynccontextmanager
        async def running(self):
            async with open_relay(clock=SystemClock()) as relay, trio.open_nursery() as nursery:
                for event in events:
                    relay.publish(event)
                bound = await nursery.start(serve_relay, relay, "127.0.0.1", 0)
                urls.append(f"ws://127.0.0.1:{bound[0][1]}")
                yield
                nursery.cancel_scope.cancel()

    with serving(Served()):
        yield urls[0]


def test_nothing_there_needs_no_identity(pylon, home):
    code, out, err = pylon("compute")
    assert code == 0
    assert "[--] ollama (http://127.0.0.1:1/v1)  ollama does not answer at http://127.0.0.1:1\n" in out
    assert "[--] apple_fm" in out
    assert "Default model" not in out
    assert "hint: pylon models pull" in err
    assert not home.mnemonic.exists()


def test_what_is_there(pylon, home):
    ollama, service = OllamaServer(models=["a", "b"]), OpenAIServer(models=["gpt-5-mini"], key=SECRET)
    with serving(ollama, service), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_KEY", SECRET)
        home.prepare()
        home.config.write_text(
            f'[[backends]]\nkind = "ollama"\nname = "gpu"\nurl = "{ollama.http.address}"\n'
            f'[[backends]]\nkind = "openai"\nurl = "{service.http.address}/v1"\nkey_env = "MY_KEY"\n'
        )
        code, out, err = pylon("compute")
        assert (code, err) == (0, "")
        report = json.loads(pylon("compute", "--json")[1])
    assert f"[OK] gpu ({ollama.http.address})  version 0.33.2, 2 models" in out
    assert "         a  4,096 tokens" in out
    assert "Default model: a (llama3.2 is not there)" in out
    assert report["pylon"] == {"running": False, "status": None}
    assert report["cloud_providers"] == []
    assert [(row["name"], row["available"], row["models"]) for row in report["local_backends"]] == [
        ("gpu", True, ["a", "b"]),
        ("apple_fm", False, []),
        ("openai", True, ["gpt-5-mini"]),
    ]
    assert report["default_model_used"] == "a"
    assert SECRET not in out + json.dumps(report)


def test_the_embedded_engine_is_not_started(pylon, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(100))
    _, out, _ = pylon("compute")
    assert "[OK] llamacpp (embedded)  starts with the daemon: pylon start" in out
    assert "Default model: mine" in out


def test_a_daemon_is_asked(pylon, daemon):
    row = {
        "name": "gpu", "kind": "ollama", "available": True, "detail": "fine", "endpoint": "http://gpu:11434",
        "models": ["llama3.2:latest"], "context_lengths": {}, "active": 1, "waiting": 2, "max_concurrent": 1,
    }  # fmt: skip
    report = {
        "pylon": {"running": True, "status": {}}, "local_backends": [row], "default_model": "llama3.2",
        "default_model_used": "llama3.2:latest", "embedded_missing": None, "network": "simnet", "cloud_providers": [],
        "swarm_providers": None, "swarm_relays": None,
    }  # fmt: skip
    with daemon({"result": report}) as asked:
        _, out, err = pylon("compute", "--no-swarm")
    assert (asked[0]["method"], asked[0]["params"]) == ("compute", {"swarm": False})
    assert "Swarm" not in out
    assert "[OK] gpu (http://gpu:11434)  fine, 1 under way, 2 waiting\n         llama3.2:latest\n" in out
    assert "Default model: llama3.2:latest\n" in out
    assert err == ""


def test_a_service_elsewhere_is_in_the_cloud(pylon, home):
    """By its address: the same kind on this machine is a backend of one's own."""
    home.prepare()
    home.config.write_text(
        '[[backends]]\nkind = "openai"\nname = "far"\nurl = "http://192.0.2.1:1/v1"\n'
        '[[backends]]\nkind = "openai"\nname = "near"\nurl = "http://127.0.0.1:1/v1"\n'
        '[[backends]]\nkind = "openai"\nname = "paid"\nurl = "https://api.openai.com/v1"\nkey_env = "NO_KEY"\n'
    )
    report = json.loads(pylon("compute", "--json", "--no-swarm")[1])
    assert [row["name"] for row in report["cloud_providers"]] == ["far", "paid"]
    assert report["cloud_providers"][1]["detail"] == "the variable NO_KEY with its API key is not set"
    assert "near" in [row["name"] for row in report["local_backends"]]
    out = pylon("compute", "--no-swarm")[1]
    assert "Cloud providers:\n  [--] far (http://192.0.2.1:1/v1)" in out


SELLER = {
    "name": "GPU\n\x1b[31m in the cellar", "npub": "npub1" + "q" * 58, "pubkey": "00" * 32, "models": list("abcde"),
    "price_msats": 1_500, "network": "simnet", "payable": True, "announced_at": 1, "last_heard_at": 1,
    "health": "alive", "own": None, "price_in_msats": 0, "price_out_msats": 0, "owes_msats": None, "observed": None,
}  # fmt: skip


def swarm_text(sellers, relays=({"url": "ws://a", "connected": True},)):
    from pylon.cli.compute import _text

    return _text(
        {
            "local_backends": [], "cloud_providers": [], "default_model": "m", "default_model_used": None,
            "network": "simnet", "swarm_providers": sellers, "swarm_relays": list(relays),
        }
    )  # fmt: skip


def test_who_sells_is_listed(pylon, daemon):
    rows = [
        SELLER,
        SELLER | {"health": "silent", "name": "", "models": [], "price_msats": None, "own": True},
        SELLER | {"health": "unknown"},
        SELLER | {"network": "mainnet", "payable": False},
    ]
    out = swarm_text(rows, [{"url": "ws://a", "connected": True}, {"url": "ws://b", "connected": False}])
    assert "Swarm providers on simnet, at 1 of 2 relays:\n" in out
    assert "  [OK] GPU \x1b[31m in the cellar (npub1qqqqqqqqqqq…)  1.5 sat  heard " in out
    assert "         a, b, c and 2 more\n" in out
    assert "  [--] unnamed (npub1qqqqqqqqqqq…)  no price  heard " in out
    assert out.count("(this home)") == 1
    assert "  [??] " in out
    assert out.endswith("  1 more on other networks")
    report = {
        "local_backends": [], "cloud_providers": [], "default_model": "m", "default_model_used": None, "network": "x",
        "swarm_providers": [SELLER], "swarm_relays": [{"url": "ws://a", "connected": True}], "embedded_missing": None,
    }  # fmt: skip
    with daemon({"result": report}) as asked:
        _, out, _ = pylon("compute")
    assert asked[0]["params"] == {"swarm": True}
    assert "\x1b" not in out


def test_what_was_learned_of_them():
    observed = {"reliability": 0.934, "seconds": 1.25, "rests": False, "distrusted": False}
    out = swarm_text([SELLER | {"price_in_msats": 500, "price_out_msats": 2_000, "observed": observed}])
    assert "1.5 sat + 0.5 sat/1k in + 2 sat/1k out  heard" in out
    assert out.endswith("         answers 93%, in 1.2 s")
    out = swarm_text([SELLER | {"observed": observed | {"rests": True}, "owes_msats": 3_000}])
    assert out.endswith("answers 93%, in 1.2 s; has just failed; owes us 3 sat")
    out = swarm_text([SELLER | {"observed": observed | {"rests": True, "distrusted": True}, "owes_msats": 0}])
    assert out.endswith("answers 93%, in 1.2 s; kept our money lately")


def test_a_long_list_is_cut():
    out = swarm_text([SELLER] * 30)
    assert out.count("[OK]") == 20
    assert out.endswith("and 10 more: pylon compute --json")
    assert swarm_text([]).endswith("at 1 of 1 relay:\n  none")


def test_unknown_is_not_nobody():
    down = [{"url": "ws://a", "connected": False}]
    assert swarm_text([], down).endswith("Swarm providers: unknown, no relay answers (ws://a)")
    assert swarm_text([], []).endswith("Swarm providers: unknown, no relay is configured")
    assert "Swarm" not in swarm_text(None)


def test_the_relays_are_asked_without_an_identity(pylon, home, monkeypatch):
    """A relay of another home's, over a real socket; and it takes no longer than it may."""
    seller = SecretKey(b"\x05" * 32)
    now = int(time.time())
    said = build_announcement(
        seller, d="x", kinds=[5050], models=["qwen"], price_msats=2_000, network="simnet", name="Bob", about="",
        created_at=now - 2_000,
    )  # fmt: skip
    beat = build_heartbeat(seller, d="x", created_at=now - 60)
    with relay_of(said, beat) as url:
        monkeypatch.setenv("PYLON_RELAYS", f"{url},ws://127.0.0.1:1")
        monkeypatch.setenv("PYLON_NETWORK", "simnet")
        code, out, _ = pylon("compute", "--json")
    assert code == 0
    report = json.loads(out)
    (row,) = report["swarm_providers"]
    assert (row["npub"], row["name"], row["models"]) == (encode_npub(seller.public), "Bob", ["qwen"])
    assert (row["price_msats"], row["payable"], row["health"], row["own"]) == (2_000, True, "alive", None)
    assert (row["price_in_msats"], row["observed"], row["owes_msats"]) == (0, None, None)
    assert (row["announced_at"], row["last_heard_at"]) == (now - 2_000, now - 60)
    assert sorted(relay["connected"] for relay in report["swarm_relays"]) == [False, True]
    assert not home.mnemonic.exists()


def test_a_mistake_in_the_tables_is_named(pylon, home):
    home.prepare()
    home.config.write_text('[[backends]]\nkind = "gpu"\n')
    code, _, err = pylon("compute")
    assert code != 0
    assert "config.toml:1: backends number 1: kind: wanted one of" in err
