"""The lifecycle: its table, and what no history of balances may break."""

from __future__ import annotations

import itertools

import attrs
import cattrs
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pylon.host import lifecycle as m
from pylon.host.lifecycle import LIFECYCLE, Lifecycle, LifecycleEffect, LifecycleSettings, LifecycleState
from pylon.money import MAX_MSAT, Msat, sats
from tests.pylon.machines import check_effects_distinct, check_table

S, E = LifecycleState, LifecycleEffect
BURN = sats(1_000)
LADDER = [S.DORMANT, S.HIBERNATING, S.LOW_BALANCE, S.ACTIVE]

DOWN = {(S.ACTIVE, S.LOW_BALANCE), (S.LOW_BALANCE, S.HIBERNATING), (S.HIBERNATING, S.DORMANT)}
UP = {(low, high) for at, low in enumerate(LADDER) for high in LADDER[at + 1 :]}
SEED = {(S.SPAWNING, S.ACTIVE), *DOWN, *((low, S.ACTIVE) for low in LADDER[:3])}
"""The diagram: down one step at a time, and *funded* from each of the lower three to active."""

amounts = st.one_of(
    st.sampled_from([0, 1, 999, 1_000, 499_999, 500_000, 549_999, 550_000, 6_999_999, 7_000_000, 7_699_999, 7_700_000]),
    st.integers(-5_000, 12_000_000),
    st.integers(0, MAX_MSAT),
).map(Msat)
burns = st.one_of(st.just(BURN), st.integers(0, 5_000_000), st.integers(0, MAX_MSAT)).map(Msat)
all_settings = st.one_of(
    st.just(LifecycleSettings()),
    st.builds(
        LifecycleSettings,
        low_balance_days=st.floats(0, 100),
        hibernate_threshold_sats=st.integers(0, 20_000),
    ),
)


def agent(state=S.SPAWNING, balance=0, **changes) -> Lifecycle:
    return Lifecycle(id="ab" * 32, created_at=0.0, state=state, balance=sats(balance), burn=BURN, **changes)


def known(balance, burn=BURN) -> m.BalanceKnown:
    return m.BalanceKnown(sats(balance), burn)


def rest(record, *messages) -> Lifecycle:
    for message in messages:
        path, _ = m.follow(record, message)
        record = path[-1] if path else record
    return record


def test_table_is_sound():
    check_table(LIFECYCLE)
    check_effects_distinct(LIFECYCLE)
    assert not LIFECYCLE.final, "there is no dead state"
    assert set(LIFECYCLE.states()) == set(S)
    assert len(S) == 5
    assert LIFECYCLE.outbox == {E.ANNOUNCE}


def test_the_arrows_are_the_seeds():
    """Beside them only *funded* that carries less far: a small deposit lifts no further than it lasts."""
    drawn = {(state, arrow.to) for (state, _), row in LIFECYCLE.table.items() for arrow in row if arrow.to is not state}
    assert drawn >= SEED
    assert drawn - SEED == UP - {(low, S.ACTIVE) for low in LADDER}


@pytest.mark.parametrize(
    ("balance", "state", "said"),
    [
        (12_345, S.ACTIVE, "active: 12,345 sat, 12.3 days"),
        (890, S.LOW_BALANCE, "low balance: 890 sat, 0.9 days; active again from 7,700 sat"),
        (0, S.DORMANT, "dormant: 0 sat; wakes on any deposit, ticks again from 550 sat"),
    ],
)
def test_the_seeds_three_agents(balance, state, said):
    record = rest(agent(), known(12_345), known(balance))
    assert (record.state, m.reason(record)) == (state, said)


def test_the_other_reasons():
    assert m.reason(agent()) == "spawning: waits for the first sat"
    assert m.reason(rest(agent(), known(450))) == "hibernating: 450 sat, below 500; ticks again from 550 sat"
    assert m.reason(rest(agent(), known(450), known(520))) == "hibernating: 520 sat; ticks again from 550 sat"
    assert m.reason(rest(agent(), known(9_000, Msat(0)))) == "active: 9,000 sat"
    odd = rest(agent(), m.BalanceKnown(Msat(890_999), Msat(1_000_001)))
    assert m.reason(odd) == "low balance: 890 sat, 0.9 days; active again from 7,701 sat", "what is held is not more"
    assert m.reason(rest(agent(), known(10), m.BalanceKnown(Msat(-3), BURN))).startswith("dormant: 0 sat;")


