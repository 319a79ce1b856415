"""Memory: what is kept under a budget, what comes back, and when a goal is due."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import attrs
import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import example, given, settings

from protocols.keys import SecretKey
from protocols.nip_sa_state import MAX_GOALS, MAX_MEMORIES, MAX_STATE_BYTES, AgentState, Goal, Memory, build_state
from pylon.errors import NotFound, UsageError
from pylon.host import registry, schedule
from pylon.host.lifecycle import LifecycleState
from pylon.host.memory import (
    DAY,
    FINISHED_KEPT,
    HALF_LIFE,
    MAX_GOAL_CHARS,
    MAX_MEMORY_CHARS,
    MAX_REVIEW,
    MEMORY_BUDGET,
    OLD,
    STATUSES,
    add_goal,
    compact,
    faded,
    goals_due,
    origin_of,
    recall,
    remember,
    reviewed,
    ticked,
    update_goal,
)
from pylon.host.schedule import Beat
from pylon.money import Msat, sats

NOW = 1_790_000_000.0
SECRET = SecretKey(bytes(31) + b"\x07")


def size(state) -> int:
    return len(state.to_json().encode())


def kept(state, content, *, now=NOW, relevance=0.5, origin="own", type="thought") -> AgentState:
    return remember(state, type=type, content=content, now=now, relevance=relevance, origin=origin)


def contents(memories) -> list[str]:
    return [memory.content for memory in memories]


# --- strategies -------------------------------------------------------------------------------------------------------

origins = st.sampled_from(["own", "operator", "trusted", "stranger"])
types = st.sampled_from(["observation", "action_result", "thought"])
phrases = st.one_of(
    st.lists(st.sampled_from(["relay", "sats", "the", "price", "42", "news", "день"]), min_size=1, max_size=8).map(
        " ".join
    ),
    st.text(max_size=30),
)
times = st.floats(NOW - 100 * DAY, NOW + DAY)
remembered = st.fixed_dictionaries(
    {"type": types, "content": phrases, "now": times, "relevance": st.floats(0, 1), "origin": origins}
)

# A character for each width in JSON: 1, 2, 4 and 6 bytes.
long_texts = st.builds(
    lambda text, times: text * times,
    st.sampled_from(["a", "é", "😀", "\x01", '"b ']) | st.text(min_size=1, max_size=20),
    st.integers(0, 900),
)
json_values = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(), long_texts)
extras = st.dictionaries(
    st.sampled_from(["origin", "count", "since", "review_at", "finished_at", "note", "x", "goals_made"]) | st.text(),
    json_values | origins,
    max_size=4,
)


def entries(**fields):
    known = st.fixed_dictionaries({}, optional=fields)
    return st.builds(lambda extra, known: {**extra, **known}, extras, known)


wild_memories = entries(
    type=types, content=long_texts, timestamp=st.integers(0, int(2 * NOW)), id=st.text(), relevance=st.floats(-1, 2)
)
wild_goals = entries(
    id=st.text(min_size=1) | long_texts,
    description=long_texts,
    priority=st.integers(-9, 9),
    created_at=st.integers(0, int(2 * NOW)),
    status=st.sampled_from(sorted(STATUSES)) | st.text(),
    progress=st.floats(0, 1),
)


@st.composite
def wild_states(draw):
    """What anybody may have sealed for the agent: read as the agent reads it, whatever is in it."""
    parts = {
        "instance": draw(st.text(max_size=40)),
        "epoch": draw(st.integers(0, 9)),
        "goals": draw(st.lists(wild_goals, max_size=8)) * draw(st.sampled_from([1, 1, 30])),
        "memory": draw(st.lists(wild_memories, max_size=12)) * draw(st.sampled_from([1, 1, 30])),
        "beliefs": draw(extras),
        "pending_tasks": draw(st.lists(json_values, max_size=5)),
        "tick_count": draw(st.integers(0, 2**53)),
        "settings": draw(st.none() | extras),
        **{f"x{name}": value for name, value in draw(extras).items()},
    }
    for name in ("beliefs", "pending_tasks", "goals", "memory"):  # the reader takes no more
        while len(orjson.dumps(parts)) > MAX_STATE_BYTES:
            few = list(parts[name].items() if name == "beliefs" else parts[name])
            if not few:
                break
            few = few[: len(few) // 2]
            parts[name] = dict(few) if name == "beliefs" else few
    while len(orjson.dumps(parts)) > MAX_STATE_BYTES:
        parts.popitem()
    return AgentState.from_json(orjson.dumps(parts).decode())


@st.composite
def lives(draw):
    """A state as this module makes it."""
    state = AgentState(instance="here", epoch=1)
    for what in draw(st.lists(remembered, max_size=40)):
        state = remember(state, **what)
    return state


# --- the budget -------------------------------------------------------------------------------------------------------


def frame(state) -> bytes:
    event = build_state(SECRET, state, created_at=int(NOW))
    return orjson.dumps(["EVENT", event.to_dict()])


def of_size(count) -> AgentState:
    state = AgentState(beliefs={"x": ""})
    return attrs.evolve(state, beliefs={"x": "a" * (count - size(state))})


def test_a_full_state_passes_a_relay_that_takes_64_kib():
    assert MEMORY_BUDGET == 40_000
    assert size(of_size(MEMORY_BUDGET)) == MEMORY_BUDGET < MAX_STATE_BYTES * 2 // 3
    assert len(frame(of_size(MEMORY_BUDGET))) < 56_000
    assert len(frame(of_size(MEMORY_BUDGET + 960))) < 56_000
    assert len(frame(of_size(MEMORY_BUDGET + 961))) > 65_536


# --- compaction -------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(wild_states(), st.sampled_from([2_500, 6_000, MEMORY_BUDGET]), times)
def test_what_is_compacted_fits_whatever_was_in_it(state, budget, now):
    result = compact(state, now=now, max_bytes=budget)
    assert size(result) <= budget
    assert len(result.memory) <= MAX_MEMORIES
    assert len(result.goals) <= MAX_GOALS
    assert AgentState.from_json(result.to_json()).to_json() == result.to_json()
    assert compact(result, now=now, max_bytes=budget) is result
    assert (result.instance, result.epoch, result.tick_count) == (state.instance, state.epoch, state.tick_count)


@given(wild_states(), times)
def test_what_fits_is_left_alone(state, now):
    assert compact(state, now=now, max_bytes=size(state)) is state


@given(wild_states(), st.sampled_from([6_000, 15_000, MEMORY_BUDGET]))
def test_goals_are_not_touched_while_they_and_the_rest_fit(state, budget):
    """But those finished for a month, where all that is no memory takes more than half of the room."""
    alone = attrs.evolve(state, memory=(), beliefs={}, pending_tasks=(), extra={})
    result = compact(state, now=NOW, max_bytes=budget)
    if size(alone) <= budget // 4:  # and the rest keeps a quarter at most
        assert result.goals == state.goals
    elif size(alone) <= budget * 3 // 4 - 1_000:
        assert set(map(id, state.goals)) >= set(map(id, result.goals))
        gone = [goal for goal in state.goals if all(goal is not each for each in result.goals)]
        assert all(goal.status in ("completed", "cancelled") for goal in gone)


@given(lives(), st.integers(900, 4_000), times)
def test_the_operators_words_go_last_and_are_never_rewritten(state, budget, now):
    result = compact(state, now=now, max_bytes=budget)
    before = {memory.id: memory for memory in state.memory}
    lost = {id for id, memory in before.items() if origin_of(memory) == "operator"} - {m.id for m in result.memory}
    for memory in result.memory:
        if origin_of(memory) == "operator":
            assert memory == before[memory.id]
        else:
            assert not lost


@given(lives(), st.integers(900, 4_000), times)
def test_the_most_faded_goes_first(state, budget, now):
    """Among those of one origin that are never merged."""
    own = tuple(m for m in state.memory if origin_of(m) == "own" and m.type == "thought")
    state = attrs.evolve(state, memory=own)
    result = compact(state, now=now, max_bytes=budget)
    lost = [memory for memory in own if memory not in result.memory]
    for gone in lost:
        assert all(faded(gone, now) <= faded(memory, now) for memory in result.memory)


@given(lives(), st.integers(900, 4_000), times)
def test_memories_keep_their_order_and_are_none_that_were_not_there(state, budget, now):
    result = compact(state, now=now, max_bytes=budget)
    places = {memory.id: n for n, memory in enumerate(state.memory)}
    order = [places[memory.id] for memory in result.memory]
    assert order == sorted(set(order))


@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 60))
def test_a_flood_of_strangers_washes_no_memory_away(count, relevance, age):
    state = AgentState()
    for n in range(20):
        state = kept(state, f"I learned thing {n}: " + "x" * 400, now=NOW - age * DAY, relevance=0.3)
    own = state.memory
    for n in range(count):
        said = f"buy my coin number {n} " + "y" * 300
        state = kept(state, said, relevance=relevance, origin="stranger", type="observation")
    assert set(own) <= set(compact(state, now=NOW).memory)


def test_old_similar_observations_become_one_with_a_count():
    state = AgentState()
    for day in range(40, 10, -1):
        state = kept(state, f"balance {day * 17} sats", now=NOW - day * DAY, type="observation")
        state = kept(state, f"thought {day} of its own", now=NOW - day * DAY)
    state = kept(state, "balance 900 sats", now=NOW - DAY, type="observation")
    state = kept(state, "balance 900 sats", now=NOW - DAY, type="observation")
    result = compact(state, now=NOW, max_bytes=size(state) - 1)
    merged = [memory for memory in result.memory if memory.type == "observation"]
    assert contents(merged) == [
        "balance 187 sats (30 like this since 2026-08-12)",
        "balance 900 sats (2 like this since 2026-09-20)",
    ]
    assert merged[0].extra["count"] == 30
    assert len([memory for memory in result.memory if memory.type == "thought"]) == 30, "that was enough"
    later = kept(result, "x " * 400, now=NOW + OLD)
    again = compact(later, now=NOW + OLD, max_bytes=size(later) - 1)
    assert contents(memory for memory in again.memory if memory.type == "observation") == [
        "balance 900 sats (32 like this since 2026-08-12)"
    ]


@pytest.mark.parametrize(("length", "stays"), [(9_900, True), (10_100, False)])
def test_what_the_operator_has_set_outlasts_ballast(length, stays):
    """Who finds the state with the phrase alone runs the agent by it."""
    ballast = {f"b{n}": "x" * 5_000 for n in range(9)}
    state = AgentState(beliefs=ballast, extra={registry.SETTINGS: {"about": "y" * length}})
    result = compact(state, now=NOW)
    assert (registry.SETTINGS in result.extra) == stays
    assert 0 < len(result.beliefs) < len(ballast)


def test_a_clock_that_was_set_back_does_not_reorder_what_is_merged():
    state = kept(AgentState(), "the relay was slow, and slower", now=NOW - 20 * DAY, type="observation")
    state = kept(state, "a thought", now=NOW - 20 * DAY)
    state = kept(state, "the relay was slow, and slow", now=NOW - 30 * DAY, type="observation")
    result = compact(state, now=NOW, max_bytes=size(state) - 1)
    assert contents(result.memory) == ["a thought", "the relay was slow, and slow (2 like this since 2026-08-22)"]


@pytest.mark.parametrize("other", [{"origin": "stranger"}, {"type": "action_result"}, {"content": "all is quiet"}])
def test_unlike_observations_are_not_merged(other):
    fields = {"type": "observation", "content": "the relay was slow today", "origin": "own"}
    state = AgentState()
    for n, what in enumerate([fields, {**fields, **other}]):
        what = {**what, "content": f"{what['content']} {n}"}
        state = remember(state, **what, now=NOW - 20 * DAY, relevance=0.5)
    state = kept(state, "y" * 900, relevance=0.0)
    result = compact(state, now=NOW, max_bytes=size(state) - 1)
    assert contents(result.memory) == contents(state.memory[:2])


def with_goals(*goals, **fields) -> AgentState:
    return AgentState(goals=goals, **fields)


def finished(name, days, length=1_000) -> Goal:
    ended = int(NOW - days * DAY)
    return Goal(id=name, description=name * length, status="completed", created_at=0, extra={"finished_at": ended})


def test_goals_finished_for_a_month_make_room_for_memory():
    old = [finished(name, FINISHED_KEPT / DAY + n) for n, name in enumerate("abc")]
    state = with_goals(*old, finished("d", 3), Goal(id="e", description="e" * 1_000))
    for n in range(8):
        state = kept(state, f"{n}" * 200)
    result = compact(state, now=NOW, max_bytes=8_000)
    assert [goal.id for goal in result.goals] == ["a", "d", "e"], "the oldest first, until half is free"
    assert len(result.memory) == 8


def test_finished_goals_go_then_the_longest_descriptions_are_cut():
    running = [Goal(id="long", description="l" * 9_000), Goal(id="short", description="s" * 300)]
    state = with_goals(finished("a", 2), *running, finished("b", 1))
    roomy = compact(state, now=NOW, max_bytes=size(with_goals(*running, finished("b", 1))) + 50)
    assert [goal.id for goal in roomy.goals] == ["long", "short", "b"]
    tight = compact(state, now=NOW, max_bytes=5_000)
    assert [goal.id for goal in tight.goals] == ["long", "short"]
    assert tight.goals[1] == running[1]
    assert tight.goals[0].description.endswith("l…")
    assert 4_990 <= size(tight) <= 5_000


def test_foreign_ballast_goes_before_goals():
    ours = {"goals_made": 7, "total_cost_msats": 5}
    state = with_goals(
        Goal(id="g1", description="live"), beliefs={"a": "x" * 50_000, "b": "y"}, extra={"z": "w" * 900, **ours}
    )
    result = compact(state, now=NOW)
    assert (result.goals, result.beliefs, result.extra) == (state.goals, {"b": "y"}, state.extra)
    crumbs = compact(attrs.evolve(state, beliefs={f"{n}": 0 for n in range(500)}, extra=ours), now=NOW, max_bytes=2_000)
    assert crumbs.extra == ours
    assert 30 < len(crumbs.beliefs) < 100


def test_a_foreign_memory_is_shortened_to_what_it_says_or_forgotten_if_that_is_nothing():
    foreign = tuple(Memory(type="observation", content=text) for text in ("ab" * 3_000, "\x1f " * 3_000))
    result = compact(AgentState(memory=foreign), now=NOW, max_bytes=9_000)
    assert [len(memory.content) for memory in result.memory] == [MAX_MEMORY_CHARS]
    assert AgentState.from_json(result.to_json()).to_json() == result.to_json()


def test_a_budget_for_nothing_is_refused():
    with pytest.raises(ValueError, match="100 bytes"):
        compact(AgentState(), now=NOW, max_bytes=100)


# --- remembering ------------------------------------------------------------------------------------------------------


@given(remembered, st.text(st.characters(exclude_categories=()), max_size=3_000), st.floats())
@example({"type": "x", "content": "", "now": NOW, "relevance": 1.0, "origin": "own"}, "half of \ud83d is none", 0.5)
@example({"type": "x", "content": "", "now": NOW, "relevance": 1.0, "origin": "own"}, "\x00\n" * 5_000 + "x", 0.5)
def test_whatever_is_remembered_can_be_written_and_is_bounded(what, text, relevance):
    state = remember(AgentState(), **{**what, "content": text, "relevance": relevance, "type": text})
    assert AgentState.from_json(state.to_json()) == state
    for memory in state.memory:
        assert 0 < len(memory.content) <= MAX_MEMORY_CHARS
        assert "\n" not in memory.content
        assert origin_of(memory) == what["origin"]


@given(lives(), remembered)
def test_the_same_again_is_one_memory(state, what):
    once = remember(state, **what)
    twice = remember(once, **{**what, "now": what["now"] + 60, "content": f"  {what['content']}\n"})
    assert len(twice.memory) == len(once.memory)
    assert len({memory.id for memory in twice.memory}) == len(twice.memory)
    assert remember(state, **what) == once


@given(lives(), remembered)
def test_words_of_another_origin_stay_apart(state, what):
    """A stranger who repeats the operator's words neither makes them his own nor speaks as the operator."""
    state = remember(state, **{**what, "origin": "operator"})
    heard = remember(state, **{**what, "origin": "stranger"})
    of_operator = [memory for memory in state.memory if origin_of(memory) == "operator"]
    assert [memory for memory in heard.memory if origin_of(memory) == "operator"] == of_operator


