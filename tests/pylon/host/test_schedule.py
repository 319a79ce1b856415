"""The schedule: heartbeats, triggers and goals, and what neither storms nor clocks may do to them."""

from __future__ import annotations

import collections
import hashlib
import itertools
import math
import random

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pylon.host import schedule as m
from pylon.host.lifecycle import LifecycleState
from pylon.host.schedule import (
    Beat,
    Cause,
    Goal,
    Past,
    ScheduleSettings,
    StrangerCost,
    Tick,
    Trigger,
    TriggerKind,
    View,
)
from pylon.money import Msat, sats

HOUR, DAY = 3_600.0, 86_400.0
START = 1_800_000_000.0
SETTINGS = ScheduleSettings()
ACTIVE = LifecycleState.ACTIVE


def key(n: int) -> str:
    return hashlib.sha256(str(n).encode()).hexdigest()


def mention(n: int, at: float, stranger=False) -> Trigger:
    return Trigger(key(n), TriggerKind.MENTION, at, stranger)


def view(**changes) -> View:
    return View(**{"agent": key(0), "state": ACTIVE, "heartbeat": 900.0, **changes})


class Runner:
    """A nursery's part: asks when told to, keeps what was decided. Time is wall time, which a test may set."""

    def __init__(self, seen, now=START, chosen=SETTINGS, seed=1, cost=0):
        self.handled = set(seen.handled)
        self.view = attrs.evolve(seen, handled=self.handled)
        self.now, self.settings, self.cost = now, chosen, cost
        self.rng = random.Random(seed)
        self.shift = 0.0
        self.ticks: list[tuple[float, Tick]] = []
        """With the time that really passed."""

    def ask(self):
        decision = m.decide(self.view, self.now, self.rng, self.settings)
        self.view = attrs.evolve(self.view, beat=decision.beat)
        if decision.tick is None:
            return decision.ask_at
        self.take(decision.tick)
        return self.now

    def take(self, tick):
        self.ticks.append((self.now - self.shift, tick))
        past = self.view.past
        if not tick.quiet:
            past = attrs.evolve(past, last_paid=self.now)
        if tick.cause is Cause.TRIGGER:
            past = attrs.evolve(past, triggered=(*past.triggered, self.now))
        if tick.strangers_alone:
            spent = Msat(min(self.cost, tick.allowance))
            past = attrs.evolve(past, strangers=(*past.strangers, StrangerCost(self.now, spent)))
        taken = {trigger.id for trigger in tick.triggers}
        assert not taken & self.handled, "handled twice"
        self.handled |= taken
        left = tuple(trigger for trigger in self.view.triggers if trigger.id not in taken)
        self.view = attrs.evolve(self.view, past=past, triggers=left)

    def until(self, end, arrivals=()):
        """Run to ``end``, while triggers arrive at their times."""
        arrivals = collections.deque(arrivals)
        asked = 0
        while True:
            wake = self.ask()
            asked += 1
            assert asked < 200_000, "asks without end"
            if wake <= self.now and self.ticks and self.ticks[-1][0] == self.now - self.shift:
                continue
            assert wake > self.now, "asks again at once, and nothing has changed"
            wake = min(wake, arrivals[0].at if arrivals else math.inf)
            if wake > end:
                self.now = end
                return self
            self.now = max(self.now, wake)
            while arrivals and arrivals[0].at <= self.now:
                self.view = attrs.evolve(self.view, triggers=(*self.view.triggers, arrivals.popleft()))

    def set_clock(self, by):
        self.now += by
        self.shift += by

    def restart(self, after):
        """What is not stored is gone."""
        beat = self.view.beat
        self.view = attrs.evolve(self.view, beat=beat and Beat(beat.due))
        self.now += after

    def times(self, cause=None):
        return [at for at, tick in self.ticks if cause in (None, tick.cause)]


# --- heartbeats ---------------------------------------------------------------------------------------------------


