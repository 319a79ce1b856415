"""NIP-SA: what agents publish of themselves, read back, read leniently, and read from strangers."""

from __future__ import annotations

import hashlib
import itertools
import json

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import nip40, nip44, nip_sa, nip_sa_state, nip_sa_trajectory
from protocols.keys import SecretKey
from protocols.nip01 import Event, KindClass, kind_class, sign_event
from protocols.nip_sa import AgentEventInvalid, Autonomy, TickStatus, Trigger
from protocols.strategies import hex_ids, resigned, texts
from protocols.strategies_agents import (
    NOW,
    agent_states,
    hostile_json,
    json_values,
    moments,
    profiles,
    public_goals,
    relay_urls,
    sats,
    trajectories,
    twisted,
)

AGENT, RUNNER, EVE = (SecretKey(bytes([n]) * 32) for n in (1, 2, 3))
ME = AGENT.public.hex


def agent_event(kind: int, tags=(), content="") -> Event:
    return sign_event(AGENT, kind=kind, tags=tags, content=content, created_at=NOW)


def test_every_kind_is_addressable_so_each_event_has_its_own_d():
    kinds = [value for name, value in vars(nip_sa).items() if name.isupper() and 39_200 <= value < 39_300]
    assert sorted(kinds) == [39200, 39201, 39202, 39203, 39210, 39211, 39212, 39213, 39220, 39221, 39230, 39231]
    assert {kind_class(kind) for kind in kinds} == {KindClass.ADDRESSABLE}


# --- profile, schedule, triggers, goals -----------------------------------------------------------------------


@given(profiles())
def test_profiles(event):
    event.check()
    profile, content = nip_sa.parse_profile(event), json.loads(event.content)
    assert event.d == "profile"
    assert profile.agent == event.pubkey
    assert (profile.name, profile.about, profile.autonomy) == (
        content["name"],
        content["about"],
        content["autonomy_level"],
    )
    assert list(profile.capabilities) == content["capabilities"]
    assert event.tags_named("threshold") == (("threshold", *map(str, profile.threshold)),)
    assert [("signer", key) for key in profile.signers] == list(event.tags_named("signer"))
    assert profile.operator == event.tag("operator")
    assert profile.lud16 == event.tag("lud16")


def test_a_profile_of_nonsense_promises_the_least():
    content = json.dumps({"name": 5, "capabilities": "all", "autonomy_level": "god", "version": None})
    tags = [["threshold", "5", "2"], ["operator", "me"], ["signer"], ["lud16", ""]]
    profile = nip_sa.parse_profile(agent_event(39_200, tags, content))
    assert profile == nip_sa.Profile(agent=ME, name="", created_at=NOW)
    assert profile.autonomy is Autonomy.SUPERVISED


@pytest.mark.parametrize(
    "wanted", [{"name": " "}, {"threshold": (0, 1)}, {"threshold": (3, 2)}, {"operator": "x"}, {"signers": ["ff" * 32]}]
)
def test_profiles_that_cannot_be_made(wanted):
    with pytest.raises(AgentEventInvalid):
        nip_sa.build_profile(AGENT, **{"name": "alice", "created_at": NOW, **wanted})


@given(st.integers(1, 10**6), st.none() | moments, st.booleans())
def test_schedules(heartbeat, next_tick, active):
    event = nip_sa.build_schedule(
        AGENT, heartbeat_seconds=heartbeat, next_tick=next_tick, active=active, created_at=NOW
    )
    assert nip_sa.parse_schedule(event) == nip_sa.Schedule(ME, heartbeat, next_tick, active, NOW)
    assert event.d == "schedule"
    assert event.content == ""
    with pytest.raises(AgentEventInvalid):
        nip_sa.parse_triggers(attrs.evolve(event, kind=39_203))
    with pytest.raises(AgentEventInvalid):
        nip_sa.build_schedule(AGENT, heartbeat_seconds=0, created_at=NOW)


