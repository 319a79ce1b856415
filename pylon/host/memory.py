"""What an agent knows: memories, goals and counts, kept within what a relay takes.

Pure functions on ``AgentState`` (NIP-SA, kind 39201): values in, values out, time is an argument.

Rules
-----
1. A memory fades: its relevance halves every ``HALF_LIFE``. What shares words with the matter at hand comes back.
2. The same thing remembered again is one memory with a count. Words of different origin are never one: what a stranger
   repeats does not become the agent's own, nor the operator's.
3. A state that is too large is *compacted*, and one that is not is left alone. Runs of old, similar observations become
   one line with a count; then the most faded goes first, but what strangers said goes before anything else as long as
   it is more than ``STRANGERS_SHARE`` of the whole: a flood of mentions washes no memory away. What the operator wrote
   is never rewritten, and goes last.
4. Goals outlast memories. Those finished for ``FINISHED_KEPT`` go where memory would have less than half of the room;
   others only where they do not fit even without it: the finished first, oldest first, then the longest descriptions
   are cut.
5. A compacted state fits, whatever was in it, and reads back as it was written.
6. A goal is due when its next review has come; without one, at the next heartbeat.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs

from protocols import nip44
from protocols.nip_sa import MAX_SATS, fraction_of, to_json, whole_of
from protocols.nip_sa_state import MAX_GOALS, MAX_MEMORIES, MAX_TASKS, AgentState, Goal, Memory, TickStats
from pylon.errors import NotFound, UsageError
from pylon.host import schedule
from pylon.host.schedule import Beat
from pylon.money import MSATS_PER_SAT, Msat, ceil_to_sat, sats

DAY = 86_400.0
"""Seconds."""

HALF_LIFE = 7 * DAY
OLD = 7 * DAY
"""Age from which similar observations may become one."""
FINISHED_KEPT = 30 * DAY
MAX_REVIEW = 30 * DAY
"""The furthest that a review is put off. One that is further off was set by a clock that was wrong."""

MAX_MEMORY_CHARS = 1_000
MAX_GOAL_CHARS = 2_000
MAX_NOTE_CHARS = 500
STRANGERS_SHARE = 1 / 4
OTHERS_SHARE = 1 / 4
"""Of a state that is too large: what beliefs, tasks and unknown fields may keep."""

_RELAY_BYTES = 65_536
"""The longest message that common relays take (strfry, nostr-rs-relay), and most others with them."""
_AROUND_BYTES = 1_024
"""An event and its frame, without the content: id, key, signature, tags, some 500 bytes."""


def _longest_text(room: int) -> int:
    """Bytes of the longest text whose NIP-44 payload has at most ``room`` characters."""
    bytes_left = room // 4 * 3 - (1 + 32 + 2 + 32)  # version, nonce, length, authentication code
    return max(length for length in range(0, bytes_left + 1, 32) if nip44.padded_length(length) <= bytes_left)


_LEEWAY = 960
MEMORY_BUDGET = _longest_text(_RELAY_BYTES - _AROUND_BYTES) - _LEEWAY
"""Bytes of a state's JSON: 40,000. NIP-44 pads up to 40,960, base64 makes 54,704 of it; the next step of the padding,
49,152, would be 65,628 and no relay's. The leeway is for numbers that grow after a state was compacted."""

ORIGINS = frozenset({"own", "operator", "trusted", "stranger"})
STATUSES = frozenset({"active", "paused", "completed", "cancelled"})

_FINISHED = frozenset({"completed", "cancelled"})
_MERGED = frozenset({"observation", "action_result"})
_SIMILAR = 0.6
"""Words in common, of all words of two observations."""
_SHORTEST = 40
"""Characters that a cut description keeps while there is anything else to cut."""
_MAX_TYPE_CHARS = 40
_MAX_WHOLE = 2**53 - 1
_LAST_TIME = 253_402_300_799
"""Of the year 9999."""
_WORD = re.compile(r"\w+")
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_GOAL_ID = re.compile(r"g([1-9]\d{0,8})", re.ASCII)

