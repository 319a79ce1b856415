"""The streaming JSON of Claude Code, as a process that drives it reads and writes it: lines in, events out, no I/O.

``claude --input-format stream-json --output-format stream-json --verbose --include-partial-messages
--permission-prompt-tool stdio``: a line each of ``system``, ``stream_event``, ``assistant``, ``user``, ``result``,
``control_request``, ``control_response``; the shapes are those of Anthropic's SDK for it
(github.com/anthropics/claude-agent-sdk-python). What is not known is ignored: the program is newer than this.

Two things ask whether a tool may be used. The *hook* (PreToolUse) is asked for every use, before the program's own
rules are; the *permission* (can_use_tool) only where those rules, the user's own settings among them, want a person.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs
import orjson

from pylon.tunnel.messages import MAX_COUNT, MAX_MICRO_USD, Usage

HOOK = "pylon"
"""The name under which our hook is called back."""
MAX_LINE_BYTES = 16 << 20
"""A tool's result may hold a picture."""
MAX_OUTPUT = 65_536
"""Characters of a tool's result that are passed on."""
_KEPT_USES = 4_096


@attrs.frozen
class Text:
    """A piece of the answer. Every piece comes once."""

    text: str = attrs.field(repr=False)


@attrs.frozen
class ToolStarted:
    id: str
    name: str
    params: Mapping[str, Any] = attrs.field(repr=False)


@attrs.frozen
class ToolEnded:
    id: str
    name: str
    output: str = attrs.field(repr=False)
    failed: bool


@attrs.frozen
class Asked:
    """Whether a tool may be used. It waits for ``allowance`` or ``refusal``."""

    request_id: str
    use_id: str
    """The same for hook and permission of one use."""
    tool: str
    params: Mapping[str, Any] = attrs.field(repr=False)
    by_hook: bool


@attrs.frozen
class Withdrawn:
    """Nobody waits for this answer any more."""

    request_id: str


@attrs.frozen
class Unanswerable:
    """A request that we do not understand. It waits for ``complaint``."""

    request_id: str
    subtype: str
    by_hook: bool = False


@attrs.frozen
class Unreadable:
    """A request that is no JSON to us: it waits for an answer, and nobody knows for which."""


@attrs.frozen
class Answered:
    """One of our own requests; ``error``: empty if it was done."""

    request_id: str
    error: str


@attrs.frozen
class TurnEnded:
    outcome: str
    """``done``, ``interrupted`` or ``failed``."""
    error: str
    """Of one that failed."""
    usage: Usage
    cost_usd: int | None
    """Of the process so far, in millionths of a dollar, rounded up; ``None``: not said."""


Event: TypeAlias = Text | ToolStarted | ToolEnded | Asked | Withdrawn | Unanswerable | Unreadable | Answered | TurnEnded


class Reader:
    """One process's lines."""

    def __init__(self) -> None:
        self.ignored = 0
        """Lines that meant nothing to us."""
        self._streamed: set[str] = set()
        """Messages of this turn whose text came in pieces."""
        self._message = ""
        self._uses: dict[str, str] = {}

    def read(self, line: bytes) -> list[Event]:
        """What a line says: nothing, one thing or several."""
        line = line.strip()
        if not line.startswith(b"{"):  # some builds print what is no message
            self.ignored += bool(line)
            return []
        try:
            message = orjson.loads(line)
        except orjson.JSONDecodeError:
            self.ignored += 1
            # Half of a surrogate pair, or more levels than we read.
            return [Unreadable()] if b'"control_request"' in line else []
        match message.get("type"):
            case "stream_event":
                return self._stream_event(message)
            case "assistant":
                return self._assistant(message)
            case "user":
                return self._user(message)
            case "result":
                return self._result(message)
            case "control_request":
                return _request(message)
            case "control_cancel_request":
                return [Withdrawn(_text(message.get("request_id")))]
            case "control_response":
                answer = _object(message.get("response"))
                error = "" if answer.get("subtype") == "success" else _text(answer.get("error")) or "it failed"
                return [Answered(_text(answer.get("request_id")), error)]
        self.ignored += 1
        return []

    def _stream_event(self, message: dict[str, Any]) -> list[Event]:
        if message.get("parent_tool_use_id") is not None:
            return []
        event = _object(message.get("event"))
        if event.get("type") == "message_start":
            self._message = _text(_object(event.get("message")).get("id"))
        delta = _object(event.get("delta"))
        if event.get("type") != "content_block_delta" or delta.get("type") != "text_delta":
            return []
        text = _text(delta.get("text"))
        if not text:
            return []
        self._streamed.add(self._message)
        return [Text(text)]

    def _assistant(self, message: dict[str, Any]) -> list[Event]:
        inner = _object(message.get("message"))
        came = _text(inner.get("id")) in self._streamed or message.get("parent_tool_use_id") is not None
        found: list[Event] = []
        for block in _blocks(inner.get("content")):
            if block.get("type") == "text" and not came and _text(block.get("text")):
                found.append(Text(_text(block["text"])))
            elif block.get("type") == "tool_use":
                use, name = _text(block.get("id")), _text(block.get("name"))
                if not use or not name or use in self._uses:
                    continue
                if len(self._uses) >= _KEPT_USES:
                    del self._uses[next(iter(self._uses))]
                self._uses[use] = name
                found.append(ToolStarted(use, name, _object(block.get("input"))))
        return found

    def _user(self, message: dict[str, Any]) -> list[Event]:
        found: list[Event] = []
        for block in _blocks(_object(message.get("message")).get("content")):
            name = self._uses.get(_text(block.get("tool_use_id")))
            if block.get("type") == "tool_result" and name is not None:
                failed = block.get("is_error") is True
                found.append(ToolEnded(_text(block["tool_use_id"]), name, _output(block.get("content")), failed))
        return found

    def _result(self, message: dict[str, Any]) -> list[Event]:
        self._streamed.clear()
        self._message = ""
        interrupted = _text(message.get("terminal_reason")).startswith("aborted")
        failed = message.get("is_error") is True or message.get("subtype") != "success"
        outcome = "interrupted" if interrupted else "failed" if failed else "done"
        error = _error(message) if outcome == "failed" else ""
        return [TurnEnded(outcome, error, _usage(message.get("usage")), micro_usd(message.get("total_cost_usd")))]