@given(
    st.sets(st.sampled_from([Trigger.MENTION, Trigger.DM, Trigger.ZAP])), st.sets(st.integers(0, 65_535), max_size=4)
)
def test_triggers(named, kinds):
    event = nip_sa.build_triggers(AGENT, named=named, kinds=kinds, created_at=NOW)
    assert nip_sa.parse_triggers(event) == nip_sa.Triggers(ME, frozenset(named), frozenset(kinds), NOW)
    assert event.d == "triggers"
    assert all(("trigger", "kind", str(kind)) in event.tags for kind in kinds)
    with pytest.raises(AgentEventInvalid):
        nip_sa.parse_schedule(event)


def test_triggers_of_the_first_implementation_are_read_from_its_schedule():
    tags = [["d", "schedule"], ["heartbeat", "900"], ["trigger", "mention"], ["trigger", "custom:5050"],
            ["trigger"], ["trigger", "kind"], ["trigger", "kind", "x"], ["trigger", "kind", "99999"],
            ["trigger", "webhook"]]  # fmt: skip
    event = agent_event(39_202, tags)
    assert nip_sa.parse_triggers(event) == nip_sa.Triggers(ME, frozenset({Trigger.MENTION}), frozenset({5050}), NOW)
    assert nip_sa.parse_schedule(event) == nip_sa.Schedule(ME, 900, None, True, NOW)
    for wanted in ({"named": [Trigger.KIND]}, {"kinds": [65_536]}, {"kinds": [-1]}):
        with pytest.raises(AgentEventInvalid):
            nip_sa.build_triggers(AGENT, created_at=NOW, **wanted)


@given(st.lists(public_goals, max_size=5))
def test_public_goals(goals):
    event = nip_sa.build_public_goals(AGENT, goals, created_at=NOW)
    assert nip_sa.parse_public_goals(event) == tuple(
        attrs.evolve(goal, id=goal.id, description=goal.description) for goal in goals
    )
    bare = agent_event(39_203, [["d", "goals"]], json.dumps(json.loads(event.content)["goals"]))
    assert nip_sa.parse_public_goals(bare) == tuple(goals)


# --- state ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(agent_states)
def test_a_state_comes_back_as_it_was_to_its_agent_alone(state):
    event = nip_sa_state.build_state(AGENT, state, created_at=NOW)
    event.check()
    assert nip_sa_state.parse_state(event, AGENT) == state
    assert event.tags == (("d", "state"), ("encrypted",), ("state_version", "1"))
    with pytest.raises(AgentEventInvalid):
        nip_sa_state.parse_state(event, EVE)


def test_a_state_that_a_stranger_seals_for_the_agent_is_not_its_own():
    sealed = nip44.encrypt('{"epoch":9}', nip44.conversation_key(EVE, AGENT.public))
    event = sign_event(EVE, kind=39_201, tags=[["d", "state"]], content=sealed, created_at=NOW)
    with pytest.raises(AgentEventInvalid, match="another agent"):
        nip_sa_state.parse_state(event, AGENT)


def test_what_an_agent_thinks_is_not_shown():
    state = nip_sa_state.AgentState(
        goals=(nip_sa_state.Goal(id="g", description="xyzzy", extra={"why": "xyzzy"}),),
        memory=(nip_sa_state.Memory(type="observation", content="xyzzy"),),
        pending_tasks=("xyzzy",),
        beliefs={"a": "xyzzy"},
        extra={"b": "xyzzy"},
    )
    result = nip_sa.TickResult("id", ME, ME, "d", None, TickStatus.SUCCESS, summary={"a": "xyzzy"})
    assert "xyzzy" not in repr((state, result))


@settings(deadline=None)
@given(hostile_json)
def test_any_state_is_read_or_refused_and_what_is_read_can_be_written(text):
    try:
        state = nip_sa_state.AgentState.from_json(text)
    except AgentEventInvalid:
        return
    assert nip_sa_state.AgentState.from_json(state.to_json()) == state
    assert state.tick_count >= 0
    assert 0 <= state.wallet_balance <= nip_sa.MAX_SATS


