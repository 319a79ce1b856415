"""What goes through the Claude tunnel: JSON texts over WebSocket, told apart by ``type``. Values in, text out, no I/O.

The names and fields are those of the original tunnel; what is marked *ours* is added, and can be left out by whoever
does not know it. docs/tunnel.md describes the protocol.

Reading is lenient: what is not known (a type, a field) is ignored and told, so that it can be counted; a field of the
wrong type, or beyond a bound, refuses that one message. Writing is strict: what we would refuse is not written.

Amounts of money are millionths of a US dollar, as in ``[claude] max_cost_usd``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import attrs
import orjson

PROTOCOL = 1
"""Ours, in ``tunnel_connected``: raised when old and new no longer understand each other."""
CAPABILITY = "claude"

MAX_FRAME_BYTES = 1 << 20
MAX_SESSION_ID = 128
MAX_NAME = 200
"""Characters of a model's, a tool's or an approval's name."""
MAX_TEXT = 262_144
"""Characters of a prompt, of a piece of text, of a tool's result."""
MAX_NOTE = 4_000
"""Characters of what is said of an error."""
MAX_PATH = 4_096
MAX_LIST = 1_000
MAX_MICRO_USD = 10**12
MAX_COUNT = 2**53 - 1
"""The largest integer that every reader of JSON knows exactly."""
MAX_DEPTH = 64
"""Of a tool's parameters."""

CHUNK_TYPES = ("text", "tool_start", "tool_output", "tool_done", "done", "error")
SESSION_STATES = ("starting", "running", "waiting", "idle", "paused", "ended")
"""Ours. *waiting*: for an approval; *idle*: for a prompt."""
APPROVAL_OUTCOMES = ("approved", "denied", "timed_out", "withdrawn")
"""Ours. *withdrawn*: the run ended before anybody answered."""

_SESSION_ID = re.compile(rf"[A-Za-z0-9._:~-]{{1,{MAX_SESSION_ID}}}")
_LONGEST_REASON = 200


class MessageRefused(ValueError):
    """A text that is no message, or a message of a known type that does not have its form.

    ``session_id``: the session that it was for, if it said so. The reason may be told to the sender.
    """

    def __init__(self, reason: str, session_id: str | None = None) -> None:
        super().__init__(reason[:_LONGEST_REASON])
        self.reason = reason[:_LONGEST_REASON]
        self.session_id = session_id


# What may stand in a field.


@attrs.frozen
class _Shape:
    read: Callable[[Any, set[str]], Any]
    """From JSON; adds names of fields that it does not know to the set. Raises ``_Wrong``."""
    write: Callable[[Any], Any] = lambda value: value


class _Wrong(ValueError):
    pass


def _text(most: int, least: int = 0) -> _Shape:
    def read(value: Any, _: set[str]) -> str:
        if type(value) is not str:
            raise _Wrong("a text is wanted")
        if not least <= len(value) <= most:
            raise _Wrong(f"a text of {least} to {most} characters is wanted")
        return value

    return _Shape(read)


def _integer(most: int = MAX_COUNT) -> _Shape:
    def read(value: Any, _: set[str]) -> int:
        if type(value) is not int or not 0 <= value <= most:
            raise _Wrong(f"a whole number from 0 to {most} is wanted")
        return value

    return _Shape(read)


def _one_of(*choices: str) -> _Shape:
    def read(value: Any, _: set[str]) -> str:
        if type(value) is not str or value not in choices:
            raise _Wrong(f"one of {', '.join(choices)} is wanted")
        return value

    return _Shape(read)


def _list(item: _Shape) -> _Shape:
    def read(value: Any, ignored: set[str]) -> tuple[Any, ...]:
        if type(value) not in (list, tuple) or len(value) > MAX_LIST:
            raise _Wrong(f"a list of at most {MAX_LIST} is wanted")
        return tuple(item.read(entry, ignored) for entry in value)

    return _Shape(read, lambda value: [item.write(entry) for entry in value])