@given(st.sampled_from([60.0, 900.0, HOUR, DAY]), st.integers(0, 10**6), st.integers(1, 2))
def test_heartbeats_keep_their_grid(heartbeat, n, factor):
    runner = Runner(view(agent=key(n), heartbeat=heartbeat, factor=factor), seed=n)
    interval = heartbeat * factor
    runner.until(START + 50 * interval)
    assert 49 <= len(runner.ticks) <= 51
    for one, other in itertools.pairwise(runner.times()[1:]):
        assert 0.9 * interval - 1e-3 <= other - one <= 1.1 * interval + 1e-3
    offsets = [(at - m.phase(key(n)) * interval + interval / 2) % interval - interval / 2 for at in runner.times()[1:]]
    assert all(abs(offset) <= 0.05 * interval + 1e-3 for offset in offsets), "the grid does not drift"


def test_jitter_is_drawn_and_the_same_for_the_same_seed():
    one, same, other = (Runner(view(), seed=seed).until(START + DAY).times() for seed in (1, 1, 2))
    assert one == same != other
    steps = [later - earlier for earlier, later in itertools.pairwise(one[1:])]
    assert min(steps) < 0.97 * 900 < 1.03 * 900 < max(steps), "early and late"


def test_low_balance_slows_the_heartbeat_by_its_factor():
    fast = Runner(view(state=ACTIVE, factor=1)).until(START + 4 * DAY).ticks
    slow = Runner(view(state=LifecycleState.LOW_BALANCE, factor=2)).until(START + 4 * DAY).ticks
    assert len(fast) == pytest.approx(384, abs=1)
    assert len(slow) == pytest.approx(192, abs=1)


@pytest.mark.parametrize("state", [LifecycleState.SPAWNING, LifecycleState.HIBERNATING, LifecycleState.DORMANT])
def test_no_tick_in_a_state_that_may_not(state):
    seen = view(state=state, beat=Beat(START - 10), triggers=(mention(1, START - 60),), goals=(Goal("g", 0),))
    assert m.decide(seen, START, random.Random(1), SETTINGS) == m.Decision(seen.beat)


def test_h9_a_sleeper_that_is_funded_after_a_month_ticks_once_and_soon():
    runner = Runner(view(beat=Beat(START - 30 * DAY)))
    runner.until(START + SETTINGS.catch_up)
    assert len(runner.ticks) == 1
    again = Runner(view(beat=None)).until(START + SETTINGS.catch_up)
    assert len(again.ticks) == 1, "an agent that never ticked need not wait for its slot"


@given(st.floats(61, 400 * DAY), st.integers(0, 10**6))
def test_downtime_is_followed_by_one_tick_not_forty(down, n):
    runner = Runner(view(agent=key(n), heartbeat=900.0), seed=n).until(START + HOUR)
    runner.ticks.clear()
    due = runner.view.beat.due
    runner.restart(after=down)
    back = runner.now
    runner.until(back + 300.0)
    missed = due < back + 300.0
    assert len(runner.ticks) == (1 if missed else 0)
    runner.until(back + HOUR)
    assert all(other - one > 0.44 * 900 for one, other in itertools.pairwise(runner.times()))


@given(st.floats(-400 * DAY, 400 * DAY), st.floats(0, HOUR), st.integers(0, 10**6))
def test_a_clock_set_anew_is_at_most_one_tick_and_stops_none(jump, before, n):
    runner = Runner(view(agent=key(n), heartbeat=900.0), seed=n).until(START + HOUR + before)
    real = runner.now
    last = runner.times()[-1]
    runner.set_clock(jump)
    runner.until(runner.now + DAY)
    after = [at for at in runner.times() if at >= real]
    assert after[0] - real <= 1.6 * 900
    assert 94 <= len(after) <= 98
    # The first may be the one that a clock set forward seems to have missed; from there the distance is kept.
    assert all(other - one > 0.44 * 900 for one, other in itertools.pairwise(after))
    if jump <= 0:
        assert after[0] - last > 0.4 * 900