def test_the_fields_of_the_nip():
    text = json.dumps(
        {
            "schema_version": 1,
            "goals": [
                {"id": "g1", "description": "post", "priority": 1, "created_at": 5, "status": "active", "progress":
                 0.25, "type": "metric", "target": 100, "current": 25},
                {"description": "no id"}, 7, {"id": "g2", "progress": 7},
            ],
            "memory": [{"type": "observation", "content": "saw", "timestamp": 9, "id": "m", "relevance": 0.5}, {}, "x"],
            "pending_tasks": ["t"], "beliefs": {"sky": "blue"}, "wallet_balance_sats": 50_000, "last_tick": 10,
            "tick_count": 3, "skills_cached": [],
            "wallet": {"balance": 50_000, "daily_limit": 10_000, "per_tick_limit": 1_000, "reserved": 5_000},
            "tick_stats": {"total_ticks": 3, "successful_ticks": "3", "total_actions": -1, "total_cost": 150},
        }
    )  # fmt: skip
    state = nip_sa_state.AgentState.from_json(text)
    first, second = state.goals
    assert (first.progress, first.extra) == (0.25, {"type": "metric", "target": 100, "current": 25})
    assert (second.id, second.progress) == ("g2", 1.0)
    assert [memory.content for memory in state.memory] == ["saw"]
    assert state.wallet_balance == 50_000
    assert state.budget == nip_sa_state.Budget(balance=50_000, daily_limit=10_000, per_tick_limit=1_000, reserved=5_000)
    assert state.tick_stats == nip_sa_state.TickStats(total_ticks=3, total_cost=150)
    assert state.extra == {"skills_cached": []}
    assert (state.instance, state.epoch) == ("", 0)
    assert json.loads(state.to_json())["wallet"]["reserved"] == 5_000


def test_a_state_that_is_too_long_must_forget_and_one_that_is_no_json_is_refused():
    memory = nip_sa_state.Memory(type="observation", content="x" * 16_000)
    with pytest.raises(AgentEventInvalid, match="forgotten"):
        nip_sa_state.build_state(AGENT, nip_sa_state.AgentState(memory=(memory,) * 5), created_at=NOW)
    for beliefs in ({"x": {1}}, {"x": "\ud800"}, {"x": 2**70}):
        with pytest.raises(AgentEventInvalid):
            nip_sa_state.build_state(AGENT, nip_sa_state.AgentState(beliefs=beliefs), created_at=NOW)
    sealed = nip44.encrypt("x" * 65_536, nip44.conversation_key(AGENT, AGENT.public))
    with pytest.raises(AgentEventInvalid):
        nip_sa_state.parse_state(agent_event(39_201, [["d", "state"]], sealed), AGENT)


def test_which_state_is_further():
    def state(epoch: int, ticks: int) -> nip_sa_state.AgentState:
        return nip_sa_state.AgentState(epoch=epoch, tick_count=ticks)

    order = [state(0, 0), state(0, 9), state(1, 0), state(1, 1)]
    for (i, one), (j, other) in itertools.product(enumerate(order), repeat=2):
        assert nip_sa_state.supersedes(one, other) is (i > j)


# --- ticks ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9), st.sampled_from(["heartbeat", "mention", "dm", "zap", "manual"]), st.none() | hex_ids,
       st.just("") | relay_urls, st.integers(0, 100), sats)  # fmt: skip
def test_tick_requests(n, trigger, cause, relay, steps, budget):
    event = nip_sa.build_tick_request(
        RUNNER, agent=ME, n=n, trigger=trigger, trigger_event=cause, trigger_relay=relay, max_steps=steps,
        budget_sats=budget, created_at=NOW,
    )  # fmt: skip
    request = nip_sa.parse_tick_request(event)
    assert request == nip_sa.TickRequest(
        id=event.id, runner=RUNNER.public.hex, agent=ME, d=f"{ME[:16]}:{n}", trigger=trigger, n=n, trigger_event=cause,
        trigger_relay=relay if cause else "", max_steps=steps, budget_sats=budget, created_at=NOW,
    )  # fmt: skip
    assert nip40.expiration(event) == NOW + 7 * 86_400
    assert event.content == ""


