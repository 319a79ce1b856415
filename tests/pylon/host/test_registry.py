"""The rows of agents: what is read in bulk, or by a shorter way, is what reading one after the other gives."""

from __future__ import annotations

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocols.nip_sa_state import AgentState
from pylon.errors import NotFound, SealError
from pylon.host import memory, registry
from pylon.host.burn import Burn, Span
from pylon.host.settings import AgentSettings
from pylon.money import Msat, sats
from tests.pylon.host.world import NOTHING, open_world, reply, settings, until

spans = st.builds(Span, st.floats(0, 1e6), st.integers(0, 10**6), st.integers(0, 10**12).map(Msat))
burns = st.builds(
    Burn,
    st.floats(0, 1e7),
    st.none() | st.floats(0, 4e9),
    st.lists(spans, max_size=8).map(tuple),
    st.lists(spans, max_size=8).map(tuple),
)


@given(burns)
def test_a_burn_is_read_as_it_was_written(burn):
    assert registry._burn(registry._burn_json(burn)) == burn


def test_settings_are_read_once_and_share_what_is_equal():
    one, other = AgentSettings(name="one"), AgentSettings(name="other", heartbeat=60)
    first, again = AgentSettings.from_json(one.to_json()), AgentSettings.from_json(one.to_json())
    assert first == one
    assert again is first
    read = AgentSettings.from_json(other.to_json())
    assert read == other
    assert read.schedule is first.schedule
    assert read.lifecycle is first.lifecycle


async def test_many_at_once_are_what_each_of_them_is(autojump_clock, tmp_path):
    async with open_world(tmp_path, reply({"do": "post", "text": "hello"}), NOTHING) as world:
        ids = [await world.spawn(settings("a"), goals=["one", "two"])]
        await trio.sleep(1)
        ids.append(await world.spawn(settings("b"), funds=0))
        await until(lambda: world.ended(ids[0]))
        store = world.store
        agents = list(registry.everybody(store))
        assert [agent.name for agent in agents] == ["a", "b"]
        assert [agent.name for agent in registry.everybody(store, 1)] == ["a"]
        known = registry.lifecycles(store, agents)
        for agent in agents:
            sealed = world.agents.lifecycle(agent.id)
            assert known[agent.id] == attrs.evolve(sealed, settings=agent.settings.lifecycle)
            assert world.agents.state_of(agent.id) is sealed.state
            assert registry.beat(store, agent.id) == agent.beat
        rows = registry.summaries(store, ids)
        assert [(rows[name]["goals"], rows[name]["pays"]) for name in ids] == [(2, 1), (0, 0)]
        assert rows[ids[0]]["last_tick"] == max(tick.created_at for tick in world.ticks(ids[0], quiet=True))
        assert rows[ids[1]]["last_tick"] is None
        assert registry.count_by_state(store) == {"active": 1, "spawning": 1}
        with pytest.raises(NotFound):
            registry.lifecycles(store, [attrs.evolve(agents[0], id="ff" * 32)])


async def test_goals_are_those_of_the_state_and_a_new_state_is_noticed(autojump_clock, tmp_path):
    async with open_world(tmp_path, NOTHING) as world:
        agent = await world.spawn(funds=0, goals=["one"])
        store, agents = world.store, world.agents
        assert registry.goals(store, store.vault, agent) == registry.state(store, store.vault, agent).goals
        stamp, known = registry.state_stamp(store, agent), agents.active_goals(agent)
        assert agents.active_goals(agent) is known, "it is not opened again"
        assert [goal.description for goal in known.goals] == [""]

        await agents.remind(agent, lambda mind: memory.add_goal(mind, "two", priority=1, now=1.0)[0])
        assert registry.state_stamp(store, agent) != stamp
        assert len(agents.active_goals(agent).goals) == 2

        def undone(tx):
            registry.save_state(tx, agent, AgentState())
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await store.write(undone)
        assert len(agents.active_goals(agent).goals) == 2

        await store.write(lambda tx: tx.execute("UPDATE agent_states SET state = ? WHERE agent = ?", (b"\0", agent)))
        with pytest.raises(SealError):
            agents.active_goals(agent)


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        ("SELECT id FROM ticks WHERE agent = ? AND state NOT IN ('done', 'failed', 'quiet') ORDER BY n", "ticks_open"),
        ("SELECT MAX(created_at) FROM ticks WHERE agent = ? AND created_at > 1 AND state <> 'quiet'", "ticks_thought"),
        ("SELECT 1 FROM ticks WHERE agent = ? AND created_at > 1 AND cause = 'trigger'", "ticks_triggered"),
        ("SELECT 1 FROM ticks WHERE agent = ? AND created_at > 1 AND allowance_msats IS NOT NULL", "ticks_strangers"),
        ("SELECT COUNT(*) FROM actions WHERE agent = ? AND state = 'waiting'", "actions_waiting"),
    ],
)
async def test_what_is_asked_at_every_turn_passes_over_quiet_ticks(autojump_clock, tmp_path, sql, index):
    async with open_world(tmp_path, NOTHING) as world:
        plan = world.store.read(f"EXPLAIN QUERY PLAN {sql}", ("",))
        assert any(index in row["detail"] for row in plan), [row["detail"] for row in plan]


async def test_funds_that_came_while_it_was_down_wake_it(autojump_clock, tmp_path):
    async with open_world(tmp_path, NOTHING) as world:
        agent = await world.spawn(funds=0)
        wallet = world.wallet(agent)
        await world.kill()
        await wallet.fund(sats(1_000))
        await world.live()
        await until(lambda: world.state(agent) == "active", 30.0)


async def test_a_wallet_that_does_not_say_at_the_start_is_asked_again(autojump_clock, tmp_path):
    async with open_world(tmp_path, NOTHING) as world:
        agent = await world.spawn(funds=0)
        wallet = world.wallet(agent)
        await world.kill()
        await wallet.fund(sats(1_000))
        world.node.outage = True
        await world.live()
        await trio.sleep(5)
        world.node.outage = False
        await until(lambda: world.state(agent) == "active", 60.0)
