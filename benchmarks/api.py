"""OpenAI's API of ``pylon api`` beside the same llama.cpp server asked directly: what our house costs before a word.

One server with one model; the same request goes to it straight and through Pylon, in turn. The first word is
what counts: it says when a reader sees something.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from benchmarks.processes import child
from benchmarks.report import Table, percentile
from pylon.inference.models import DEFAULT_MODEL, ModelFile, PullFailed, models_directory, pull

ROUNDS = 60
_KEY = "a-key-of-this-benchmark"
_GOAL = 5.0
_PROMPT = "Say hello."


def run(*, rounds: int = ROUNDS) -> Table:
    table = Table(f"The API beside its own llama.cpp server: {rounds} requests each, in turn")
    try:
        model = trio.run(pull, DEFAULT_MODEL, models_directory())
    except PullFailed as error:
        table.notes.append(f"left out: there is no model ({error.message})")
        return table
    with tempfile.TemporaryDirectory(prefix="pylon-bench-") as name:
        with _engine(model.file) as server, _api(Path(name), server) as (own, token):
            _measure(table, rounds, server, own, token, model.file.name)
    return table


def _measure(table: Table, rounds: int, server: str, own: str, token: str, model: str) -> None:
    straight, through = _Asker(server, _KEY), _Asker(own, token)
    seconds: dict[_Asker, list[float]] = {straight: [], through: []}
    for round_number in range(rounds + 2):
        # Whoever goes first finds the processor as the other has left it: so they take turns in that, too.
        for asker in (straight, through) if round_number % 2 else (through, straight):
            took = asker.first_word(model)
            if round_number > 1:
                seconds[asker].append(took)
    direct, ours = (statistics.median(seconds[asker]) * 1e3 for asker in (straight, through))
    over = statistics.median(b - a for a, b in zip(seconds[straight], seconds[through], strict=True)) * 1e3
    table.add("first word, the server itself, p50", direct, "ms")
    table.add("first word, through pylon api, p50", ours, "ms")
    table.add("first word, the server itself, p90", percentile(seconds[straight], 0.9) * 1e3, "ms")
    table.add("first word, through pylon api, p90", percentile(seconds[through], 0.9) * 1e3, "ms")
    table.add("what Pylon adds (median of the differences)", over, "ms", f"goal: under {_GOAL:.0f}")


class _Asker:
    """A client. Each request has a connection of its own, made before the clock runs."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def first_word(self, model: str) -> float:
        """Seconds from the request to the first piece of text."""
        wish: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": _PROMPT}],
            "max_tokens": 2,
            "temperature": 0,
            "stream": True,
        }
        body, took = json.dumps(wish), 0.0
        connection = http.client.HTTPConnection(self._address, timeout=60)
        connection.connect()
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", body, self._headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.read(500)!r}")
        while line := answer.readline():
            if not took and line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    took = time.perf_counter() - began
        connection.close()
        if not took:
            raise RuntimeError("not a word")
        return took


@contextlib.contextmanager
def _engine(model: ModelFile) -> Iterator[str]:
    """The engine as a server on a port of its own; where it listens."""
    settings = {"model": str(model.path), "name": model.name, "key": _KEY, "slots": 1, "context": 1024, "threads": None}
    with child(["-m", "pylon.inference.engine"]) as server:
        yield f"127.0.0.1:{server.ask(**settings)['port']}"


@contextlib.contextmanager
def _api(home: Path, server: str) -> Iterator[tuple[str, str]]:
    """``pylon api`` as installed, with that server as its backend; where it listens, and its token."""
    (home / "config.toml").write_text(
        'network = "simnet"\nbackend_preference = ["llamacpp"]\n\n[api]\nbind = "127.0.0.1:0"\n\n[[backends]]\n'
        f'kind = "llamacpp"\nurl = "http://{server}/v1"\nkey_env = "PYLON_BENCH_KEY"\n'
    )
    with child(["-m", "pylon", "--home", str(home), "api"], {**os.environ, "PYLON_BENCH_KEY": _KEY}) as api:
        url, token = api.line(), api.line().removeprefix("token: ")
        yield url.removeprefix("http://").removesuffix("/v1"), Path(token).read_text().strip()
