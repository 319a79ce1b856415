"""The breaker, by its rules: every run of successes, failures and waits."""

import attrs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pylon.inference import breaker as machine
from pylon.inference.breaker import FAILURES, FIRST_WAIT, LONGEST_WAIT, Breaker, State


def opened():
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker = machine.fail(breaker, 0.0, probe=False)
    return breaker


@given(st.integers(0, FAILURES - 1))
def test_rule_1_less_than_so_many_failures_change_nothing(count):
    breaker = Breaker()
    for _ in range(count):
        breaker = machine.fail(breaker, 0.0, probe=False)
    assert breaker.lets_through(0.0)
    assert machine.succeed(breaker, probe=False) == Breaker()


def test_rules_2_and_3_one_probe_after_the_wait():
    breaker = opened()
    assert not breaker.lets_through(FIRST_WAIT - 0.001)
    assert breaker.lets_through(FIRST_WAIT)
    breaker, probe = machine.begin(breaker, FIRST_WAIT)
    assert probe
    assert not breaker.lets_through(1e9), "nobody else until the probe has ended"


def test_rule_4_a_good_probe_closes_it():
    breaker, _ = machine.begin(opened(), FIRST_WAIT)
    assert machine.succeed(breaker, probe=True) == Breaker()


def test_rule_5_bad_probes_wait_longer_and_longer():
    breaker, now, waits = opened(), FIRST_WAIT, []
    for _ in range(10):
        breaker, probe = machine.begin(breaker, now)
        breaker = machine.fail(breaker, now, probe=probe)
        waits.append(breaker.until - now)
        now = breaker.until
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300, 300, 300]


def test_rule_6_a_probe_that_proves_nothing():
    breaker, probe = machine.begin(opened(), FIRST_WAIT)
    after = machine.abandon(breaker, probe=probe)
    assert after.lets_through(FIRST_WAIT)
    assert after.wait == FIRST_WAIT


@given(st.booleans())
def test_rule_7_what_comes_in_late(good):
    for breaker in (opened(), machine.begin(opened(), FIRST_WAIT)[0]):
        late = machine.succeed(breaker, probe=False) if good else machine.fail(breaker, 99.0, probe=False)
        assert late == breaker


class AnyRun(RuleBasedStateMachine):
    """Requests begin and end in any order, at any time, against a model that only counts."""

    def __init__(self):
        super().__init__()
        self.breaker, self.now, self.under_way = Breaker(), 0.0, []
        self.in_a_row = 0

    @rule(seconds=st.floats(0.0, 400.0))
    def wait(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.breaker.lets_through(self.now))
    @rule()
    def start(self):
        self.breaker, probe = machine.begin(self.breaker, self.now)
        assert not (probe and any(self.under_way)), "one probe at a time"
        self.under_way.append(probe)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def end(self, data):
        probe = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        was = self.breaker
        match data.draw(st.sampled_from(["good", "bad", "left"])):
            case "good":
                self.breaker = machine.succeed(was, probe=probe)
                if probe or was.state is State.CLOSED:
                    self.in_a_row = 0
            case "bad":
                self.breaker = machine.fail(was, self.now, probe=probe)
                if probe or was.state is State.CLOSED:
                    self.in_a_row += 1
            case "left":
                self.breaker = machine.abandon(was, probe=probe)

    @invariant()
    def it_is_open_exactly_after_enough_failures(self):
        assert (self.breaker.state is State.CLOSED) == (self.in_a_row < FAILURES)

    @invariant()
    def it_never_waits_longer_than_the_longest(self):
        assert self.breaker.until <= self.now + LONGEST_WAIT
        assert 0 <= self.breaker.wait <= LONGEST_WAIT

    @invariant()
    def it_probes_only_while_there_is_a_probe(self):
        assert (self.breaker.state is State.PROBING) == any(self.under_way)

    @invariant()
    def it_is_never_shut_for_good(self):
        later = attrs.evolve(self.breaker, state=State.OPEN) if self.breaker.state is State.PROBING else self.breaker
        assert later.lets_through(self.now + LONGEST_WAIT)


TestAnyRun = AnyRun.TestCase