def _request(message: dict[str, Any]) -> list[Event]:
    request_id, request = _text(message.get("request_id")), _object(message.get("request"))
    subtype = _text(request.get("subtype"))
    if not request_id:
        return []
    by_hook = subtype == "hook_callback" and request.get("callback_id") == HOOK
    if subtype == "can_use_tool":
        tool, params = request.get("tool_name"), request.get("input")
    elif by_hook:
        told = _object(request.get("input"))
        tool, params = told.get("tool_name"), told.get("tool_input")
    else:
        return [Unanswerable(request_id, subtype[:100])]
    if not isinstance(tool, str) or not tool or not isinstance(params, dict):
        return [Unanswerable(request_id, subtype, by_hook)]
    return [Asked(request_id, _text(request.get("tool_use_id")) or request_id, tool, params, by_hook)]


def _error(message: dict[str, Any]) -> str:
    errors = message.get("errors")
    told = "; ".join(filter(None, map(_text, errors))) if isinstance(errors, list) else ""
    subtype = _text(message.get("subtype"))
    return (told or _text(message.get("result")) or (subtype if subtype != "success" else "") or "it failed")[:2_000]


def _usage(value: Any) -> Usage:
    told = _object(value)
    counts = {
        "input_tokens": _count(told.get("input_tokens")),
        "output_tokens": _count(told.get("output_tokens")),
        "cache_read": _count(told.get("cache_read_input_tokens")),
        "cache_write": _count(told.get("cache_creation_input_tokens")),
    }
    return Usage(**counts, total=min(sum(counts.values()), MAX_COUNT))


def micro_usd(dollars: Any) -> int | None:
    """Dollars -> millionths, rounded up; ``None`` for what is no amount."""
    if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not math.isfinite(dollars) or dollars < 0:
        return None
    # Rounded first: 0.07 dollars are 70000 millionths, whatever their binary fraction makes of it.
    return min(math.ceil(round(dollars * 1_000_000, 3)), MAX_MICRO_USD)


def _output(content: Any) -> str:
    if isinstance(content, str):
        text = content
    else:
        text = "\n".join(
            _text(block.get("text")) if block.get("type") == "text" else f"[{_text(block.get('type')) or 'something'}]"
            for block in _blocks(content)
        )
    if len(text) <= MAX_OUTPUT:
        return text
    return f"{text[:MAX_OUTPUT]}\n[{len(text) - MAX_OUTPUT} more characters]"


def _count(value: Any) -> int:
    return min(value, MAX_COUNT) if type(value) is int and value > 0 else 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _blocks(value: Any) -> list[dict[str, Any]]:
    return [block for block in value if isinstance(block, dict)] if isinstance(value, list) else []


# What we write: each a line.


def initialization(request_id: str, *, hook_seconds: float) -> bytes:
    """The first line: our hook is called before every use of a tool, and waited for as long as a person may take."""
    matcher = {"matcher": None, "hookCallbackIds": [HOOK], "timeout": math.ceil(hook_seconds)}
    return _control(request_id, {"subtype": "initialize", "hooks": {"PreToolUse": [matcher]}})


def prompt(text: str) -> bytes:
    """A prompt is for Claude. What begins with a slash would be a command to Claude Code."""
    if text.startswith("/"):
        text = f" {text}"
    message = {"role": "user", "content": text}
    return _line({"type": "user", "message": message, "parent_tool_use_id": None, "session_id": "default"})


def interruption(request_id: str) -> bytes:
    return _control(request_id, {"subtype": "interrupt"})


def allowance(asked: Asked) -> bytes:
    if asked.by_hook:
        return _answer(asked.request_id, _hook_output("allow", "allowed"))
    return _answer(asked.request_id, {"behavior": "allow", "updatedInput": asked.params})


def refusal(asked: Asked, reason: str) -> bytes:
    """``reason`` is told to Claude."""
    if asked.by_hook:
        return _answer(asked.request_id, _hook_output("deny", reason))
    return _answer(asked.request_id, {"behavior": "deny", "message": reason})


def complaint(request: Unanswerable, error: str) -> bytes:
    if request.by_hook:  # an error would count as no objection
        return _answer(request.request_id, _hook_output("deny", error))
    answer = {"subtype": "error", "request_id": request.request_id, "error": error}
    return _line({"type": "control_response", "response": answer})


def _hook_output(decision: str, reason: str) -> dict[str, Any]:
    output = {"hookEventName": "PreToolUse", "permissionDecision": decision, "permissionDecisionReason": reason}
    return {"hookSpecificOutput": output}


def _answer(request_id: str, response: dict[str, Any]) -> bytes:
    answer = {"subtype": "success", "request_id": request_id, "response": response}
    return _line({"type": "control_response", "response": answer})


def _control(request_id: str, request: dict[str, Any]) -> bytes:
    return _line({"type": "control_request", "request_id": request_id, "request": request})


def _line(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value) + b"\n"
