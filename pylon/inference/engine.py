"""The embedded engine as its own process: ``python -m pylon.inference.engine``.

It speaks with its parent over the standard streams and is of no use to anybody else:

- stdin: one line of JSON with the settings (``Settings``), then nothing. When stdin ends, the process ends: a parent
  that was killed leaves no orphan.
- stdout: one line of JSON, ``{"port": 1234, "model": "name"}`` when the model answers on 127.0.0.1, or
  ``{"error": "..."}`` and exit code 1. Nothing else is ever written there.
- stderr: the engine's log, errors only, for at other levels it could quote prompts.

``xllamacpp`` holds the GIL while it loads a model, so a parent that dies meanwhile is noticed when the load is over.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any, BinaryIO, TypedDict
from urllib.parse import urlsplit

MAX_LINE = 64 << 10

_BATCH = 256
"""Prompt tokens evaluated at once on a CPU. The engine looks up only between batches: with its default of 2048, a
prompt that nobody waits for any more holds the slot for 10 s on two cores; with 256 for one, and none the slower."""

_ERRORS_ONLY = 1


class Settings(TypedDict):
    model: str
    """Path of the GGUF file."""
    name: str
    """What ``GET /v1/models`` calls it."""
    key: str
    """The bearer token without which nothing but ``/health`` answers."""
    slots: int
    """Answers generated at the same time."""
    context: int
    """Tokens of context of each slot."""
    threads: int | None
    """``None``: ``default_threads()``."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes stdin
    line = sys.stdin.buffer.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        return
    settings: Settings = json.loads(line)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    replies = _claim_stdout()
    try:
        server, port = serve(settings)
    except Exception as error:
        _reply(replies, {"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    _reply(replies, {"port": port, "model": settings["name"]})
    threading.Event().wait()
    del server


def serve(settings: Settings) -> tuple[Any, int]:
    """Load the model, listen on a free port of 127.0.0.1. Returns the server, which stops when dropped, and the port.

    Raises ``ImportError`` without ``xllamacpp``, ``RuntimeError`` for a model that does not load.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {settings["name"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["key"]]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["context"] * settings["slots"]
    # A stream keeps a thread; there must always be some left for /health and the list of models.
    params.n_threads_http = settings["slots"] + 4
    params.cpuparams.n_threads = settings["threads"] or default_threads()
    params.verbosity = _ERRORS_ONLY
    # What a private engine has no use for: pages, other origins, downloads, other customers' prompts kept in memory.
    params.ui = False
    params.cors_origins = ""
    params.offline = True
    params.endpoint_slots = False
    params.endpoint_props = False
    params.cache_ram_mib = 0
    # A prompt that begins like the last one would reuse its work, rounded differently: the same request would not get
    # the same answer, and the time it takes would tell one customer about another.
    params.cache_prompt = False
    cpu = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    if all(device["type"] == cpu for device in xllamacpp.get_device_info()):
        params.n_batch = params.n_ubatch = _BATCH
        params.fit_params = False  # fitting to a GPU's memory costs a second load
    server = xllamacpp.Server(params)
    port = urlsplit(server.listening_address).port
    if port is None:
        raise RuntimeError("the server does not say where it listens")
    return server, port


def default_threads(processors: int | None = None) -> int:
    """One thread less than processors where they are few, half of them where they are many and mostly hyper-threads.

    The threads wait for each other after every layer, spinning. If one of them has to share its processor, all do:
    on two busy cores, two threads gave 3 to 12 tokens/s and one thread gave 50.
    """
    if processors is None:
        affinity = getattr(os, "sched_getaffinity", None)
        processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, processors - 1 if processors <= 4 else processors // 2)


def _claim_stdout() -> BinaryIO:
    """The parent's pipe, for us alone: whatever a library prints goes to the log instead."""
    mine = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(mine, "wb")


def _reply(stream: BinaryIO, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _end_with_stdin() -> None:
    # Not through sys.stdin: an interpreter that ends while a thread holds its buffer aborts.
    while os.read(0, MAX_LINE):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
