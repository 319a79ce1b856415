"""``pylon api`` and ``pylon infer`` as installed, with the real engine and model; OpenAI's own package asks."""

from __future__ import annotations

import json
import re
import subprocess
import time

import openai
import pytest

from tests.e2e.homes import Daemon, command, environment

pytestmark = pytest.mark.e2e

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell a very long story about a lighthouse."}]


@pytest.fixture
def served(tmp_path, model):
    """An API in the foreground of a home that has nothing: ``OpenAI`` client, and its process."""
    arguments = [command(), "--home", str(tmp_path / "home"), "api", "--bind", "127.0.0.1:0"]
    daemon = Daemon([*arguments, "--model-file", str(model.path)], tmp_path / "output")
    client = None
    try:
        daemon.ready("serving until")
        url = re.search(r"^http\S+", daemon.said(), re.MULTILINE)[0]
        token = (tmp_path / "home" / "api.token").read_text().strip()
        client = openai.OpenAI(
            base_url=url, api_key=token, max_retries=0, http_client=openai.DefaultHttpxClient(trust_env=False)
        )
        yield client, daemon
    finally:
        if client is not None:
            client.close()
        daemon.terminate()


def test_a_real_answer(served):
    client, daemon = served
    name = client.models.list().data[0].id
    options = {"model": name, "messages": PARIS, "temperature": 0, "max_tokens": 32}
    answer = client.chat.completions.create(**options)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 3
    pieces = list(client.chat.completions.create(stream=True, **options))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == answer.choices[0].message.content
    assert len(pieces) > 4
    cut = client.chat.completions.create(stop=[" Paris"], **options)
    assert cut.choices[0].message.content == answer.choices[0].message.content.partition(" Paris")[0]
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    said = client.chat.completions.create(
        response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}, **options
    )
    assert json.loads(said.choices[0].message.content)["n"] in (1, 2)
    assert daemon.terminate() == 0


def test_who_leaves_frees_the_engine(served):
    """It has one slot: whoever asks next would wait for the story's end."""
    client, _ = served
    with client.chat.completions.create(
        model="", messages=STORY, max_tokens=3_000, temperature=0, stream=True
    ) as story:
        for piece in story:
            if piece.choices[0].delta.content:
                break
    began = time.monotonic()
    client.chat.completions.create(model="", messages=PARIS, max_tokens=4)
    assert time.monotonic() - began < 5.0


def test_infer(tmp_path, model):
    arguments = [command(), "--home", str(tmp_path / "home"), "infer", "--temperature", "0", "--max-tokens", "32"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text(f"[provider]\nmodel_file = {json.dumps(str(model.path))}\n")
    done = subprocess.run(
        arguments, input="What is the capital of France?\n", capture_output=True, text=True, timeout=60, check=True,
        env=environment(),
    )  # fmt: skip
    assert "Paris" in done.stdout
    again = subprocess.run(
        [*arguments, "--json", "What is the capital of France?"],
        capture_output=True, text=True, timeout=60, check=True, env=environment(),
    )  # fmt: skip
    assert json.loads(again.stdout)["text"] == done.stdout.removesuffix("\n")
