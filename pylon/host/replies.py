"""What an agent understands of the reply to its prompt: a thought, actions that it proposes, when to look again. Pure.

A reply is one JSON object::

    {"actions": [{"do": "post", "text": "Good morning"}], "thought": "it is early", "review_minutes": 60}

``do`` names the action (``ActionKind``), the rest of an entry are its fields:

=================  ==========================================  ===========================
``do``             wants                                       takes
=================  ==========================================  ===========================
post               text
reply              about, text
react              about                                       text (an emoji; default +)
dm                 about or to, text
request_payment    about or to, sats                           text
zap                about or to, sats                           text
pay_invoice        invoice                                     about, sats
update_goal        goal, and one of progress, status, text     all three
add_memory         text
set_heartbeat      seconds
nothing
=================  ==========================================  ===========================

``about`` is the number of the message in the prompt that an action answers; where there is only one it need not be
named. ``to`` is a public key, npub or hex. ``goal`` is a goal's id as the prompt shows it, ``progress`` whole percent,
``status`` one of ``STATUSES``; what is completed has no progress but 100.

Rules
-----
1. Words and code fences around the one object are passed over. Two objects are ambiguous, so they are none.
2. An entry is taken as a whole or left out as a whole, with a word why; nothing is guessed, cut or evaluated.
3. What is not allowed, or has no number in this prompt, is left out. So is what says the same again, a second answer of
   one kind to one message, and whatever is more than ``max_steps``.
4. Whatever is proposed here is a wish: the policy and the purse decide.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeGuard

import attrs
import orjson

from protocols.nip19 import Nip19Error, decode_public_key, encode_npub
from protocols.nip_sa import MAX_SATS
from pylon.host.settings import ActionKind

MAX_REPLY_CHARS = 200_000
MAX_TEXT_CHARS = 2_000
"""Of a post, a message, a memory, a comment."""
MAX_THOUGHT_CHARS = 500
"""A longer thought is cut: it is only shown."""
MAX_REVIEW_MINUTES = 7 * 1_440
MAX_SECONDS = 30 * 86_400
STATUSES = ("active", "paused", "completed", "cancelled")
TEMPERATURE = "0.3"
"""The ``temperature`` to ask a provider for, beside the schema. Above it the embedded model now and then ends in a row
of emojis that no limit of tokens holds: at 0.5, 1 reply in 20 does not read."""

_MAX_ENTRIES = 64
"""Entries that are looked at."""
_MAX_REACTION_CHARS = 32
_MAX_INVOICE_CHARS = 2_000
_MAX_GOAL_CHARS = 128

# What the grammar allows.
_TOKENS_EACH = 130
"""Tokens of an action. What is bought must end before its tokens do, or nothing of it reads."""
_MOST_ACTIONS = 4
_LEAST_TEXT, _MOST_TEXT = 60, 500
_THOUGHT = 80
_KNOWN_GOALS_CHARS = 100
_REACTIONS = ("+", "❤", "👍", "🤙", "😂", "🔥")

ANSWERS = frozenset(
    {
        ActionKind.REPLY,
        ActionKind.REACT,
        ActionKind.DM,
        ActionKind.REQUEST_PAYMENT,
        ActionKind.ZAP,
        ActionKind.PAY_INVOICE,
    }
)
"""What can be done about a message."""


class ReplyInvalid(ValueError):
    """A text that is no reply; the agent does nothing. The message quotes nothing of it."""


@attrs.frozen(kw_only=True)
class Proposed:
    """One action that a model wishes for. Fields that its kind does not have are empty."""

    kind: ActionKind
    text: str = attrs.field(default="", repr=False)
    to: str = ""
    """An npub, or empty: whoever wrote the message ``about``."""
    about: int = 0
    """Number of the message in the prompt; 0: none."""
    sats: int = 0
    """Whole sats; 0 where none are named."""
    invoice: str = attrs.field(default="", repr=False)
    """Lower case; looks like BOLT 11, not decoded yet."""
    goal: str = ""
    """A goal's id."""
    progress: float | None = None
    """From 0 to 1."""
    status: str = ""
    """One of ``STATUSES``, or empty: as it is."""
    seconds: int = 0

    def words(self) -> tuple[str, ...]:
        """Everything in it that a model has worded, blanks evened out: for those who look for what must not be said."""
        worded = (self.text, self.to, self.invoice, self.goal)
        return tuple(" ".join(said.split()) for said in worded if said)