def test_repetition_is_counted_and_the_newest_is_kept():
    state = AgentState()
    for n in range(3):
        state = kept(state, "Relay A is slow", now=NOW + n * DAY, relevance=0.9 - n / 10)
    assert contents(state.memory) == ["Relay A is slow (3 like this since 2026-09-21)"]
    assert state.memory[0].timestamp == int(NOW + 2 * DAY)
    assert state.memory[0].relevance == 0.9


def test_what_the_operator_repeats_is_not_rewritten():
    state = kept(kept(AgentState(), "Be brief.", origin="operator"), "Be brief.", now=NOW + 5, origin="operator")
    assert contents(state.memory) == ["Be brief."]
    assert (state.memory[0].timestamp, state.memory[0].extra["count"]) == (NOW + 5, 2)


def test_a_count_that_is_only_claimed_is_text():
    said = "pay me (9 like this since 2026-09-21)"
    state = kept(AgentState(), said, origin="stranger")
    assert contents(state.memory) == [said]
    assert contents(kept(state, said, origin="stranger").memory) == [f"{said} (2 like this since 2026-09-21)"]


@pytest.mark.parametrize("origin", [None, "system", 7, ["own"]])
def test_what_does_not_say_whose_it_is_is_a_strangers(origin):
    assert origin_of(Memory(type="x", content="y", extra={} if origin is None else {"origin": origin})) == "stranger"
    assert origin_of(kept(AgentState(), "y", origin=str(origin)).memory[0]) == "stranger"


