"""``pylon compute``: with a daemon and without one, for people and as JSON."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager

import pytest
import trio

from pylon.config_backends import DEFAULT_URLS
from pylon.testing.backends import OllamaServer, OpenAIServer

SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """Nobody where one looks for backends, and no model."""
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    for kind in DEFAULT_URLS:
        monkeypatch.setitem(DEFAULT_URLS, kind, "http://127.0.0.1:1/v1")


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
    assert report["pylon"] == {"running": False}
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
        "pylon": {"running": True}, "local_backends": [row], "default_model": "llama3.2",
        "default_model_used": "llama3.2:latest", "embedded_missing": None,
    }  # fmt: skip
    with daemon({"result": report}) as asked:
        _, out, err = pylon("compute")
    assert asked[0]["method"] == "compute"
    assert "[OK] gpu (http://gpu:11434)  fine, 1 under way, 2 waiting\n         llama3.2:latest\n" in out
    assert "Default model: llama3.2:latest\n" in out
    assert err == ""


def test_a_mistake_in_the_tables_is_named(pylon, home):
    home.prepare()
    home.config.write_text('[[backends]]\nkind = "gpu"\n')
    code, _, err = pylon("compute")
    assert code != 0
    assert "config.toml:1: backends number 1: kind: wanted one of" in err