@given(st.integers(0, 10**9), st.sampled_from(TickStatus), sats, sats, st.dictionaries(texts, json_values, max_size=3))
def test_tick_results(n, status, cost, duration, summary):
    event = nip_sa.build_tick_result(
        RUNNER, agent=AGENT.public, n=n, request_id="ab" * 32, status=status, actions=2, cost_sats=cost,
        duration_ms=duration, summary=summary, created_at=NOW,
    )  # fmt: skip
    assert nip40.expiration(event) == NOW + 7 * 86_400
    for reader in (AGENT, RUNNER):
        result = nip_sa.parse_tick_result(event, reader)
        assert result.summary == summary
        assert (result.n, result.d, result.request_id) == (n, f"{ME[:16]}:{n}", "ab" * 32)
        assert (result.status, result.cost_sats, result.duration_ms, result.actions) == (status, cost, duration, 2)
    assert nip_sa.parse_tick_result(event).summary is None
    with pytest.raises(AgentEventInvalid, match="somebody else"):
        nip_sa.parse_tick_result(event, EVE)


def test_ticks_do_not_replace_one_another():
    made = [nip_sa.build_tick_request(RUNNER, agent=key.public.hex, n=n, trigger="dm", created_at=NOW)
            for key in (AGENT, EVE) for n in (1, 2, 11)]  # fmt: skip
    assert len({event.address for event in made}) == len(made)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([["status", "failure"]], TickStatus.ERROR),
        ([["status", "timeout"]], TickStatus.ERROR),
        ([["status", "Success"]], TickStatus.SUCCESS),
        ([], TickStatus.ERROR),
        ([["cost", "9" * 30], ["actions", "-1"], ["duration", "x"], ["e", "x"]], TickStatus.ERROR),
    ],
)
def test_results_of_others(tags, expected):
    result = nip_sa.parse_tick_result(agent_event(39_211, [["p", ME], *tags]))
    assert result.status is expected
    assert (result.n, result.actions, result.cost_sats, result.duration_ms, result.request_id) == (None, 0, *[None] * 3)


@pytest.mark.parametrize(
    ("d", "n"), [(f"{ME[:16]}:5", 5), (f"{ME[:16]}:05", None), (f"{ME[:15]}x:5", None), ("5", None), ("", None),
                 (f"{ME[:16]}:-5", None), (f"{ME[:16]}:", None), (f"{ME[:16]}:٣", None), (f"{ME}:5", None)]
)  # fmt: skip
def test_tick_numbers(d, n):
    assert nip_sa.tick_number(d, ME) == n


@pytest.mark.parametrize(
    "wanted",
    [{"agent": "x"}, {"n": -1}, {"trigger": ""}, {"trigger_event": "x"}, {"max_steps": -1}, {"budget_sats": 10**17}],
)
def test_ticks_that_cannot_be_asked_for(wanted):
    with pytest.raises(AgentEventInvalid):
        nip_sa.build_tick_request(RUNNER, **{"agent": ME, "n": 1, "trigger": "dm", "created_at": NOW, **wanted})


# --- trajectories ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(trajectories(), st.randoms(use_true_random=False))
def test_trajectories(run, random):
    session = nip_sa_trajectory.parse_session(run.session)
    assert session.agent == run.agent.public.hex
    steps = [nip_sa_trajectory.parse_step(event) for event in run.steps]
    assert [step.seq for step in steps] == list(range(len(steps)))
    assert {step.session for step in steps} == {session.session}
    assert {step.root for step in steps} == {run.session.id}
    assert [step.previous for step in steps] == [None, *(event.id for event in run.steps[:-1])]
    assert len({event.address for event in run.steps}) == len(steps)
    for step, event in zip(steps, run.steps, strict=True):
        body = json.loads(event.content)
        assert (step.type, step.content, step.tokens_in) == (body["type"], body["content"], body["tokens_in"])
        assert step.ts.endswith("Z")
        assert {**step.fields} == {name: body[name] for name in ("name", "call_id", "result") if name in body}
        assert nip40.expiration(event) == event.created_at + 7 * 86_400
    expected = hashlib.sha256(bytes.fromhex("".join(event.id for event in run.steps))).hexdigest()
    shuffled = list(run.steps)
    random.shuffle(shuffled)
    assert nip_sa_trajectory.trajectory_hash(shuffled) == expected
    tags = nip_sa_trajectory.trajectory_tags(session.session, shuffled, relay="wss://a.example")
    assert tags == [["trajectory", session.session, "wss://a.example"], ["trajectory_hash", expected]]
    assert nip_sa_trajectory.trajectory_tags(session.session) == [["trajectory", session.session]]


