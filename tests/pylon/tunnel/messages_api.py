"""A scripted Messages API of Anthropic's on 127.0.0.1: what Claude Code thinks with, where it thinks nothing.

A prompt's words say what it answers: ``WRITE`` asks to write ``target``, ``READ`` to read it, ``SLOW`` takes its time,
``AGENT`` sends a subagent to write; after a tool's result, or else, it says a sentence. ``seen`` holds what came.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class MessagesApi:
    def __init__(self, target: Path) -> None:
        self.target = target
        self.seen: list[str] = []
        self.systems: list[str] = []
        self.tools: set[str] = set()

    def answer(self, body: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
        """Blocks, and the seconds between pieces."""
        self.seen.append(json.dumps(body["messages"]))
        self.tools |= {tool["name"] for tool in body.get("tools", ())}
        self.systems.append(json.dumps(body.get("system")))
        content = body["messages"][-1]["content"]
        text = json.dumps(content)
        if isinstance(content, list) and any(block.get("type") == "tool_result" for block in content):
            return [_text("All done.")], 0
        if not body.get("tools"):
            return [_text("A title")], 0
        if "SLOW" in text:
            return [_text(" ".join(map(str, range(100))))], 0.1
        if "AGENT" in text:
            sent = {"description": "sub", "prompt": "please WRITE", "subagent_type": "general-purpose"}
            return [_tool("Agent", sent)], 0
        if "WRITE" in text:
            return [_text("I will."), _tool("Write", {"file_path": str(self.target), "content": "hi"})], 0
        if "READ" in text:
            return [_text("I will."), _tool("Read", {"file_path": str(self.target)})], 0
        return [_text("Good day to you.")], 0


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{os.urandom(6).hex()}", "name": name, "input": given}


def _events(model: str, blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    usage = {"input_tokens": 100, "output_tokens": 1}
    message = {
        "id": f"msg_{os.urandom(6).hex()}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
    }
    yield {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None, "usage": usage}}
    for index, block in enumerate(blocks):
        begun = {**block, "text": ""} if block["type"] == "text" else {**block, "input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": begun}
        if block["type"] == "text":
            deltas = [{"type": "text_delta", "text": f"{word} "} for word in block["text"].split(" ")]
        else:
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    reason = "tool_use" if blocks[-1]["type"] == "tool_use" else "end_turn"
    delta = {"stop_reason": reason, "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 20}}
    yield {"type": "message_stop"}


@contextmanager
def messages_api(target: Path) -> Iterator[tuple[MessagesApi, str]]:
    """The API and its URL, until the block ends."""
    api = MessagesApi(target)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            blocks, pause = api.answer(body)
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            try:
                for event in _events(body["model"], blocks):
                    self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
                    self.wfile.flush()
                    time.sleep(pause)
            except OSError:
                pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
