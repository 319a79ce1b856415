"""A real engine over HTTP: llama.cpp's server as a stranger runs it, behind ``kind = "openai"``, sold on as one's own.

The server is ``xllamacpp``'s in a process of its own, with its own defaults; Pylon is the installed command, and
OpenAI's own package asks it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager

import openai
import pytest

from tests.e2e.homes import Daemon, command, environment

pytestmark = pytest.mark.e2e

SERVER = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel, params.n_ctx = sys.argv[1], 0, 1, 2048
params.model_alias = {"tiny"}
params.hostnames, params.verbosity = ["127.0.0.1"], 1
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
print("listening at", server.listening_address, flush=True)
sys.stdin.buffer.read()
"""
SYSTEM = "You are a helpful assistant."
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell a very long story about a lighthouse."}]


@contextmanager
def llama_server(model):
    """Where a llama.cpp server listens, and its process."""
    arguments = [sys.executable, "-c", SERVER, str(model.path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next(line for line in process.stdout if line.startswith("listening at "))
            yield line.split()[-1].rstrip("/"), process
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def server(model):
    with llama_server(model) as (address, _):
        yield address


@pytest.fixture
def home(tmp_path, server):
    directory = tmp_path / "home"
    directory.mkdir()
    (directory / "config.toml").write_text(
        f'backend_preference = []\n[[backends]]\nkind = "openai"\nname = "elsewhere"\nurl = "{server}/v1"\n'
    )
    return directory


def pylon(home, *arguments: str, text: str = "") -> subprocess.CompletedProcess:
    environ = environment({"PYLON_MODELS": str(home / "none"), "PYLON_RELAYS": "", "PYLON_RELAY_BIND": "127.0.0.1:0"})
    return subprocess.run(
        [command(), "--home", str(home), *arguments],
        input=text, capture_output=True, text=True, timeout=60, check=True, env=environ,
    )  # fmt: skip


def test_it_is_seen_and_asked(home):
    report = json.loads(pylon(home, "compute", "--json", "--no-swarm").stdout)
    (row,) = report["local_backends"]
    assert (row["name"], row["kind"], row["available"], row["models"]) == ("elsewhere", "openai", True, ["tiny"])
    assert row["context_lengths"] == {"tiny": 2048}
    asked = ["infer", "--temperature", "0", "--system", SYSTEM, "--max-tokens", "32"]
    assert "Paris" in pylon(home, *asked, text="What is the capital of France?\n").stdout
    done = json.loads(pylon(home, *asked, "--json", "What is the capital of France?").stdout)
    assert "Paris" in done["text"]
    assert done["model"] == "tiny"
    assert done["completion_tokens"] > 3


@pytest.fixture
def client(tmp_path, home):
    """OpenAI's package before ``pylon api``."""
    arguments = [command(), "--home", str(home), "--json", "api", "--bind", "127.0.0.1:0"]
    daemon = Daemon(arguments, tmp_path / "output", {"PYLON_MODELS": str(home / "none")})
    client = None
    try:
        daemon.ready("serving until")
        said = next(json.loads(line) for line in daemon.said().splitlines() if line.startswith("{"))
        client = openai.OpenAI(
            base_url=said["url"], api_key=(home / "api.token").read_text().strip(), max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )  # fmt: skip
        yield client
    finally:
        if client is not None:
            client.close()
        daemon.terminate()


def test_through_our_api(client):
    options = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 32}
    whole = client.chat.completions.create(**options)
    assert "Paris" in whole.choices[0].message.content
    pieces = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options))
    said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert said == whole.choices[0].message.content
    assert pieces[-1].usage == whole.usage
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens="many")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="huge", messages=MESSAGES)


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_server_behind(client, stream):
    """It has one slot, and would tell its story for a minute: the end of the call reaches it through both of us."""
    asked = {"model": "tiny", "messages": STORY, "max_tokens": 1_500, "temperature": 0}
    if stream:
        with client.chat.completions.create(stream=True, **asked) as story:
            next(piece for piece in story if piece.choices[0].delta.content)
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1.0).chat.completions.create(**asked)
    began = time.monotonic()
    assert client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4).usage.completion_tokens == 4
    assert time.monotonic() - began < 8.0


def test_a_server_that_dies_in_the_middle_of_an_answer(home, model):
    with llama_server(model) as (address, process):
        (home / "config.toml").write_text(
            f'backend_preference = []\n[[backends]]\nkind = "openai"\nurl = "{address}/v1"\n'
        )
        story = subprocess.Popen(
            [command(), "--home", str(home), "infer", "--max-tokens", "1500", STORY[0]["content"]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert story.stdout.read(1)
        process.kill()
        _, err = story.communicate(timeout=30)
        assert story.returncode == 1
        assert b"error: " in err
    report = json.loads(pylon(home, "compute", "--json", "--no-swarm").stdout)
    assert report["local_backends"][0]["available"] is False