@settings(max_examples=20, deadline=None)
@given(trajectories().filter(lambda run: len(run.steps) > 1), trajectories())
def test_a_hash_of_less_more_or_others_is_refused(run, other):
    foreign = resigned(run.agent, run.steps[0], tags=[["e", "ab" * 32, "", "root"], ["seq", str(len(run.steps))]])
    for events in ([], run.steps[1:], [*run.steps, run.steps[0]], [*run.steps, foreign], [run.session]):
        with pytest.raises(AgentEventInvalid):
            nip_sa_trajectory.trajectory_hash(events)


def test_what_no_trajectory_can_hold():
    session = nip_sa_trajectory.build_session(
        AGENT, session="s", model="m", started_at=1, created_at=NOW, group="g", participants=[ME], repo="r", sha="a"
    )
    read = nip_sa_trajectory.parse_session(session)
    assert (read.group, read.participants, read.repo, read.sha, read.started_at) == ("g", (ME,), "r", "a", 1)
    step = {"session": session, "seq": 0, "type": "user", "created_at": NOW}
    assert nip_sa_trajectory.build_step(AGENT, **step).tag("h") == "g"
    for wrong in ({"seq": -1}, {"content": "x" * 70_000}, {"content": "\ud800"}, {"fields": {"x": {1}}},
                  {"created_at": 2**53}, {"session": agent_event(39_230)}):  # fmt: skip
        with pytest.raises(AgentEventInvalid):
            nip_sa_trajectory.build_step(AGENT, **{**step, **wrong})
    for name in ("", "a:b", "x" * 200):
        with pytest.raises(AgentEventInvalid):
            nip_sa_trajectory.build_session(AGENT, session=name, model="m", started_at=1, created_at=NOW)


def test_fields_cannot_pass_for_the_content():
    session = nip_sa_trajectory.build_session(AGENT, session="s", model="m", started_at=1, created_at=NOW)
    event = nip_sa_trajectory.build_step(
        AGENT,
        session=session,
        seq=3,
        type="tool",
        content="true",
        fields={"content": "forged", "step": 9},
        created_at=NOW,
    )
    step = nip_sa_trajectory.parse_step(event)
    assert (step.content, step.step, step.fields) == ("true", 3, {})


# --- strangers ------------------------------------------------------------------------------------------------

READERS = [
    nip_sa.parse_profile,
    nip_sa.parse_schedule,
    nip_sa.parse_triggers,
    nip_sa.parse_public_goals,
    nip_sa.parse_tick_request,
    nip_sa.parse_tick_result,
    lambda event: nip_sa.parse_tick_result(event, AGENT),
    lambda event: nip_sa_state.parse_state(event, AGENT),
    nip_sa_trajectory.parse_session,
    nip_sa_trajectory.parse_step,
    lambda event: nip_sa_trajectory.trajectory_hash([event]),
]


@settings(max_examples=200, deadline=None)
@given(
    twisted(
        kinds=[39_200, 39_201, 39_202, 39_203, 39_210, 39_211, 39_230, 39_231], secrets=st.sampled_from([AGENT, EVE])
    )
)
def test_readers_raise_their_own_errors_only(event):
    for read in READERS:
        try:
            repr(read(event))
        except AgentEventInvalid:
            pass


@settings(deadline=None)
@given(hostile_json.filter(bool))
def test_sealed_content_may_be_anything(text):
    tags = [["p", ME], ["d", "state"]]
    for kind, read in ((39_201, nip_sa_state.parse_state), (39_211, nip_sa.parse_tick_result)):
        sealed = nip44.encrypt(text, nip44.conversation_key(AGENT, AGENT.public))
        try:
            read(agent_event(kind, tags, sealed), AGENT)
        except AgentEventInvalid:
            pass