# Fields that we add to the NIP's: of a memory, of a goal, of the state.
_ORIGIN, _COUNT, _SINCE = "origin", "count", "since"
_REVIEW, _NOTE, _UPDATED, _ENDED = "review_at", "note", "updated_at", "finished_at"
_MADE, _COST = "goals_made", "total_cost_msats"
_SETTINGS = "settings"
"""Where ``pylon.host.registry`` writes what the operator has set (its ``SETTINGS``)."""


# --- memory -----------------------------------------------------------------------------------------------------------


def remember(state: AgentState, *, type: str, content: str, now: float, relevance: float, origin: str) -> AgentState:
    """``state`` with a memory more, or with one that it had already counted once more and new again.

    :param content: kept as one line of at most ``MAX_MEMORY_CHARS``. Blank: nothing is remembered.
    :param relevance: from 0 to 1; of the same thing remembered twice, the greater.
    :param origin: whose words these are: ``own``, ``operator``, ``trusted`` or ``stranger``; any other: a stranger's.

    It may be too large afterwards: ``compact`` it before it is kept.
    """
    content = _line(content, MAX_MEMORY_CHARS)
    if not content:
        return state
    type = _line(type, _MAX_TYPE_CHARS) or "observation"
    origin = origin if origin in ORIGINS else "stranger"
    fresh = Memory(
        id=hashlib.sha256("\0".join((origin, type, content.casefold())).encode()).hexdigest()[:16],
        type=type,
        content=content,
        timestamp=_whole(now),
        relevance=fraction_of(relevance),
        extra={_ORIGIN: origin},
    )
    same = [memory for memory in state.memory if memory.id == fresh.id]
    others = [memory for memory in state.memory if memory.id != fresh.id]
    return attrs.evolve(state, memory=(*others, _joined([*same, fresh])))


def recall(state: AgentState, *, about: str, now: float, limit: int, max_chars: int) -> tuple[Memory, ...]:
    """What matters now: at most ``limit`` memories, of ``max_chars`` characters together, oldest first.

    The worth of one is its faded relevance, plus the part of ``about``'s words that it shares; a word that stands in
    many memories counts less. One that does not fit is passed over for those that do.
    """
    asked = _words(about[: 4 * MAX_MEMORY_CHARS])
    shared = [_words(memory.content) & asked for memory in state.memory]
    known = Counter(word for words in shared for word in words)
    weight = {word: math.log1p(len(shared) / known[word]) if word in known else 1.0 for word in asked}
    # fsum: the order of a set differs from one process to the next, and a sum must not.
    whole = math.fsum(weight.values()) or 1.0
    ranked = sorted(
        (
            (faded(memory, now) + math.fsum(weight[word] for word in words) / whole, *_when(memory), n)
            for n, (memory, words) in enumerate(zip(state.memory, shared, strict=True))
        ),
        reverse=True,
    )
    chosen: list[Memory] = []
    for *_, n in ranked:
        if len(chosen) >= limit:
            break
        memory = state.memory[n]
        if len(memory.content) <= max_chars:
            max_chars -= len(memory.content)
            chosen.append(memory)
    return tuple(sorted(chosen, key=_when))


def faded(memory: Memory, now: float) -> float:
    """Its relevance after its age. A memory of the future is a new one: the clock was set back."""
    return memory.relevance * math.exp2(-max(0.0, now - memory.timestamp) / HALF_LIFE)


def origin_of(memory: Memory) -> str:
    """Whose words it holds; a stranger's where it does not say, for what is not known is not trusted."""
    origin = memory.extra.get(_ORIGIN)
    return origin if isinstance(origin, str) and origin in ORIGINS else "stranger"


# --- goals ------------------------------------------------------------------------------------------------------------