def test_spawning_leaves_on_the_first_sat_and_passes_through_active():
    assert m.follow(agent(), m.BalanceKnown(Msat(999), BURN)) == ([], ()), "spawning is not dormant"
    path, effects = m.follow(agent(), known(1))
    assert [record.state for record in path[:3]] == [S.ACTIVE, S.LOW_BALANCE, S.HIBERNATING]
    assert path[-1].state is S.HIBERNATING
    assert effects == (E.PARK, E.ANNOUNCE), "it must not tick on the way"
    path, effects = m.follow(agent(), known(890))
    assert (path[0].state, path[-1].state, effects) == (S.ACTIVE, S.LOW_BALANCE, (E.WAKE, E.ANNOUNCE))
    path, effects = m.follow(agent(), known(12_345))
    assert ({record.state for record in path}, effects) == ({S.ACTIVE}, (E.WAKE, E.ANNOUNCE))


def test_an_agent_that_is_written_down_is_announced_and_waits():
    assert m.follow(agent(), m.Spawned()) == ([agent()], (E.ANNOUNCE,))


@pytest.mark.parametrize(
    ("balance", "state"), [(1, S.HIBERNATING), (549, S.HIBERNATING), (550, S.LOW_BALANCE), (7_700, S.ACTIVE)]
)
def test_a_deposit_lifts_dormant_as_far_as_it_carries(balance, state):
    path, effects = m.follow(agent(S.DORMANT), known(balance))
    assert path[-1].state is state
    assert effects == ((E.WAKE, E.ANNOUNCE) if m.may_tick(state) else (E.ANNOUNCE,))
    assert S.DORMANT not in {record.state for record in path}


def test_a_withdrawal_of_all_walks_down_every_step_and_is_told_once():
    path, effects = m.follow(agent(S.ACTIVE, 12_345), m.BalanceKnown(Msat(999), BURN))
    assert [record.state for record in path[:3]] == [S.LOW_BALANCE, S.HIBERNATING, S.DORMANT]
    assert effects == (E.PARK, E.ANNOUNCE)


def test_saving_begins_and_ends_by_a_new_schedule():
    low, effects = m.follow(agent(S.ACTIVE, 12_345), known(6_999))
    assert (low[-1].state, effects) == (S.LOW_BALANCE, (E.RESCHEDULE, E.ANNOUNCE))
    assert m.heartbeat_factor(S.LOW_BALANCE, LifecycleSettings()) == 2
    assert m.heartbeat_factor(S.ACTIVE, LifecycleSettings()) == 1
    back, effects = m.follow(low[-1], known(7_700))
    assert (back[-1].state, effects) == (S.ACTIVE, (E.RESCHEDULE, E.ANNOUNCE))


def test_only_active_and_low_balance_tick_and_only_they_resume():
    assert {state for state in S if m.may_tick(state)} == {S.ACTIVE, S.LOW_BALANCE} == set(LIFECYCLE.resume)
    assert all(effects == (E.WAKE,) for effects in LIFECYCLE.resume.values())


@pytest.mark.parametrize("state", list(S))
def test_h8_an_unknown_balance_changes_nothing(state):
    assert m.follow(agent(state, 890), m.BalanceUnknown()) == ([], ())