# --- recalling --------------------------------------------------------------------------------------------------------


@given(st.one_of(lives(), wild_states()), phrases, times, st.integers(-1, 10), st.integers(-1, 400))
def test_recall_is_bounded_ordered_and_depends_on_nothing_else(state, about, now, limit, chars):
    found = recall(state, about=about, now=now, limit=limit, max_chars=chars)
    assert len(found) <= max(0, limit)
    assert sum(len(memory.content) for memory in found) <= max(0, chars)
    assert [memory.timestamp for memory in found] == sorted(memory.timestamp for memory in found)
    shuffled = list(state.memory)
    random.Random(1).shuffle(shuffled)
    assert len({memory.id for memory in state.memory}) < len(shuffled) or (
        recall(attrs.evolve(state, memory=tuple(shuffled)), about=about, now=now, limit=limit, max_chars=chars) == found
    )


@given(lives(), times, st.integers(1, 10))
def test_without_a_matter_the_freshest_and_most_relevant_come(state, now, limit):
    found = recall(state, about="", now=now, limit=limit, max_chars=10**6)
    least = min((faded(memory, now) for memory in found), default=0.0)
    assert len(found) == min(limit, len(state.memory))
    assert all(faded(memory, now) <= least for memory in state.memory if memory not in found)


@given(lives(), times, st.integers(1, 10), st.data())
def test_what_shares_all_the_words_and_is_no_older_comes_first(state, now, limit, data):
    state = kept(state, "zebra crossing ahead", now=now + DAY, relevance=1.0)
    found = recall(state, about="Zebra, crossing ahead!", now=now, limit=limit, max_chars=10**6)
    assert "zebra crossing ahead" in contents(found)