def add_goal(
    state: AgentState, description: str, *, priority: int, now: float, review_at: float | None = None
) -> tuple[AgentState, str]:
    """``state`` with a goal more, and its id: ``g1``, ``g2`` and so on, none of which is ever used twice.

    :param review_at: Unix seconds, at most ``MAX_REVIEW`` ahead; ``None``: the next heartbeat.

    Raises ``UsageError`` for a description that is blank or longer than ``MAX_GOAL_CHARS``, and where ``MAX_GOALS``
    are there of which none is finished.
    """
    line = _line(description, MAX_GOAL_CHARS)
    if not line or len(description) > MAX_GOAL_CHARS:
        raise UsageError(f"a goal is described in 1 to {MAX_GOAL_CHARS:,} characters", "say what is to be reached")
    if len(state.goals) >= MAX_GOALS:
        finished = _finished(state.goals)
        if not finished:
            raise UsageError(f"an agent has at most {MAX_GOALS} goals", "complete or cancel one first")
        state = _without(state, finished[0])
    numbers = [int(known[1]) for goal in state.goals if (known := _GOAL_ID.fullmatch(goal.id))]
    number = 1 + max(0, whole_of(state.extra.get(_MADE)), *numbers)
    goal = Goal(
        id=f"g{number}",
        description=line,
        priority=whole_of(priority),
        created_at=_whole(now),
        extra=_reviewed_at({}, review_at, now),
    )
    return attrs.evolve(state, goals=(*state.goals, goal), extra={**state.extra, _MADE: number}), goal.id


def update_goal(
    state: AgentState,
    goal_id: str,
    *,
    progress: float | None = None,
    status: str | None = None,
    note: str | None = None,
    review_at: float | None = None,
    now: float,
) -> AgentState:
    """``state`` with one goal changed by what is given; ``None`` leaves as it is.

    :param progress: from 0 to 1, cut to that.
    :param status: one of ``STATUSES``.
    :param note: kept in ``extra["note"]`` as one line of at most ``MAX_NOTE_CHARS``; blank: none any more.

    Raises ``NotFound`` for a goal that is not there, ``UsageError`` for another status.
    """
    goal = next((goal for goal in state.goals if goal.id == goal_id), None)
    if goal is None:
        raise NotFound(f"there is no goal {_line(goal_id, 80)!r}", "pylon agent goals NAME lists them")
    if status is not None and status not in STATUSES:
        raise UsageError(f"{_line(status, 80)!r} is no status of a goal", f"give one of {', '.join(sorted(STATUSES))}")
    extra = {**goal.extra, _UPDATED: _whole(now)}
    if note is not None:
        extra[_NOTE] = _line(note, MAX_NOTE_CHARS)
    if not extra.get(_NOTE):
        extra.pop(_NOTE, None)
    if review_at is not None:
        extra = _reviewed_at(extra, review_at, now)
    if status in _FINISHED and goal.status not in _FINISHED:
        extra[_ENDED] = _whole(now)
    elif status is not None and status not in _FINISHED:
        extra.pop(_ENDED, None)
    changed = attrs.evolve(
        goal,
        progress=goal.progress if progress is None else fraction_of(progress),
        status=goal.status if status is None else status,
        extra=extra,
    )
    return attrs.evolve(state, goals=tuple(changed if each is goal else each for each in state.goals))


def reviewed(state: AgentState, goal_ids: Collection[str], *, review_at: float | None, now: float) -> AgentState:
    """``state`` after a tick that has looked at these goals: each is due again at ``review_at``.

    ``None``: at the next heartbeat. Without this a goal whose review has come would stay due, also in ticks that
    strangers cause, which would then be no more on the strangers' budget. Ids that are not there are passed over.
    """
    goals = tuple(
        attrs.evolve(goal, extra=_reviewed_at(goal.extra, review_at, now)) if goal.id in goal_ids else goal
        for goal in state.goals
    )
    return attrs.evolve(state, goals=goals)


def goals_due(state: AgentState, *, now: float, beat: Beat | None) -> tuple[schedule.Goal, ...]:
    """The active goals as the schedule takes them, the most important first, each with the time of its review.

    :param beat: the next heartbeat, when a goal without a review of its own is due; ``None``: there is none yet, and
        it is due now.
    """
    default = now if beat is None else beat.due
    active = [goal for goal in state.goals if goal.status == "active"]
    active.sort(key=lambda goal: (-goal.priority, goal.created_at, goal.id))
    reviews = [_review_of(goal, now) for goal in active]
    return tuple(
        schedule.Goal(goal.id, default if review is None else review)
        for goal, review in zip(active, reviews, strict=True)
    )