@attrs.frozen(kw_only=True)
class Reply:
    thought: str = attrs.field(default="", repr=False)
    actions: tuple[Proposed, ...] = ()
    """Never one of the kind *nothing*: to do nothing is to propose nothing."""
    review_seconds: int | None = None
    """When to look at the goals again that were due; ``None``: not said."""
    dropped: tuple[str, ...] = ()
    """What was left out, and why; quotes nothing."""

    def to_json(self) -> str:
        """A text that ``parse`` reads back, for scripted models."""
        found: dict[str, Any] = {"actions": [_written(action) for action in self.actions], "thought": self.thought}
        if self.review_seconds is not None:
            found["review_minutes"] = self.review_seconds // 60
        return orjson.dumps(found).decode()


# --- what is asked for ----------------------------------------------------------------------------------------


def schema(
    allowed: Collection[ActionKind],
    max_steps: int,
    references: int,
    *,
    first: Collection[ActionKind] = ANSWERS,
    goals: Collection[str] | None = None,
    keys: bool = True,
    seconds: tuple[int, int] = (1, MAX_SECONDS),
    review: int = MAX_REVIEW_MINUTES,
    tokens: int = 400,
) -> str:
    """A JSON schema of the replies that ``parse`` takes, for a backend that enforces it as a grammar.

    It is narrower than what ``parse`` takes, so that small models find their way: what cannot be meant is not offered.
    To do nothing is an empty list. ``prompt.schema`` fills in the rest from a scene.

    :param references: how many messages the prompt numbers.
    :param first: if anything is done, one of these comes first, where any of them is allowed.
    :param goals: ids of the goals that may be updated; ``None``: any.
    :param keys: whether a public key may be named; else only who wrote a message can be spoken to.
    :param seconds: the shortest and the longest heartbeat.
    :param review: the longest time, in minutes, for which goals may be put off; 0: not asked for.
    :param tokens: the longest reply that is bought; texts are kept so short that it holds them.
    """
    kinds = [kind for kind in ActionKind if kind in allowed and _makes_sense(kind, references, goals, keys, seconds)]
    begin = [kind for kind in kinds if kind in first] or kinds
    most = max(1, min(max_steps, _MOST_ACTIONS, tokens // _TOKENS_EACH))
    longest = min(max(tokens * 2 // 5, _LEAST_TEXT), _MOST_TEXT)
    definitions = {
        "text": {"type": "string", "minLength": 1, "maxLength": longest},
        "note": {"type": "string", "minLength": 1, "maxLength": longest // 2},
        "about": _whole(1, references),
        "to": {"type": "string", "minLength": 63, "maxLength": 64},
        "sats": _whole(1, 1_000_000),
        "goal": _goal_schema(goals),
        "seconds": _whole(*seconds),
        **{f"do_{kind.value}": _entry_schema(kind, references, keys) for kind in kinds},
        "first": _any_of(begin),
        "more": {"anyOf": [_ref("first"), *_any_of([kind for kind in kinds if kind not in begin])["anyOf"]]},
    }
    properties: dict[str, Any] = {}
    if kinds and max_steps > 0:
        properties["actions"] = {"anyOf": [{"const": []}, *(_tuple(length) for length in range(1, most + 1))]}
    properties["thought"] = {"type": "string", "maxLength": _THOUGHT}
    required = list(properties)
    if review > 0:
        properties["review_minutes"] = _whole(0, min(review, MAX_REVIEW_MINUTES))
    found = _object(properties, required)
    if "actions" not in properties:
        return orjson.dumps(found).decode()
    text = orjson.dumps({**found, "$defs": definitions}).decode()
    used = {name: value for name, value in definitions.items() if f'"#/$defs/{name}"' in text}
    return orjson.dumps({**found, "$defs": used}).decode()


def _makes_sense(
    kind: ActionKind, references: int, goals: Collection[str] | None, keys: bool, seconds: tuple[int, int]
) -> bool:
    match kind:
        case ActionKind.REPLY | ActionKind.REACT:
            return references > 0
        case ActionKind.DM | ActionKind.REQUEST_PAYMENT | ActionKind.ZAP:
            return references > 0 or keys
        case ActionKind.UPDATE_GOAL:
            return goals is None or bool(goals)
        case ActionKind.SET_HEARTBEAT:
            return seconds[0] < seconds[1]
        case _:
            return kind is not ActionKind.NOTHING


def _entry_schema(kind: ActionKind, references: int, keys: bool) -> dict[str, Any]:
    text, note, about, to, sats = (_ref(name) for name in ("text", "note", "about", "to", "sats"))
    whom = {"about": about} if references > 0 else {"to": to}
    other = {"to": to} if references > 0 and keys else {}
    wants: dict[str, Any]
    takes: dict[str, Any] = {}
    match kind:
        case ActionKind.POST:
            wants = {"text": text}
        case ActionKind.ADD_MEMORY:
            wants = {"text": note}
        case ActionKind.REPLY:
            wants = {"about": about, "text": text}
        case ActionKind.REACT:
            wants = {"about": about, "text": {"enum": list(_REACTIONS)}}
        case ActionKind.DM:
            wants, takes = {**whom, "text": text}, other
        case ActionKind.REQUEST_PAYMENT | ActionKind.ZAP:
            wants, takes = {**whom, "sats": sats, "text": note}, other
        case ActionKind.PAY_INVOICE:
            wants, takes = {"invoice": {"type": "string", "minLength": 20, "maxLength": 1_000}}, {"sats": sats}
        case ActionKind.UPDATE_GOAL:
            # With a free choice of status, a small model completes what it has hardly begun.
            named = {"do": {"const": kind.value}, "goal": _ref("goal")}
            on = {**named, "progress": _whole(0, 100)}
            done = {**named, "progress": {"const": 100}, "status": {"const": "completed"}}
            return {"anyOf": [_object({**on, "text": note}, list(on)), _object(done, list(done))]}
        case ActionKind.SET_HEARTBEAT:
            wants = {"seconds": _ref("seconds")}
        case _:
            wants = {}
    return _object({"do": {"const": kind.value}, **wants, **takes}, ["do", *wants])


def _goal_schema(goals: Collection[str] | None) -> dict[str, Any]:
    if goals is None or sum(len(orjson.dumps(goal).decode()) + 1 for goal in goals) > _KNOWN_GOALS_CHARS:
        return {"type": "string", "minLength": 1, "maxLength": _MAX_GOAL_CHARS}
    return {"enum": list(goals)}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _any_of(kinds: Collection[ActionKind]) -> dict[str, Any]:
    return {"anyOf": [_ref(f"do_{kind.value}") for kind in kinds]}


def _tuple(length: int) -> dict[str, Any]:
    """An array of so many actions. llama.cpp knows no other way to say something of the first."""
    items = [_ref("first"), *([_ref("more")] * (length - 1))]
    return {"type": "array", "prefixItems": items, "minItems": length, "maxItems": length}


def _object(properties: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _whole(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


# --- what is understood ---------------------------------------------------------------------------------------


def parse(
    text: str,
    allowed: Collection[ActionKind],
    max_steps: int,
    references: int,
    *,
    goals: Collection[str] | None = None,
) -> Reply:
    """The reply in ``text``. Parameters as for ``schema``. Raises ``ReplyInvalid``, and nothing else."""
    found = _one_object(text)
    entries = found.get("actions", [])
    if not isinstance(entries, list) or not found.keys() & {"actions", "thought", "review_minutes"}:
        raise ReplyInvalid("it is a JSON object, but no reply")
    reader = _Reader(references, goals)
    actions: list[Proposed] = []
    dropped: list[str] = []
    for place, entry in enumerate(entries[:_MAX_ENTRIES], 1):
        try:
            action = reader.read(entry, allowed)
        except _Malformed as error:
            dropped.append(f"action {place}: {error}")
            continue
        if action is None:
            continue
        if any(_same(action, other) for other in actions):
            dropped.append(f"action {place}: {action.kind.value}: once more")
            continue
        actions.append(action)
    if len(actions) > max(0, max_steps):
        dropped.append(f"{len(actions) - max(0, max_steps)} more than the {max(0, max_steps)} that one tick may do")
    if len(entries) > _MAX_ENTRIES:
        dropped.append(f"all after action {_MAX_ENTRIES}")
    review, minutes = None, found.get("review_minutes")
    if _is_whole(minutes) and 0 <= minutes <= MAX_REVIEW_MINUTES:
        review = minutes * 60
    elif minutes is not None:
        dropped.append(f"review_minutes: not a whole number from 0 to {MAX_REVIEW_MINUTES}")
    thought = found.get("thought")
    return Reply(
        thought=_plain(thought)[:MAX_THOUGHT_CHARS].strip() if isinstance(thought, str) else "",
        actions=tuple(actions[: max(0, max_steps)]),
        review_seconds=review,
        dropped=tuple(dropped),
    )


class _Malformed(Exception):
    """Why an entry is left out; quotes nothing of it."""


class _Reader:
    """Reads entries, each as a whole."""

    def __init__(self, references: int, goals: Collection[str] | None) -> None:
        self._references = references
        self._goals = goals

    def read(self, entry: object, allowed: Collection[ActionKind]) -> Proposed | None:
        """``None``: nothing is to be done."""
        if not isinstance(entry, dict):
            raise _Malformed("it is no object")
        name = entry.get("do")
        if not isinstance(name, str) or name not in ActionKind.__members__.values():
            raise _Malformed("no such action")
        kind = ActionKind(name)
        if kind is ActionKind.NOTHING:
            return None
        if kind not in allowed:
            raise _Malformed(f"{kind.value} is not allowed")
        try:
            return Proposed(kind=kind, **_FIELDS[kind](self, entry))
        except _Malformed as error:
            raise _Malformed(f"{kind.value}: {error}") from None

    def said(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": self._text(entry, wanted=True)}

    def answer(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {"about": self._about(entry), **self.said(entry)}

    def reaction(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        text = self._text(entry, wordless=True) or "+"
        if len(text) > _MAX_REACTION_CHARS or len(text.split()) != 1:
            raise _Malformed("text: not an emoji")
        return {"about": self._about(entry), "text": text}

    def message(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._whom(entry), **self.said(entry)}

    def amount(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._whom(entry), "sats": _number(entry, "sats", 1, MAX_SATS), "text": self._text(entry)}

    def payment(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        invoice = entry.get("invoice")
        if not isinstance(invoice, str) or len(invoice) > _MAX_INVOICE_CHARS:
            raise _Malformed("invoice: not there")
        invoice = invoice.strip().lower().removeprefix("lightning:")
        if _INVOICE.fullmatch(invoice) is None:
            raise _Malformed("invoice: not a Lightning invoice")
        about = {"about": self._about(entry)} if entry.get("about") is not None else {}
        sats = {"sats": _number(entry, "sats", 1, MAX_SATS)} if entry.get("sats") is not None else {}
        return {"invoice": invoice, **about, **sats}

    def goal(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        name, progress, status = (entry.get(field) for field in ("goal", "progress", "status"))
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_GOAL_CHARS or _plain(name) != name:
            raise _Malformed("goal: not the id of a goal")
        if self._goals is not None and name not in self._goals:
            raise _Malformed("goal: there is none with this id")
        found: dict[str, Any] = {}
        if progress is not None:
            found["progress"] = _number(entry, "progress", 0, 100) / 100
        if status is not None:
            if status not in STATUSES:
                raise _Malformed(f"status: not one of {', '.join(STATUSES)}")
            found["status"] = status
        if found.get("status") == "completed" and found.get("progress", 1.0) < 1.0:
            raise _Malformed("status: completed, but not all done")
        if text := self._text(entry):
            found["text"] = text
        if not found:
            raise _Malformed("it changes nothing")
        return {"goal": name, **found}

    def heartbeat(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {"seconds": _number(entry, "seconds", 1, MAX_SECONDS)}

    def _about(self, entry: Mapping[str, Any]) -> int:
        if entry.get("about") is None and self._references == 1:
            return 1
        if self._references < 1:
            raise _Malformed("about: there are no messages")
        return _number(entry, "about", 1, self._references)

    def _whom(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Whom it speaks to. Where it says so itself, the message that it answers is of less weight."""
        to = entry.get("to")
        if to in (None, ""):
            return {"about": self._about(entry)}
        about = {"about": self._about(entry)} if entry.get("about") is not None else {}
        try:
            if not isinstance(to, str) or len(to) > _MAX_GOAL_CHARS:
                raise Nip19Error("no text")
            return {**about, "to": encode_npub(decode_public_key(to.strip()))}
        except Nip19Error:
            raise _Malformed("to: not a public key") from None

    def _text(self, entry: Mapping[str, Any], *, wanted: bool = False, wordless: bool = False) -> str:
        value = entry.get("text")
        if value is None and not wanted:
            return ""
        if not isinstance(value, str):
            raise _Malformed("text: not there")
        text = _plain(value).strip()
        if len(text) > MAX_TEXT_CHARS:
            raise _Malformed(f"text: longer than {MAX_TEXT_CHARS:,} characters")
        if wanted and not text:
            raise _Malformed("text: empty")
        if text and not wordless and all(unicodedata.category(char)[0] in "PZC" for char in text):
            raise _Malformed("text: no words")  # "...", as it stands in examples
        return text


_FIELDS: Mapping[ActionKind, Callable[[_Reader, Mapping[str, Any]], dict[str, Any]]] = {
    ActionKind.POST: _Reader.said,
    ActionKind.REPLY: _Reader.answer,
    ActionKind.REACT: _Reader.reaction,
    ActionKind.DM: _Reader.message,
    ActionKind.REQUEST_PAYMENT: _Reader.amount,
    ActionKind.ZAP: _Reader.amount,
    ActionKind.PAY_INVOICE: _Reader.payment,
    ActionKind.UPDATE_GOAL: _Reader.goal,
    ActionKind.ADD_MEMORY: _Reader.said,
    ActionKind.SET_HEARTBEAT: _Reader.heartbeat,
}
_INVOICE = re.compile(r"ln[a-z0-9]{10,}")
_MARKS = re.compile(r'\\.|["{}]', re.DOTALL)


def _one_object(text: str) -> dict[str, Any]:
    """The one JSON object that ``text`` is, or has among other words."""
    if len(text) > MAX_REPLY_CHARS:
        raise ReplyInvalid(f"it is longer than {MAX_REPLY_CHARS:,} characters")
    try:
        whole = orjson.loads(text)
    except ValueError:
        pass
    else:
        if not isinstance(whole, dict):
            raise ReplyInvalid("it is JSON, but no object")
        return whole
    found = []
    for start, end in _braced(text):
        try:
            found.append(orjson.loads(text[start:end]))
        except ValueError:
            continue
    if len(found) > 1:
        raise ReplyInvalid("there is more than one JSON object in it")
    if not found:
        raise ReplyInvalid("there is no JSON object in it")
    return dict(found[0])


def _braced(text: str) -> list[tuple[int, int]]:
    """Where the outermost braces open and close; those within quotes do not count, once one is open."""
    spans, depth, start, quoted = [], 0, 0, False
    for mark in _MARKS.finditer(text):
        match mark[0]:
            case '"' if depth:
                quoted = not quoted
            case "{" if not quoted:
                start = start if depth else mark.start()
                depth += 1
            case "}" if depth and not quoted:
                depth -= 1
                if not depth:
                    spans.append((start, mark.end()))
            case _:
                pass
    return spans


def _same(one: Proposed, other: Proposed) -> bool:
    """Whether ``other`` has done it already. Small models like to repeat themselves, and money goes but once."""
    if one.kind is not other.kind:
        return False
    if one.kind in ANSWERS and one.kind is not ActionKind.PAY_INVOICE:
        return (one.about, one.to) == (other.about, other.to)
    if one.kind is ActionKind.UPDATE_GOAL:
        return one.goal == other.goal
    return one.kind is ActionKind.SET_HEARTBEAT or (one.text, one.invoice) == (other.text, other.invoice)


def _number(entry: Mapping[str, Any], field: str, least: int, most: int) -> int:
    value = entry.get(field)
    if not _is_whole(value) or not least <= value <= most:
        raise _Malformed(f"{field}: not a whole number from {least} to {most}")
    return value


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(text: str) -> str:
    """Without control characters; lines and tabs stay."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs"))


def _written(action: Proposed) -> dict[str, Any]:
    fields = attrs.asdict(action)
    kind, progress = fields.pop("kind"), fields.pop("progress")
    found = {"do": kind.value, **{name: value for name, value in fields.items() if value}}
    return found if progress is None else {**found, "progress": round(progress * 100)}