def _object(kind: type[Any]) -> _Shape:
    def read(value: Any, ignored: set[str]) -> Any:
        if not isinstance(value, dict):
            raise _Wrong("an object is wanted")
        return _read_fields(kind, value, ignored)

    return _Shape(read, lambda value: _write_fields(value))


def _read_session_id(value: Any, _: set[str]) -> str:
    if type(value) is not str or _SESSION_ID.fullmatch(value) is None:
        raise _Wrong(f"1 to {MAX_SESSION_ID} of the characters A-Z a-z 0-9 . _ : ~ - are wanted")
    return value


def _read_flag(value: Any, _: set[str]) -> bool:
    if type(value) is not bool:
        raise _Wrong("true or false is wanted")
    return value


def _read_json(value: Any, _: set[str]) -> Any:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _Wrong(f"at most {MAX_DEPTH} levels are wanted")
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return value


_ID = _Shape(_read_session_id)
_FLAG = _Shape(_read_flag)
_JSON = _Shape(_read_json)
_NAME = _text(MAX_NAME, 1)
_NAMES = _list(_NAME)
_CONTENT = _text(MAX_TEXT)
_NOTE = _text(MAX_NOTE)
_COUNT = _integer()
_MICRO_USD = _integer(MAX_MICRO_USD)

_WIRE, _ALWAYS = "wire", "always"


def _field(shape: _Shape, *, always: bool = False, **options: Any) -> Any:
    """A field that is in every message, or, with a default, one that may be missing (JSON's null: the same).

    ``always``: written even if it is the default.
    """
    return attrs.field(metadata={_WIRE: shape, _ALWAYS: always}, **options)


def _seq() -> Any:
    """Ours: counts the messages of one session, from 1; ``None``: not said."""
    return _field(_COUNT, default=None, kw_only=True)


# Both ways.


@attrs.frozen
class Ping:
    timestamp: int = _field(_COUNT)
    """The sender's; comes back as it is."""


@attrs.frozen
class Pong:
    timestamp: int = _field(_COUNT)


@attrs.frozen
class Error:
    """Of the connection, not of a session. The codes of our server are in docs/tunnel.md."""

    code: str = _field(_NAME)
    message: str = _field(_NOTE)


# From the page to the machine.


@attrs.frozen
class ToolWish:
    """A tool that the page would have the session use; it can only narrow what the machine allows."""

    name: str = _field(_NAME)
    description: str | None = _field(_text(MAX_NOTE), default=None)
    config: Any = _field(_JSON, default=None)


@attrs.frozen(kw_only=True)
class SessionRequest:
    """What the page wants of a session. Each wish can tighten the machine's rules, none can loosen them."""

    model: str | None = _field(_text(MAX_NAME), default=None)
    """``None`` or empty: the machine's."""
    system_prompt: str | None = _field(_CONTENT, default=None, repr=False)
    initial_prompt: str | None = _field(_CONTENT, default=None, repr=False)
    tools: tuple[ToolWish, ...] = _field(_list(_object(ToolWish)), default=())
    """None named: all that the machine allows."""
    max_cost_usd: int | None = _field(_MICRO_USD, default=None)
    autonomy: str | None = _field(_text(MAX_NAME), default=None)
    approval_required_tools: tuple[str, ...] | None = _field(_NAMES, default=None)
    blocked_tools: tuple[str, ...] = _field(_NAMES, default=())
    """Ours."""
    cwd: str | None = _field(_text(MAX_PATH), default=None)
    """Ours: a directory within the machine's, absolute or from there."""


@attrs.frozen
class CreateSession:
    session_id: str = _field(_ID)
    request: SessionRequest = _field(_object(SessionRequest))


@attrs.frozen
class Prompt:
    session_id: str = _field(_ID)
    content: str = _field(_CONTENT, repr=False)


@attrs.frozen
class ToolApprovalResponse:
    session_id: str = _field(_ID)
    approved: bool = _field(_FLAG)
    approval_id: str | None = _field(_NAME, default=None)
    """Ours: which one is answered. ``None``: the oldest that waits."""