# --- counts -----------------------------------------------------------------------------------------------------------


def ticked(
    state: AgentState,
    *,
    n: int,
    now: float,
    success: bool,
    actions: int,
    cost_msats: Msat,
    balance_msats: Msat | None,
) -> AgentState:
    """``state`` after its ``n``-th tick, the first being 1. A tick that is counted already changes nothing.

    :param cost_msats: price and fees, also of a tick that has failed. The sum is exact; what is shown of it are whole
        sats, rounded up.
    :param balance_msats: what can be spent; ``None``: not known, and left as it was.
    """
    if n <= state.tick_count:
        return state
    stats = state.tick_stats
    shown = sats(stats.total_cost)
    exact = Msat(whole_of(state.extra.get(_COST)))
    # Another program may have counted on, in whole sats.
    cost = Msat((exact if ceil_to_sat(exact) == shown else shown) + max(0, cost_msats))
    stats = TickStats(
        total_ticks=stats.total_ticks + 1,
        successful_ticks=stats.successful_ticks + bool(success),
        total_actions=stats.total_actions + max(0, actions),
        total_cost=ceil_to_sat(cost) // MSATS_PER_SAT,
    )
    balance = state.wallet_balance
    if balance_msats is not None:
        balance = min(max(0, balance_msats // MSATS_PER_SAT), MAX_SATS)
    return attrs.evolve(
        state,
        tick_count=n,
        last_tick=_whole(now),
        tick_stats=stats,
        wallet_balance=balance,
        extra={**state.extra, _COST: cost},
    )


# --- compaction -------------------------------------------------------------------------------------------------------


def compact(state: AgentState, *, now: float, max_bytes: int = MEMORY_BUDGET) -> AgentState:
    """``state`` in at most ``max_bytes`` of JSON, by rules 3 to 5; itself where it fits.

    Raises ``ValueError`` where not even its counts and the name of its instance fit (1,000 bytes and that name),
    ``AgentEventInvalid`` for what JSON cannot hold.
    """
    if _fits(state, max_bytes):
        return state
    rest = _with_fewer_others(attrs.evolve(state, memory=()), max_bytes)
    rest = _with_fewer_goals(rest, now, max_bytes)
    room = max_bytes - _size(rest)
    if room < 0:
        raise ValueError(f"a state cannot be compacted to {max_bytes} bytes")
    memory = _kept(_merged(state.memory, now), room, int(max_bytes * STRANGERS_SHARE), now)
    return attrs.evolve(rest, memory=memory)


def _size(state: AgentState) -> int:
    return len(state.to_json().encode())


def _fits(state: AgentState, max_bytes: int) -> bool:
    return (
        len(state.memory) <= MAX_MEMORIES
        and len(state.goals) <= MAX_GOALS
        and len(state.pending_tasks) <= MAX_TASKS
        and _size(state) <= max_bytes
    )


def _bytes_of(memory: Memory) -> int:
    """What it takes in the JSON of a state, with the comma."""
    fields = {
        **memory.extra,
        "type": memory.type,
        "content": memory.content,
        "timestamp": memory.timestamp,
        "id": memory.id,
        "relevance": memory.relevance,
    }
    return len(to_json(fields).encode()) + 1


def _kept(memories: Sequence[Memory], room: int, strangers_room: int, now: float) -> tuple[Memory, ...]:
    """Of the memories, in their order, what is worth most and takes ``room`` bytes."""
    sizes = [_bytes_of(memory) for memory in memories]
    total = sum(sizes) - 1
    worst = sorted(
        range(len(memories)),
        key=lambda n: (origin_of(memories[n]) == "operator", faded(memories[n], now), *_when(memories[n]), n),
    )
    # Where nothing is said of the origin, it is an older state's, and no flood.
    flood = [n for n in worst if memories[n].extra.get(_ORIGIN) == "stranger"]
    strangers = sum(sizes[n] for n in flood)
    forgotten: set[int] = set()
    for n in flood:
        if strangers <= strangers_room or total <= room:
            break
        forgotten.add(n)
        strangers -= sizes[n]
        total -= sizes[n]
    for n in worst:
        if total <= room and len(memories) - len(forgotten) <= MAX_MEMORIES:
            break
        if n not in forgotten:
            forgotten.add(n)
            total -= sizes[n]
    return tuple(memory for n, memory in enumerate(memories) if n not in forgotten)


def _merged(memories: Iterable[Memory], now: float) -> list[Memory]:
    """With runs of old, similar observations as one each, where the last of the run stood.

    A run is of one type and one origin; what else was remembered in between does not end it.
    """
    runs: list[list[Memory]] = []
    running: dict[tuple[str, str], int] = {}
    for memory in memories:
        origin = origin_of(memory)
        if origin != "operator" and len(memory.content) > 2 * MAX_MEMORY_CHARS:
            memory = attrs.evolve(memory, content=_line(memory.content, MAX_MEMORY_CHARS))
            if not memory.content:
                continue
        key = (memory.type, origin)
        before = running.get(key)
        mergeable = origin != "operator" and memory.type in _MERGED and now - memory.timestamp >= OLD
        if mergeable and before is not None and _similar(runs[before][-1], memory):
            runs.append([*runs[before], memory])
            runs[before] = []
        else:
            runs.append([memory])
        if mergeable:
            running[key] = len(runs) - 1
        else:
            running.pop(key, None)
    return [_joined(run) for run in runs if run]


def _joined(memories: Sequence[Memory]) -> Memory:
    """One memory in place of several that say the same: the last one's words, and how many there were since when.

    The last one remembered, not the one of the latest time: the clock may have been set back.
    """
    if len(memories) == 1:
        return memories[0]
    last = memories[-1]
    count = min(sum(_count_of(memory) for memory in memories), _MAX_WHOLE)
    since = min(_since_of(memory) for memory in memories)
    content = _told_once(last)
    if origin_of(last) != "operator":
        content += _counted(count, since)
    return attrs.evolve(
        last,
        content=content,
        relevance=max(memory.relevance for memory in memories),
        extra={**last.extra, _COUNT: count, _SINCE: since},
    )


def _similar(one: Memory, other: Memory) -> bool:
    """Numbers aside: the balance of today is like that of yesterday."""
    words, others = ({word for word in _words(_told_once(memory)) if not word.isnumeric()} for memory in (one, other))
    return bool(words) and len(words & others) >= _SIMILAR * len(words | others)


def _told_once(memory: Memory) -> str:
    """Its content without the count."""
    count = _count_of(memory)
    return memory.content.removesuffix(_counted(count, _since_of(memory))) if count > 1 else memory.content


def _counted(count: int, since: int) -> str:
    day = datetime.datetime.fromtimestamp(min(since, _LAST_TIME), datetime.UTC).date()
    return f" ({count:,} like this since {day})"


def _count_of(memory: Memory) -> int:
    return max(1, whole_of(memory.extra.get(_COUNT), 1))


def _since_of(memory: Memory) -> int:
    return max(0, whole_of(memory.extra.get(_SINCE), memory.timestamp))


def _with_fewer_others(state: AgentState, max_bytes: int) -> AgentState:
    """Beliefs, tasks and unknown fields within their share: the largest go first, whatever they are.

    Our own fields are none of them; the settings as long as they keep within a share as large.
    """
    ours = {name: value for name, value in state.extra.items() if name in (_MADE, _COST) and type(value) is int}
    if _SETTINGS in state.extra and len(to_json(state.extra[_SETTINGS]).encode()) <= max_bytes * OTHERS_SHARE:
        ours[_SETTINGS] = state.extra[_SETTINGS]
    kept: dict[tuple[str, Any], Any] = {("belief", name): value for name, value in state.beliefs.items()}
    kept |= {("extra", name): value for name, value in state.extra.items() if name not in ours}
    kept |= {("task", n): value for n, value in enumerate(state.pending_tasks[:MAX_TASKS])}
    sizes = {key: len(to_json({str(key[1]): value}).encode()) for key, value in kept.items()}
    total = sum(sizes.values())
    for key in sorted(kept, key=lambda key: (-sizes[key], key[0], str(key[1]))):
        if total <= max_bytes * OTHERS_SHARE:
            break
        total -= sizes[key]
        del kept[key]
    return attrs.evolve(
        state,
        beliefs={name: value for (kind, name), value in kept.items() if kind == "belief"},
        extra={**{name: value for (kind, name), value in kept.items() if kind == "extra"}, **ours},
        pending_tasks=tuple(value for (kind, _), value in kept.items() if kind == "task"),
    )


def _with_fewer_goals(state: AgentState, now: float, max_bytes: int) -> AgentState:
    """A state without memories, within ``max_bytes`` by what is done to its goals; first what hurts least."""
    for goal in _finished(state.goals):
        if _size(state) <= max_bytes // 2 or now - _ended(goal) < FINISHED_KEPT:
            break
        state = _without(state, goal)
    for goal in _finished(state.goals):
        if _fits(state, max_bytes):
            return state
        state = _without(state, goal)
    cut = _with_short_descriptions(state, max_bytes)
    if not _fits(cut, max_bytes):
        # A state of another program's, or nothing that a person has written.
        bare = tuple(attrs.evolve(goal, extra=_reviewed_at({}, _review_of(goal, now), now)) for goal in cut.goals)
        cut = attrs.evolve(cut, goals=bare)
    least = sorted(cut.goals, key=lambda goal: (goal.status == "active", goal.priority, -goal.created_at, goal.id))
    for goal in least:
        if _fits(cut, max_bytes):
            break
        cut = _without(cut, goal)
    return cut


def _with_short_descriptions(state: AgentState, max_bytes: int) -> AgentState:
    """With the longest descriptions cut to one length, the greatest that fits; at least ``_SHORTEST``."""
    if _fits(state, max_bytes):
        return state
    shortest = _cut(state, _SHORTEST)
    low, high = _SHORTEST, max((len(goal.description) for goal in state.goals), default=0)
    while high - low > 1:
        middle = (low + high) // 2
        shorter = _cut(state, middle)
        if _fits(shorter, max_bytes):
            low, shortest = middle, shorter
        else:
            high = middle
    return shortest


def _cut(state: AgentState, most: int) -> AgentState:
    goals = tuple(
        attrs.evolve(goal, description=goal.description[: most - 1] + "…") if len(goal.description) > most else goal
        for goal in state.goals
    )
    return attrs.evolve(state, goals=goals)


def _finished(goals: Iterable[Goal]) -> list[Goal]:
    """The finished ones, those finished first before the others."""
    return sorted((goal for goal in goals if goal.status in _FINISHED), key=lambda goal: (_ended(goal), goal.id))


def _ended(goal: Goal) -> int:
    return whole_of(goal.extra.get(_ENDED), goal.created_at)


def _without(state: AgentState, goal: Goal) -> AgentState:
    return attrs.evolve(state, goals=tuple(each for each in state.goals if each is not goal))


# --- texts, times and numbers -----------------------------------------------------------------------------------------


def _reviewed_at(extra: Mapping[str, Any], review_at: float | None, now: float) -> dict[str, Any]:
    rest = {name: value for name, value in extra.items() if name != _REVIEW}
    if review_at is None or math.isnan(review_at):
        return rest
    return {**rest, _REVIEW: _whole(math.ceil(min(max(review_at, 0.0), now + MAX_REVIEW)))}


def _review_of(goal: Goal, now: float) -> float | None:
    at = goal.extra.get(_REVIEW)
    if isinstance(at, bool) or not isinstance(at, int | float) or not at <= now + MAX_REVIEW:
        return None
    return float(at)


def _line(text: str, most: int) -> str:
    """``text`` as one line of at most ``most`` characters that JSON can hold."""
    line = _BLANK.sub(" ", text[: 4 * most]).strip().encode("utf-8", "replace").decode()
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _words(text: str) -> frozenset[str]:
    """What can be compared. Short words of Latin letters say too little."""
    return frozenset(word for word in _WORD.findall(text.casefold()) if len(word) > 2 or not word.isascii())


def _when(memory: Memory) -> tuple[int, str]:
    return memory.timestamp, memory.id


def _whole(time: float) -> int:
    return min(max(0, int(time)), _MAX_WHOLE)
