"""The tick machine: its table, and what no sequence of inputs may break."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
from hypothesis import given

from pylon.host import ticking as m
from pylon.host.replies import Proposed
from pylon.host.settings import ActionKind
from pylon.host.ticking import TICK, TickEffect, TickRecord, TickState
from pylon.money import Msat
from tests.pylon.machines import check_effects_distinct, check_table

AGENT = "ab" * 32
TELL = {TickEffect.PUBLISH_STATE, TickEffect.PUBLISH_TRAJECTORY, TickEffect.PUBLISH_RESULT}

inputs = st.one_of(
    st.builds(m.Begun),
    st.builds(m.Thought, st.just("cd" * 32), st.text(max_size=9), st.just((Proposed(kind=ActionKind.NOTHING),))),
    st.builds(m.Failed, st.just("no"), st.none(), st.integers(0, 9).map(Msat), st.just(9.0)),
    st.builds(
        m.Acted, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9).map(Msat), st.just(9.0)
    ),
)


def tick(**changes) -> TickRecord:
    return TickRecord(**{"id": "ab:1", "agent": AGENT, "n": 1, "created_at": 1.0, "cause": "heartbeat", **changes})


def test_table_is_sound():
    check_table(TICK)
    check_effects_distinct(TICK)


def test_nothing_to_think_about_is_quiet_and_does_nothing():
    after, effects = TICK.step(tick(), m.Begun())
    assert (after.state, after.status, effects, after.ended_at) == (TickState.QUIET, "quiet", (), 1.0)


@given(st.sampled_from([{"triggers": ("t",)}, {"goals": ("g1",)}, {"asked": True}]))
def test_anything_to_think_about_is_claimed_and_thought_of(changes):
    after, effects = TICK.step(tick(**changes), m.Begun())
    assert (after.state, effects) == (TickState.THINKING, (TickEffect.PUBLISH_CLAIM, TickEffect.THINK))


@given(st.booleans(), st.lists(inputs, max_size=12))
def test_it_ends_once_and_tells_of_it_once(quiet, messages):
    record, told, claimed = tick(triggers=() if quiet else ("t",)), 0, 0
    for message in messages:
        moved = TICK.step(record, message)
        if moved is None:
            continue
        assert record.state not in TICK.final, "what has ended stays as it is"
        record, effects = moved
        claimed += TickEffect.PUBLISH_CLAIM in effects
        if TELL & set(effects):
            assert set(effects) == TELL
            assert record.state in TICK.final
            told += 1
    assert claimed <= 1
    assert told == (record.state in (TickState.DONE, TickState.FAILED))
    assert (record.ended_at is not None) == (record.state in TICK.final)


def test_the_words_for_its_end():
    acting = tick(triggers=("t",), state=TickState.ACTING)
    for done, failed, still, status in ((1, 0, 0, "success"), (1, 1, 0, "partial"), (0, 0, 1, "partial")):
        after, _ = TICK.step(acting, m.Acted(done, failed, still, Msat(5), 3.0))
        assert (after.status, after.cost) == (status, 5)
    after, _ = TICK.step(acting, m.Failed("it broke", None, Msat(7), 3.0))
    assert (after.status, after.cost, after.reason) == ("error", 7, "it broke")


def test_its_purchase_is_named_after_it_and_no_other():
    assert tick().purchase == attrs.evolve(tick(), state=TickState.DONE, cost=Msat(9)).purchase
    assert tick().purchase != tick(id="ab:2").purchase


def test_a_thought_is_in_no_repr():
    assert "sesame" not in repr(tick(thought="sesame"))