@attrs.frozen
class Stop:
    session_id: str = _field(_ID)


@attrs.frozen
class Pause:
    session_id: str = _field(_ID)


@attrs.frozen
class Resume:
    session_id: str = _field(_ID)


@attrs.frozen
class ListSessions:
    """Ours: asks for ``Sessions``."""


@attrs.frozen
class Replay:
    """Ours: asks for the session's messages with a ``seq`` above ``after`` once more, as far back as they are kept."""

    session_id: str = _field(_ID)
    after: int = _field(_COUNT, default=0)


# From the machine to the page.


@attrs.frozen
class PendingApproval:
    approval_id: str = _field(_NAME)
    tool: str = _field(_NAME)
    params: Any = _field(_JSON, default=None, repr=False)
    expires_in: int | None = _field(_COUNT, default=None)
    """Seconds until it counts as denied."""


@attrs.frozen(kw_only=True)
class SessionInfo:
    """One session, as it stands."""

    session_id: str = _field(_ID)
    state: str = _field(_one_of(*SESSION_STATES))
    last_seq: int = _field(_COUNT, always=True, default=0)
    """Of the newest message of the session."""
    first_seq: int = _field(_COUNT, default=0)
    """Of the oldest that ``Replay`` can bring; 0: there is none."""
    cost_usd: int = _field(_MICRO_USD, always=True, default=0)
    model: str | None = _field(_text(MAX_NAME), default=None)
    autonomy: str | None = _field(_NAME, default=None)
    max_cost_usd: int | None = _field(_MICRO_USD, default=None)
    cwd: str | None = _field(_text(MAX_PATH), default=None)
    """From the machine's own directory, such as ``.`` or ``docs``."""
    approvals: tuple[PendingApproval, ...] = _field(_list(_object(PendingApproval)), default=())


@attrs.frozen
class TunnelConnected:
    """The machine's first message, after every connect."""

    version: str = _field(_NAME)
    """Of Pylon."""
    capabilities: tuple[str, ...] = _field(_NAMES, always=True, default=(CAPABILITY,))
    protocol: int = _field(_COUNT, always=True, default=PROTOCOL)
    """Ours. A server that speaks another answers ``Error`` with the code ``version``."""
    sessions: tuple[SessionInfo, ...] = _field(_list(_object(SessionInfo)), always=True, default=())
    """Ours: those that live, all of them."""


@attrs.frozen
class TunnelDisconnected:
    """From the server to the page: the machine is gone; it may come back, with its sessions."""

    reason: str | None = _field(_NOTE, default=None)


@attrs.frozen
class SessionCreated:
    """What was made of the wishes is told in *ours*: the rules that hold."""

    session_id: str = _field(_ID)
    model: str | None = _field(_text(MAX_NAME), default=None)
    autonomy: str | None = _field(_NAME, default=None)
    max_cost_usd: int | None = _field(_MICRO_USD, default=None)
    cwd: str | None = _field(_text(MAX_PATH), default=None)
    allowed_tools: tuple[str, ...] | None = _field(_NAMES, default=None)
    """``None``: all that are not blocked."""
    blocked_tools: tuple[str, ...] = _field(_NAMES, default=())
    approval_required_tools: tuple[str, ...] = _field(_NAMES, default=())
    refused: tuple[str, ...] = _field(_list(_NOTE), default=())
    """Wishes that would have loosened the rules, in words."""
    seq: int | None = _seq()


@attrs.frozen
class SessionError:
    session_id: str = _field(_ID)
    error: str = _field(_NOTE)
    seq: int | None = _seq()


@attrs.frozen(kw_only=True)
class ToolUse:
    name: str = _field(_NAME)
    params: Any = _field(_JSON, default=None, repr=False)
    result: Any = _field(_JSON, default=None, repr=False)
    error: str | None = _field(_CONTENT, default=None, repr=False)
    id: str | None = _field(_NAME, default=None)
    """Ours: the same for start, output and end of one use."""