def test_a_process_that_restarts_all_the_time_still_ticks():
    runner = Runner(view(heartbeat=HOUR))
    for _ in range(2_000):
        runner.until(runner.now + 100.0)
        runner.restart(after=60.0)
    hours = 2_000 * 160 / HOUR
    assert 0.75 * hours < len(runner.ticks) <= hours + 1


def test_h15_restart_with_10_000_agents_is_spread():
    rng = random.Random(7)
    views = [view(agent=key(n), heartbeat=900.0, beat=Beat(START - DAY + n % 900)) for n in range(10_000)]
    decisions = [m.decide(seen, START, rng, SETTINGS) for seen in views]
    assert not [decision for decision in decisions if decision.tick], "none at once"
    seconds = collections.Counter(int(decision.ask_at - START) for decision in decisions)
    assert max(seconds) < 300
    assert max(seconds.values()) <= 70, "33 a second on average"
    # The next heartbeats are spread over the whole interval again.
    following = collections.Counter()
    for seen, decision in zip(views, decisions, strict=True):
        at = decision.ask_at
        ran = m.decide(attrs.evolve(seen, beat=decision.beat), at, rng, SETTINGS)
        assert ran.tick is not None
        following[int((ran.beat.due - START) % 900 // 9)] += 1
    assert len(following) == 100
    assert max(following.values()) <= 160, "100 on average"


def test_phases_are_stable_and_even():
    assert m.phase("ab" * 32) == m.phase("ab" * 32) == pytest.approx(0.3453898782964586)
    counts = collections.Counter(int(m.phase(key(n)) * 10) for n in range(10_000))
    assert set(counts) == set(range(10))
    assert all(850 < count < 1_150 for count in counts.values())


def test_h14_a_tick_that_takes_hours_is_followed_by_one():
    """All wait on one busy backend: nothing is made up for, and nobody is given up."""
    runner = Runner(view(heartbeat=900.0)).until(START + HOUR)
    runner.ticks.clear()
    runner.now += 5 * HOUR
    runner.until(runner.now + 300)
    assert len(runner.ticks) == 1


def test_an_overdue_heartbeat_is_not_put_off_for_ever():
    """Where every waking is late, a heartbeat that was spread is run however late it is."""
    runner = Runner(view(heartbeat=900.0, beat=Beat(START - HOUR)))
    for _ in range(3):
        runner.now = max(runner.now, runner.ask()) + HOUR
    assert runner.ticks


# --- goals, quiet ticks and the gap -------------------------------------------------------------------------------


def test_h13_idle_for_a_week_buys_nothing_and_ticks_on():
    runner = Runner(view(goals=(Goal("later", START + 30 * DAY),))).until(START + 7 * DAY)
    assert len(runner.ticks) == pytest.approx(672, abs=1)
    assert all(tick.quiet for _, tick in runner.ticks)
    assert runner.view.past == Past()


def test_a_goal_is_due_with_its_review_and_wakes_nobody():
    goals = (Goal("due", START), Goal("later", START + 1))
    runner = Runner(view(beat=Beat(START + 60), goals=goals[1:])).until(START + 59)
    assert not runner.ticks
    at_once = m.decide(view(beat=Beat(START), goals=goals), START, random.Random(1), SETTINGS)
    assert at_once.tick == Tick(Cause.HEARTBEAT, goals=goals[:1])
    assert not at_once.tick.quiet


def test_ticks_that_may_buy_keep_their_distance_and_quiet_ones_do_not():
    past = Past(last_paid=START - 10)
    waits = m.decide(view(beat=Beat(START), goals=(Goal("g", 0),), past=past), START, random.Random(1), SETTINGS)
    assert (waits.tick, waits.ask_at, waits.beat) == (None, START + 50, Beat(START, firm=True))
    quiet = m.decide(view(beat=Beat(START), past=past), START, random.Random(1), SETTINGS)
    assert quiet.tick == Tick(Cause.HEARTBEAT)
    ready = m.decide(view(beat=waits.beat, goals=(Goal("g", 0),), past=past), START + 50, random.Random(1), SETTINGS)
    assert ready.tick is not None


def test_a_heartbeat_that_waits_for_the_gap_is_not_taken_for_missed():
    long_gap = ScheduleSettings(min_gap=600)
    runner = Runner(view(beat=Beat(START), goals=(Goal("g", 0),), past=Past(last_paid=START - 1)), chosen=long_gap)
    runner.until(START + 599)
    assert runner.times() == [START + 599]


# --- triggers -----------------------------------------------------------------------------------------------------


def test_triggers_wait_for_others_and_are_one_tick():
    came = [mention(n, START + n) for n in range(5)]
    runner = Runner(view(beat=Beat(START + 800))).until(START + 60, came)
    assert runner.ticks == [(START + 9, Tick(Cause.TRIGGER, tuple(came)))]


def test_a_peer_that_never_stops_is_heard_after_a_while():
    came = [mention(n, START + 2 * n) for n in range(100)]
    runner = Runner(view(beat=Beat(START + 800))).until(START + 200, came)
    assert runner.times()[0] == START + 30


def test_h12_1000_mentions_in_a_minute_are_coalesced_and_capped():
    came = [mention(n, START + n * 0.06) for n in range(1_000)]
    runner = Runner(view(beat=Beat(START + 850), heartbeat=HOUR)).until(START + HOUR, came)
    assert 1 <= len(runner.times(Cause.TRIGGER)) <= 3
    taken = [trigger.id for _, tick in runner.ticks for trigger in tick.triggers]
    assert sorted(taken) == sorted(trigger.id for trigger in came), "each once"


@settings(max_examples=25)
@given(st.integers(0, 12), st.floats(2, 120), st.integers(0, 10**6))
def test_h12_no_hour_has_more_triggered_ticks_than_the_cap_and_the_heartbeat_never_minds(cap, every, seed):
    chosen = ScheduleSettings(triggered_per_hour=cap)
    came = [mention(n, START + n * every) for n in range(int(3 * HOUR / every))]
    runner = Runner(view(), chosen=chosen, seed=seed).until(START + 3 * HOUR, came)
    alone = Runner(view(), chosen=chosen, seed=seed).until(START + 3 * HOUR)
    times = runner.times(Cause.TRIGGER)
    assert all(later - earlier >= HOUR for earlier, later in zip(times, times[cap:], strict=False))
    if cap:
        assert times
    paid = [at for at, tick in runner.ticks if not tick.quiet]
    assert all(other - one >= SETTINGS.min_gap for one, other in itertools.pairwise(paid))
    beats, undisturbed = runner.times(Cause.HEARTBEAT), alone.times(Cause.HEARTBEAT)
    assert len(beats) == pytest.approx(len(undisturbed), abs=1)
    for one, other in zip(beats, undisturbed, strict=False):
        # Its jitter is drawn at its end, so the gap may make it late, and nothing can make it later.
        assert abs(one - other) <= SETTINGS.min_gap + 0.1 * 900


def test_what_is_over_the_cap_is_taken_by_the_heartbeat():
    past = Past(triggered=tuple(START - 60 * n for n in range(2, 14)), last_paid=START - 120)
    seen = view(beat=Beat(START + 100), triggers=(mention(1, START - 60),), past=past)
    waits = m.decide(seen, START, random.Random(1), SETTINGS)
    assert (waits.tick, waits.ask_at) == (None, START + 100)
    beats = m.decide(seen, START + 100, random.Random(1), SETTINGS)
    assert beats.tick == Tick(Cause.HEARTBEAT, seen.triggers)


def test_a_cap_of_zero_leaves_triggers_to_the_heartbeat():
    runner = Runner(view(beat=Beat(START + 500)), chosen=ScheduleSettings(triggered_per_hour=0))
    runner.until(START + 600, [mention(1, START)])
    assert [tick.cause for _, tick in runner.ticks] == [Cause.HEARTBEAT]


def test_handled_triggers_are_never_handled_again_not_after_a_restart_either():
    came = [mention(n, START + n) for n in range(3)]
    runner = Runner(view(beat=Beat(START + 800))).until(START + 60, came)
    runner.restart(after=10)
    runner.until(START + 120, [attrs.evolve(trigger, at=START + 75) for trigger in came])
    assert len(runner.ticks) == 1


def test_the_same_trigger_from_five_relays_is_one():
    once = mention(1, START)
    assert m.unhandled([attrs.evolve(once, at=START + n) for n in range(5)], ()) == (once,)
    assert m.unhandled([once], {once.id}) == ()


@pytest.mark.parametrize("ahead", [1.0, 10 * DAY])
def test_a_clock_set_back_makes_no_trigger_wait(ahead):
    past = Past(last_paid=START + 10 * DAY, triggered=(START + 10 * DAY,) * 20)
    seen = view(beat=Beat(START + 800), triggers=(mention(1, START + ahead),), past=past)
    assert m.decide(seen, START, random.Random(1), SETTINGS).tick == Tick(Cause.TRIGGER, seen.triggers)


# --- strangers ----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 100), st.integers(1, 40_000), st.floats(120, 2_000))
def test_strangers_never_cause_more_than_their_budget_in_any_24_hours(budget, cost, every):
    chosen = ScheduleSettings(stranger_budget_sats=budget)
    came = [mention(n, START + n * every, stranger=True) for n in range(int(2 * DAY / every))]
    runner = Runner(view(heartbeat=HOUR), chosen=chosen, cost=cost).until(START + 2 * DAY, came)
    costs = runner.view.past.strangers
    for last in costs:
        assert sum(c.msats for c in costs if last.at - DAY < c.at <= last.at) <= sats(budget)
    assert bool(costs) == (budget > 0)
    for _, tick in runner.ticks:
        assert tick.quiet or tick.strangers_alone


def test_strangers_wait_apart_when_their_budget_is_used_up_and_until_it_is_not():
    stranger, friend = mention(1, START - 60, stranger=True), mention(2, START - 60)
    past = Past(strangers=(StrangerCost(START - 2 * HOUR, sats(60)), StrangerCost(START - HOUR, sats(40))))
    seen = view(beat=Beat(START + 3 * DAY), heartbeat=4 * DAY, triggers=(stranger,), past=past)
    waits = m.decide(seen, START, random.Random(1), SETTINGS)
    assert (waits.tick, waits.ask_at) == (None, START + 22 * HOUR)
    heartbeat = m.decide(attrs.evolve(seen, beat=Beat(START)), START, random.Random(1), SETTINGS)
    assert heartbeat.tick is not None
    assert heartbeat.tick.quiet, "a heartbeat does not think for them either"
    mixed = m.decide(attrs.evolve(seen, triggers=(stranger, friend)), START, random.Random(1), SETTINGS)
    assert mixed.tick == Tick(Cause.TRIGGER, (friend,))
    later = m.decide(seen, START + 22 * HOUR, random.Random(1), SETTINGS)
    assert later.tick == Tick(Cause.TRIGGER, (stranger,), allowance=sats(60))


def test_a_rest_that_carries_no_thought_takes_no_trigger():
    stranger = mention(1, START - 60, stranger=True)
    past = Past(strangers=(StrangerCost(START - 2 * HOUR, sats(45)), StrangerCost(START - HOUR, sats(30))))
    chosen = attrs.evolve(SETTINGS, stranger_budget_sats=100)
    seen = view(beat=Beat(START + 3 * DAY), heartbeat=4 * DAY, triggers=(stranger,), past=past)
    waits = m.decide(seen, START, random.Random(1), chosen)
    assert (waits.tick, waits.ask_at) == (None, START + 22 * HOUR), "25 are left, and the cheapest has cost 30"
    failed = attrs.evolve(seen, past=Past(strangers=(StrangerCost(START - HOUR, sats(0)),)))
    assert m.decide(failed, START, random.Random(1), chosen).tick is not None
    poorer = attrs.evolve(chosen, stranger_budget_sats=20)
    assert m.decide(seen, START, random.Random(1), poorer).ask_at == START + 23 * HOUR


def test_what_strangers_alone_have_woken_looks_at_no_goal():
    """Else a goal that is always due would pay for all that they cause."""
    stranger, friend = mention(1, START - 60, stranger=True), mention(2, START - 60)
    seen = view(beat=Beat(START + HOUR), triggers=(stranger,), goals=(Goal("g", 0),))
    alone = m.decide(seen, START, random.Random(1), SETTINGS)
    assert alone.tick == Tick(Cause.TRIGGER, (stranger,), allowance=sats(100))
    both = m.decide(attrs.evolve(seen, triggers=(stranger, friend)), START, random.Random(1), SETTINGS)
    assert both.tick == Tick(Cause.TRIGGER, (stranger, friend), seen.goals)


def test_a_thought_with_another_cause_is_not_the_strangers():
    stranger, friend = mention(1, START - 60, stranger=True), mention(2, START - 50)
    both = m.decide(view(beat=Beat(START), triggers=(stranger, friend)), START, random.Random(1), SETTINGS).tick
    assert both == Tick(Cause.HEARTBEAT, (stranger, friend))
    seen = view(beat=Beat(START), triggers=(stranger,), goals=(Goal("g", 0),))
    goal = m.decide(seen, START, random.Random(1), SETTINGS).tick
    assert goal is not None
    assert not goal.strangers_alone


# --- everything together --------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**6),
    st.lists(
        st.one_of(
            st.tuples(st.just("run"), st.floats(1, 6 * HOUR)),
            st.tuples(st.just("clock"), st.floats(-3 * DAY, 3 * DAY)),
            st.tuples(st.just("restart"), st.floats(0, 2 * DAY)),
            st.tuples(st.just("storm"), st.integers(1, 60)),
        ),
        max_size=12,
    ),
)
def test_whatever_happens_a_tick_comes_and_no_trigger_is_lost(seed, steps):
    runner, made = Runner(view(agent=key(seed)), seed=seed, cost=3_000), 0
    for name, much in steps:
        match name:
            case "run":
                runner.until(runner.now + much)
            case "clock":
                runner.set_clock(much)
            case "restart":
                runner.restart(after=much)
            case "storm":
                more = [mention(made + n, runner.now + n * 0.1, stranger=n % 3 == 0) for n in range(much)]
                made += much
                runner.until(runner.now + 0.1 * much, more)
    before = len(runner.ticks)
    runner.until(runner.now + 1.7 * 900)
    assert len(runner.ticks) > before
    taken = [trigger.id for _, tick in runner.ticks for trigger in tick.triggers]
    assert len(taken) == len(set(taken))
    waiting = {trigger.id for trigger in runner.view.triggers}
    assert len(taken) + len(waiting) == made
    assert all(trigger.stranger for trigger in runner.view.triggers), "only strangers wait, for their budget"


@pytest.mark.parametrize(
    "wrong", [{"jitter": 0.3}, {"min_gap": -1}, {"late": math.nan}, {"catch_up": math.inf}, {"triggered_per_hour": -1}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError):
        ScheduleSettings(**wrong)


@pytest.mark.parametrize("heartbeat", [0.0, -1.0, math.nan, math.inf])
def test_a_heartbeat_that_cannot_be_is_refused(heartbeat):
    with pytest.raises(ValueError):
        view(heartbeat=heartbeat)
