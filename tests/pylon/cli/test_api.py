"""``pylon api``: it says where the daemon serves, or serves in the foreground until a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pylon.paths import Home

STATUS = {"result": {"api": "http://127.0.0.1:9899"}}
PROCESS = """
import functools, sys
from pylon.daemon import answering
from pylon.testing.backend import ScriptedBackend
answering.open_local = functools.partial(answering.open_local, backend=ScriptedBackend("so it is"))
from pylon.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("PYLON_API_TOKEN", raising=False)


def test_a_daemon_is_pointed_at(pylon, daemon, home, monkeypatch):
    with daemon(STATUS):
        assert pylon("api") == (0, f"http://127.0.0.1:9899/v1\ntoken: {home.data}/api.token\n", "")
    monkeypatch.setenv("PYLON_API_TOKEN", "sesame")
    with daemon(STATUS):
        code, out, _ = pylon("api", "--json")
    assert (code, json.loads(out)) == (0, {"url": "http://127.0.0.1:9899/v1", "token_file": None})
    assert "sesame" not in out


@pytest.mark.parametrize("options", [["--market"], ["--bind", "127.0.0.1:0"], ["--budget-day", "5"]])
def test_a_running_daemon_is_not_told_otherwise(pylon, daemon, options):
    with daemon(STATUS):
        code, _, err = pylon("api", *options)
    assert code == 2
    assert "a daemon is running" in err


def test_a_daemon_that_serves_nothing(pylon, daemon):
    with daemon({"result": {"api": None}}):
        code, _, err = pylon("api")
    assert code == 1
    assert "[api] enabled" in err


def test_who_buys_has_an_identity(pylon):
    code, _, err = pylon("api", "--market")
    assert code == 1
    assert "no identity" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--model-file", "no.gguf"], "no.gguf"), (["--budget-day", "x"], "amount")],
)
def test_what_makes_no_sense(pylon, options, words):
    code, _, err = pylon("api", *options)
    assert code in (1, 2)
    assert words in err


@pytest.mark.parametrize("text", ["foo", "9899", ":9899", "127.0.0.1", "127.0.0.1:99999", "::1:9899", "http://a:1", ""])
def test_an_address_that_is_none_says_what_one_is(pylon, text):
    code, out, err = pylon("--json", "api", "--bind", text)
    assert (code, out) == (2, "")
    error = json.loads(err)["error"]
    assert error["code"] == "usage"
    assert error["message"].startswith("--bind: ")
    assert "127.0.0.1:9899" in error["hint"]


class Process:
    """``pylon api`` in a process of its own."""

    def __init__(self, home: Home, code: list[str], *options: str) -> None:
        command = [sys.executable, *code, "--home", str(home.root), "--json", "api", "--bind", "127.0.0.1:0", *options]
        environ = {**os.environ, "PYLON_RELAY_BIND": "127.0.0.1:0"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=10)


def test_served_in_the_foreground(home):
    with Process(home, ["-c", PROCESS]) as served:
        said = json.loads(served.process.stdout.readline())
        token = Path(said["token_file"]).read_text().strip()
        assert os.stat(said["token_file"]).st_mode & 0o077 == 0
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}, trust_env=False) as client:
            body = {"messages": [{"role": "user", "content": "why?"}]}
            answer = client.post(f"{said['url']}/chat/completions", json=body)
            assert answer.json()["choices"][0]["message"]["content"] == "so it is"
            assert client.get(f"{said['url']}/models", headers={"Authorization": ""}).status_code == 401
        served.process.send_signal(signal.SIGTERM)
        out, err = served.process.communicate(timeout=20)
        assert (served.process.returncode, out) == (0, "")
        assert token not in err
    assert not home.mnemonic.exists()


def test_a_gateway_in_the_foreground(home, simnet):
    """It runs the whole home, so that status, jobs and wallet can be asked meanwhile."""
    with Process(home, ["-m", "pylon"], "--market", "--budget-day", "7sat") as served:
        said = json.loads(served.process.stdout.readline())
        for line in served.process.stderr:
            if line.startswith("api: "):
                assert f"{line.split()[1]}/v1" == said["url"]
            if line == "ready\n":
                break
        code, out, _ = simnet("api", "--json")
        assert (code, json.loads(out)) == (0, said)
        token = Path(said["token_file"]).read_text().strip()
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}, trust_env=False) as client:
            body = {"messages": [{"role": "user", "content": "why?"}]}
            answer = client.post(f"{said['url']}/chat/completions", json=body, timeout=20)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
        served.process.send_signal(signal.SIGTERM)
        served.process.communicate(timeout=20)
        assert served.process.returncode == 0
