"""A backend that the installed command can be given: OpenAI's chat completions over HTTP, from a thread of the test.

No model: the answer to a prompt is the prompt backwards, as ``pylon.testing.provider_process`` has it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pylon.testing.provider_process import answer

MODEL = "backwards-1"


class HttpBackend(ThreadingHTTPServer):
    """Thinks for ``seconds`` before its first word. ``asked``: the prompts as they came."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.seconds = 0.0
        self.asked: list[str] = []

    @property
    def table(self) -> str:
        """The ``[[backends]]`` table of a provider's configuration."""
        url = f"http://127.0.0.1:{self.server_port}/v1"
        return f'[[backends]]\nkind = "openai"\nurl = "{url}"\nmodels = ["{MODEL}"]\nmax_concurrent = 4\n'


class _Handler(BaseHTTPRequestHandler):
    server: HttpBackend

    def do_GET(self) -> None:
        self._say("application/json", json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = asked["messages"][-1]["content"]
        self.server.asked.append(prompt)
        time.sleep(self.server.seconds)
        words: list[dict[str, Any]] = [
            {"delta": {"role": "assistant", "content": answer(prompt)}, "finish_reason": None},
            {"delta": {}, "finish_reason": "stop"},
        ]
        chunks = [{"id": "c", "model": MODEL, "choices": [{"index": 0, **word}]} for word in words]
        self._say(
            "text/event-stream", "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        )

    def _say(self, kind: str, text: str) -> None:
        try:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass  # who asked has died: that is what the tests are about

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


@contextmanager
def http_backend() -> Iterator[HttpBackend]:
    with HttpBackend() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