@pytest.mark.parametrize("line", [500, 7_000])
def test_h10_a_balance_around_a_line_moves_once_and_warns_once(line):
    record, told = agent(S.ACTIVE, 12_345), 0
    for balance in [line, line - 1, line, line * 11 // 10 - 1] * 50:
        path, effects = m.follow(record, known(balance))
        record = path[-1]
        told += E.ANNOUNCE in effects
    # From 500 sat an agent goes to low balance first, and below it to hibernating.
    assert told == (1 if line == 7_000 else 2)


@given(all_settings, st.sampled_from(list(S)), amounts, amounts, burns)
def test_more_balance_never_means_a_lower_state(chosen, state, one, other, burn):
    less, more = sorted((one, other))
    records = [rest(agent(state, settings=chosen), m.BalanceKnown(balance, burn)) for balance in (less, more)]
    if records[1].state is S.SPAWNING:
        assert records[0].state is S.SPAWNING
    elif records[0].state is not S.SPAWNING:
        assert LADDER.index(records[0].state) <= LADDER.index(records[1].state)


@given(all_settings, st.sampled_from(list(S)), amounts, burns)
def test_one_balance_leads_to_rest(chosen, state, balance, burn):
    message = m.BalanceKnown(balance, burn)
    path, _ = m.follow(agent(state, settings=chosen), message)
    assert len(path) <= 5
    if path:
        again, effects = m.follow(path[-1], message)
        assert (again, effects) == ([path[-1]], ())
        assert m.reason(path[-1])


def test_a_record_is_kept_whole():
    record = agent(S.LOW_BALANCE, 890, settings=LifecycleSettings(low_balance_days=2.5))
    assert cattrs.structure(cattrs.unstructure(record), Lifecycle) == record


@pytest.mark.parametrize(
    "wrong",
    [
        {"low_balance_days": -1},
        {"low_balance_days": float("nan")},
        {"low_balance_days": float("inf")},
        {"hibernate_threshold_sats": -1},
        {"low_balance_factor": 0},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError):
        LifecycleSettings(**wrong)


class Life(RuleBasedStateMachine):
    """An agent's whole life beside a plain model of it: the ladder, and the lines as fractions."""

    def __init__(self):
        super().__init__()
        self.record = agent()
        self.running = False
        self.spendable, self.burn = 0, BURN

    @initialize(chosen=all_settings)
    def spawn(self, chosen):
        self.record = attrs.evolve(agent(), settings=chosen)
        self.feed(m.Spawned())

    def feed(self, message):
        before = self.record
        path, effects = m.follow(before, message)
        for record in path:
            hop = (before.state, record.state)
            assert hop in SEED | UP | {(record.state, record.state)}, hop
            before = record
        moved = bool(path) and path[-1].state is not self.record.state
        self.record = path[-1] if path else self.record
        if not isinstance(message, m.Spawned):
            assert (E.ANNOUNCE in effects) == moved, "each change is told, once"
        assert len(effects) == len(set(effects))
        assert len({E.WAKE, E.PARK, E.RESCHEDULE} & set(effects)) <= 1
        self.running = E.WAKE in effects or (self.running and E.PARK not in effects)

    def see(self):
        self.feed(m.BalanceKnown(Msat(self.spendable), self.burn))

    def lines(self, raised=False):
        scale = 11 if raised else 10
        chosen = self.record.settings
        hibernate = 1_000 * chosen.hibernate_threshold_sats * scale / 10
        return hibernate, chosen.low_balance_days * self.burn * scale / 10

    @rule(amount=st.one_of(st.integers(1, 20_000), st.integers(1, 20_000_000)))
    def deposit(self, amount):
        before = self.record.state
        self.spendable += amount
        self.see()
        if before is not S.SPAWNING:
            assert LADDER.index(self.record.state) >= LADDER.index(before), "a deposit never lowers"

    @precondition(lambda self: self.spendable > 0)
    @rule(part=st.floats(0, 1))
    def spend(self, part):
        before = self.record.state
        self.spendable -= int(self.spendable * part)
        self.see()
        if before is not S.SPAWNING:
            assert LADDER.index(self.record.state) <= LADDER.index(before), "spending never raises"

    @rule()
    def withdraw_all(self):
        self.spendable = 0
        self.see()
        assert self.record.state in (S.DORMANT, S.SPAWNING)

    @rule()
    def outage(self):
        before = self.record
        self.feed(m.BalanceUnknown())
        assert self.record is before

    @precondition(lambda self: self.running)
    @rule(burn=st.integers(0, 3_000_000))
    def tick(self, burn):
        """Only what runs can change its burn."""
        assert m.may_tick(self.record.state)
        self.burn = Msat(burn)
        self.see()

    @rule()
    def crash(self):
        self.running = E.WAKE in LIFECYCLE.resume_effects(self.record)

    @rule(wiggles=st.lists(st.floats(0, 1), min_size=2, max_size=8))
    def wander_within_the_band(self, wiggles):
        """Between a line and 1.1 times it, the state is what it was on the way in."""
        for low, high in zip(self.lines(), self.lines(raised=True), strict=True):
            if high - low < 3_000 or low < 1_000 or self.record.state is S.SPAWNING:
                continue
            seen = []
            for wiggle in wiggles:
                self.spendable = int(low + 1 + (high - low - 2) * wiggle)
                self.see()
                seen.append(self.record.state)
            # Where the bands overlap, one of the other line's two edges may lie in this one, and is crossed once.
            turns = sum(one is not other for one, other in itertools.pairwise(seen))
            edges = [edge for edge in (*self.lines(), *self.lines(raised=True)) if low < edge < high]
            assert turns <= len(edges) <= 1, seen

    @rule()
    def enough(self):
        """No dead state: from wherever it is, funds lead back to active."""
        self.spendable = 1_000 + int(2 * max(self.lines(raised=True)))
        self.see()
        assert self.record.state is S.ACTIVE

    @invariant()
    def no_tick_in_hibernating_or_dormant(self):
        assert self.running == m.may_tick(self.record.state)

    @invariant()
    def the_balance_carries_the_state(self):
        hibernate, low = self.lines()
        state, known_balance = self.record.state, self.record.balance
        if state is S.ACTIVE:
            assert known_balance >= max(hibernate, low) - 1
            assert known_balance >= 1_000
        elif state is S.LOW_BALANCE:
            assert known_balance >= hibernate
        elif state is S.DORMANT:
            assert known_balance < 1_000


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=60)
"""Up to 9,000 steps."""