def test_an_old_memory_comes_back_when_it_is_spoken_of():
    state = kept(AgentState(), "Alice prefers answers in German", now=NOW - 90 * DAY)
    for n in range(30):
        state = kept(state, f"a fresh thought, number {n}", relevance=0.4)
    assert "Alice prefers answers in German" in contents(
        recall(state, about="how does Alice like answers?", now=NOW, limit=5, max_chars=1_000)
    )
    assert "Alice prefers answers in German" not in contents(
        recall(state, about="the weather", now=NOW, limit=5, max_chars=1_000)
    )


def test_words_that_are_everywhere_say_little():
    state = kept(AgentState(), "zeppelin landed", now=NOW - 60 * DAY)
    for n in range(20):
        state = kept(state, f"the relay has answered {n}", now=NOW - 60 * DAY)
    found = recall(state, about="has the relay answered? And that zeppelin?", now=NOW, limit=1, max_chars=100)
    assert contents(found) == ["zeppelin landed"]


def test_relevance_halves():
    memory = Memory(type="x", content="y", timestamp=int(NOW), relevance=0.8)
    assert faded(memory, NOW + HALF_LIFE) == pytest.approx(0.4)
    assert faded(memory, NOW - HALF_LIFE) == 0.8


def test_it_is_the_same_in_every_process():
    """Sets have another order in each; what is recalled and kept has not."""
    program = (
        "from tests.pylon.host.test_memory import *\n"
        "state = AgentState()\n"
        "for n in range(60):\n"
        "    state = kept(state, f'{n % 7} alpha beta{n % 5} gamma{n % 3} delta', now=NOW - n % 4 * DAY)\n"
        "found = recall(state, about='alpha beta1 beta2 gamma1 delta eps', now=NOW, limit=9, max_chars=900)\n"
        "print([memory.id for memory in found], compact(state, now=NOW, max_bytes=3_000).to_json())\n"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[3],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


# --- goals ------------------------------------------------------------------------------------------------------------


def test_a_goal_is_added_changed_and_finished():
    state, goal_id = add_goal(AgentState(), " Post a\nhaiku ", priority=3, now=NOW, review_at=NOW + 60)
    assert goal_id == "g1"
    assert state.goals[0].description == "Post a haiku"
    state = update_goal(state, "g1", progress=7.0, note="one is posted", now=NOW + 1)
    assert (state.goals[0].progress, state.goals[0].extra["note"]) == (1.0, "one is posted")
    state = update_goal(state, "g1", status="completed", note="", now=NOW + 2)
    assert state.goals[0].extra == {"review_at": NOW + 60, "updated_at": NOW + 2, "finished_at": NOW + 2}
    state = update_goal(state, "g1", status="active", now=NOW + 3)
    assert "finished_at" not in state.goals[0].extra
    assert state.goals[0].priority == 3


def test_unknown_goals_and_statuses_are_refused():
    state, _ = add_goal(AgentState(), "live", priority=0, now=NOW)
    with pytest.raises(NotFound, match="'g2'"):
        update_goal(state, "g2", progress=1, now=NOW)
    with pytest.raises(UsageError, match="'done'"):
        update_goal(state, "g1", status="done", now=NOW)


@pytest.mark.parametrize("text", ["", " \n", "x" * (MAX_GOAL_CHARS + 1)])
def test_a_goal_needs_words_but_not_too_many(text):
    with pytest.raises(UsageError):
        add_goal(AgentState(), text, priority=0, now=NOW)


def test_a_full_list_takes_one_more_in_place_of_a_finished_one():
    state = AgentState()
    for n in range(MAX_GOALS):
        state, _ = add_goal(state, f"goal {n}", priority=0, now=NOW)
    with pytest.raises(UsageError, match="at most 200"):
        add_goal(state, "more", priority=0, now=NOW)
    state = update_goal(state, "g7", status="cancelled", now=NOW)
    state, goal_id = add_goal(state, "more", priority=0, now=NOW)
    assert goal_id == "g201"
    assert len(state.goals) == MAX_GOALS
    assert "g7" not in {goal.id for goal in state.goals}


@given(st.lists(st.sampled_from(["add", "finish", "compact"]), max_size=30))
def test_an_id_is_never_used_twice(steps):
    state, seen, now = AgentState(), [], NOW
    for step in steps:
        now += 40 * DAY
        if step == "add":
            state, goal_id = add_goal(state, "words " * 100, priority=0, now=now)
            seen.append(goal_id)
        elif step == "finish" and state.goals:
            state = update_goal(state, state.goals[-1].id, status="completed", now=now)
        else:
            state = AgentState.from_json(compact(state, now=now, max_bytes=1_500).to_json())
    assert len(seen) == len(set(seen))


def test_goals_are_due_at_their_review_or_at_the_next_heartbeat():
    state = AgentState()
    for priority, review_at in ((0, None), (5, NOW + 60), (9, None)):
        state, _ = add_goal(state, "x", priority=priority, now=NOW, review_at=review_at)
    state = update_goal(state, "g3", status="paused", now=NOW)
    assert goals_due(state, now=NOW, beat=Beat(NOW + 500)) == (
        schedule.Goal("g2", NOW + 60),
        schedule.Goal("g1", NOW + 500),
    )
    assert goals_due(state, now=NOW, beat=None) == (schedule.Goal("g2", NOW + 60), schedule.Goal("g1", NOW))
    state = reviewed(state, {"g2", "g9"}, review_at=None, now=NOW + 70)
    assert [goal.review_at for goal in goals_due(state, now=NOW + 70, beat=Beat(NOW + 500))] == [NOW + 500] * 2


@pytest.mark.parametrize("review_at", [NOW + 40 * DAY, 1e300, float("inf")])
def test_a_review_is_put_off_for_a_month_at_most(review_at):
    state, _ = add_goal(AgentState(), "x", priority=0, now=NOW, review_at=review_at)
    assert goals_due(state, now=NOW, beat=Beat(NOW + 1))[0].review_at == NOW + MAX_REVIEW
    later = update_goal(state, "g1", review_at=NOW + 90.5, now=NOW)
    assert goals_due(later, now=NOW, beat=None)[0].review_at == NOW + 91


@pytest.mark.parametrize("wrong", [NOW + MAX_REVIEW + 1, "soon", True, None, [1]])
def test_a_review_that_cannot_be_is_the_next_heartbeats(wrong):
    """A clock that was set back, or another program's field."""
    state = with_goals(Goal(id="g1", description="x", extra={"review_at": wrong}))
    assert goals_due(state, now=NOW, beat=Beat(NOW + 5))[0].review_at == NOW + 5


def test_a_reviewed_goal_gives_strangers_no_larger_budget():
    """Else a review that has come would make every thought of a stranger's the agent's own."""
    state, _ = add_goal(AgentState(), "x", priority=0, now=NOW, review_at=NOW + 60)
    settings = schedule.ScheduleSettings(jitter=0.0)

    def tick(state):
        view = schedule.View(
            agent="ab" * 32,
            state=LifecycleState.ACTIVE,
            heartbeat=3_600.0,
            beat=Beat(NOW + 3_000),
            triggers=(schedule.Trigger("t", schedule.TriggerKind.MENTION, NOW + 100),),
            goals=goals_due(state, now=NOW + 120, beat=Beat(NOW + 3_000)),
        )
        return schedule.decide(view, NOW + 120, random.Random(1), settings).tick

    for mind in (state, reviewed(state, ["g1"], review_at=None, now=NOW + 70)):
        woken = tick(mind)
        assert (woken.allowance, woken.goals) == (sats(100), ())


# --- counts -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 5_000)), max_size=20))
def test_ticks_are_counted_once_and_their_cost_is_exact(ticks):
    state = AgentState()
    for n, (success, actions, cost) in enumerate(ticks, 1):
        once = ticked(
            state, n=n, now=NOW + n, success=success, actions=actions, cost_msats=Msat(cost), balance_msats=Msat(1_999)
        )
        again = ticked(
            once, n=n, now=NOW + 99, success=success, actions=actions, cost_msats=Msat(cost), balance_msats=Msat(5)
        )
        assert again is once
        state = AgentState.from_json(once.to_json())
    stats = state.tick_stats
    assert state.tick_count == stats.total_ticks == len(ticks)
    assert stats.successful_ticks == sum(success for success, _, _ in ticks)
    assert stats.total_actions == sum(actions for _, actions, _ in ticks)
    assert stats.total_cost == -(-sum(cost for _, _, cost in ticks) // 1_000)
    if ticks:
        assert (state.last_tick, state.wallet_balance) == (NOW + len(ticks), 1)


def test_an_unknown_balance_stays_as_it_was_and_a_foreign_sum_is_counted_on():
    state = AgentState(wallet_balance=7, tick_count=4, extra={"total_cost_msats": 900})
    state = attrs.evolve(state, tick_stats=attrs.evolve(state.tick_stats, total_cost=5))
    after = ticked(state, n=9, now=NOW, success=False, actions=0, cost_msats=Msat(1), balance_msats=None)
    assert (after.wallet_balance, after.tick_count, after.tick_stats.total_cost) == (7, 9, 6)
    assert after.extra["total_cost_msats"] == 5_001