@attrs.frozen(kw_only=True)
class Usage:
    """Tokens, of one turn."""

    input_tokens: int = _field(_COUNT, default=0, always=True)
    output_tokens: int = _field(_COUNT, default=0, always=True)
    cache_read: int = _field(_COUNT, default=0, always=True)
    cache_write: int = _field(_COUNT, default=0, always=True)
    total: int = _field(_COUNT, default=0, always=True)


@attrs.frozen(kw_only=True)
class ChunkBody:
    session_id: str = _field(_ID)
    chunk_type: str = _field(_one_of(*CHUNK_TYPES))
    """*done*: the turn has ended. Text comes once, in pieces."""
    delta: str | None = _field(_CONTENT, default=None, repr=False)
    tool: ToolUse | None = _field(_object(ToolUse), default=None)
    usage: Usage | None = _field(_object(Usage), default=None)
    cost_usd: int | None = _field(_MICRO_USD, default=None)
    """Ours: of the session so far."""


@attrs.frozen
class Chunk:
    chunk: ChunkBody = _field(_object(ChunkBody))
    seq: int | None = _seq()

    @property
    def session_id(self) -> str:
        return self.chunk.session_id


@attrs.frozen
class ToolApproval:
    """The session waits for a yes; no answer in time is a no."""

    session_id: str = _field(_ID)
    tool: str = _field(_NAME)
    params: Any = _field(_JSON, default=None, repr=False)
    approval_id: str | None = _field(_NAME, default=None)
    """Ours."""
    expires_in: int | None = _field(_COUNT, default=None)
    """Ours: seconds."""
    seq: int | None = _seq()


@attrs.frozen
class ToolApprovalClosed:
    """Ours: an approval waits no longer."""

    session_id: str = _field(_ID)
    approval_id: str = _field(_NAME)
    outcome: str = _field(_one_of(*APPROVAL_OUTCOMES))
    seq: int | None = _seq()


@attrs.frozen
class Prompted:
    """Ours: a prompt that the session has taken, so that a page which came later shows it too."""

    session_id: str = _field(_ID)
    content: str = _field(_CONTENT, repr=False)
    seq: int | None = _seq()


@attrs.frozen
class SessionState:
    """Ours: the session's state has changed."""

    session_id: str = _field(_ID)
    state: str = _field(_one_of(*SESSION_STATES))
    reason: str | None = _field(_NOTE, default=None)
    """Why it has ended."""
    cost_usd: int | None = _field(_MICRO_USD, default=None)
    seq: int | None = _seq()


@attrs.frozen
class Sessions:
    """Ours: the answer to ``ListSessions``."""

    sessions: tuple[SessionInfo, ...] = _field(_list(_object(SessionInfo)), always=True, default=())


# What is read, and not acted upon.


@attrs.frozen
class Unused:
    """A type of the original's that no tunnel of Claude sessions uses."""

    type: str


@attrs.frozen
class Unknown:
    """A type that we do not know."""

    type: str


FromPage: TypeAlias = (
    CreateSession | Prompt | ToolApprovalResponse | Stop | Pause | Resume | ListSessions | Replay | Ping | Pong
)
FromMachine: TypeAlias = (
    TunnelConnected
    | SessionCreated
    | SessionError
    | Chunk
    | ToolApproval
    | ToolApprovalClosed
    | Prompted
    | SessionState
    | Sessions
    | Error
    | Ping
    | Pong
)
FromServer: TypeAlias = TunnelDisconnected | Error | Ping | Pong
Message: TypeAlias = FromPage | FromMachine | FromServer

TYPES: Mapping[str, type[Any]] = {
    "ping": Ping,
    "pong": Pong,
    "error": Error,
    "tunnel_connected": TunnelConnected,
    "tunnel_disconnected": TunnelDisconnected,
    "claude_create_session": CreateSession,
    "claude_prompt": Prompt,
    "claude_tool_approval_response": ToolApprovalResponse,
    "claude_stop": Stop,
    "claude_pause": Pause,
    "claude_resume": Resume,
    "claude_list": ListSessions,
    "claude_replay": Replay,
    "claude_session_created": SessionCreated,
    "claude_error": SessionError,
    "claude_chunk": Chunk,
    "claude_tool_approval": ToolApproval,
    "claude_tool_approval_closed": ToolApprovalClosed,
    "claude_prompted": Prompted,
    "claude_session_state": SessionState,
    "claude_sessions": Sessions,
}
UNUSED = frozenset(
    {"start_task", "cancel_task", "send_input", "autopilot_chunk", "tool_start", "tool_done", "tool_progress", "usage"}
    | {"task_done", "task_error"}
)
_NAMES_OF = {kind: name for name, kind in TYPES.items()}

FROM_PAGE: tuple[type[Any], ...] = FromPage.__args__
FROM_MACHINE: tuple[type[Any], ...] = FromMachine.__args__
FROM_SERVER: tuple[type[Any], ...] = FromServer.__args__


@attrs.frozen
class Received:
    message: Message | Unused | Unknown
    ignored: tuple[str, ...] = ()
    """Fields that we do not know, within objects too: each name once."""


def read(frame: str | bytes) -> Received:
    """A text, or its UTF-8. Raises ``MessageRefused``."""
    data = frame if isinstance(frame, bytes) else frame.encode("utf-8", "replace")
    if len(data) > MAX_FRAME_BYTES:
        raise MessageRefused(f"a message has at most {MAX_FRAME_BYTES} bytes")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise MessageRefused("a message is JSON") from None
    if not isinstance(value, dict) or type(name := value.get("type")) is not str:
        raise MessageRefused('a message is an object with a "type"')
    kind = TYPES.get(name)
    if kind is None:
        name = name[:MAX_NAME]
        return Received(Unused(name) if name in UNUSED else Unknown(name))
    ignored: set[str] = set()
    try:
        message = _read_fields(kind, value, ignored)
    except _Wrong as wrong:
        raise MessageRefused(f"{name}: {wrong}", _told_session(value)) from None
    return Received(message, tuple(sorted(ignored - {"type"})))


def write(message: Message) -> str:
    """The text of a message. Raises ``ValueError`` for one that ``read`` would refuse."""
    name = _NAMES_OF[type(message)]
    value = {"type": name} | _write_fields(message)
    try:
        _read_fields(type(message), value, set())
        text = orjson.dumps(value)
    except (_Wrong, orjson.JSONEncodeError) as error:
        raise ValueError(f"{name}: {error}") from None
    if len(text) > MAX_FRAME_BYTES:
        raise ValueError(f"{name}: more than {MAX_FRAME_BYTES} bytes")
    return text.decode()


T = TypeVar("T", bound=attrs.AttrsInstance)


def _read_fields(kind: type[T], value: Mapping[str, Any], ignored: set[str]) -> T:
    found: dict[str, Any] = {}
    fields = attrs.fields(kind)
    for field in fields:
        told = value.get(field.name)
        if told is None:
            if field.default is attrs.NOTHING:
                raise _Wrong(f"{field.name} is missing")
            continue
        try:
            found[field.name] = field.metadata[_WIRE].read(told, ignored)
        except _Wrong as wrong:
            raise _Wrong(f"{field.name}: {wrong}") from None
    ignored.update(str(name)[:MAX_NAME] for name in value if name not in {field.name for field in fields})
    return kind(**found)


def _write_fields(value: Any) -> dict[str, Any]:
    """What is as if it were not said is not said."""
    found = {}
    for field in attrs.fields(type(value)):
        told = getattr(value, field.name)
        if told is not None and (field.metadata[_ALWAYS] or told != field.default):
            found[field.name] = field.metadata[_WIRE].write(told)
    return found


def _told_session(value: Mapping[str, Any]) -> str | None:
    chunk = value.get("chunk")
    told = value.get("session_id") or (chunk.get("session_id") if isinstance(chunk, dict) else None)
    return told if isinstance(told, str) and _SESSION_ID.fullmatch(told) else None
