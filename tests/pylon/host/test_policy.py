"""The policy: what is barred, held and admitted, for every kind of action under every setting."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.nip_sa import Autonomy
from pylon.host.acting import Admitted, Barred, Held
from pylon.host.policy import BOUNDED_A_DAY, LAPSE_SECONDS, Circumstances, allowed, judge
from pylon.host.replies import Proposed
from pylon.host.settings import MONEY, OUTWARD, ActionKind, AgentSettings, Grant
from pylon.money import Msat, sats

FRIEND, STRANGER = "aa" * 32, "bb" * 32

grants = st.builds(
    Grant,
    action=st.sampled_from(ActionKind),
    each=st.integers(0, 50).map(sats),
    day=st.integers(0, 50).map(sats),
    per_day=st.none() | st.integers(0, 5),
    strangers=st.booleans(),
)
chosen_settings = st.builds(
    lambda autonomy, given: AgentSettings(name="a", autonomy=autonomy, grants=given),
    st.sampled_from(Autonomy),
    st.lists(grants, max_size=4, unique_by=lambda grant: grant.action).map(tuple),
)
wishes = st.builds(
    Proposed,
    kind=st.sampled_from([kind for kind in ActionKind if kind is not ActionKind.NOTHING]),
    text=st.just("words"),
    sats=st.integers(0, 60),
    status=st.sampled_from(["", "cancelled"]),
)
arounds = st.builds(
    Circumstances,
    now=st.just(1_000.0),
    strangers=st.booleans(),
    partners=st.just((FRIEND,)),
    to=st.sampled_from([None, FRIEND, STRANGER]),
    answers=st.booleans(),
    today=st.integers(0, 120),
    cost=st.integers(0, 60).map(sats),
    tells=st.booleans(),
)


@given(wishes, chosen_settings, arounds)
def test_the_rules(wish, chosen, around):
    verdict, grant = judge(wish, chosen, around), chosen.grant(wish.kind)
    counts = grant is not None and (grant.strangers or not around.strangers)
    if isinstance(verdict, Barred):
        assert verdict.reason
        return
    if wish.kind not in OUTWARD:
        assert verdict == Admitted()
        assert counts or not around.strangers or (wish.kind is not ActionKind.SET_HEARTBEAT and not wish.status)
        return
    assert not around.tells
    assert verdict == (Held(1_000.0 + LAPSE_SECONDS) if chosen.autonomy is Autonomy.SUPERVISED else Admitted())
    if wish.kind in MONEY:
        assert counts
        assert (around.cost or sats(wish.sats)) <= grant.each
    if grant is not None and grant.per_day is not None:
        assert around.today < grant.per_day
    if grant is None and chosen.autonomy is not Autonomy.AUTONOMOUS:
        assert around.today < BOUNDED_A_DAY[wish.kind]
    if wish.kind in (ActionKind.DM, ActionKind.ZAP, ActionKind.REQUEST_PAYMENT):
        assert around.to == FRIEND or (chosen.autonomy is Autonomy.AUTONOMOUS and around.to)


@given(chosen_settings, st.booleans(), st.booleans(), arounds, wishes)
def test_what_is_not_offered_is_barred(chosen, strangers, answerable, around, wish):
    """For anything that is not answered; the same holds for money and heartbeats, and for what may be done never."""
    around = attrs.evolve(around, strangers=strangers, answers=answerable)
    wish = attrs.evolve(wish, sats=max(1, wish.sats))
    if wish.kind not in allowed(chosen, strangers=strangers, answerable=answerable) and wish.kind in OUTWARD:
        assert isinstance(judge(wish, chosen, around), Barred)


@pytest.mark.parametrize("cost", [0, 5_000, 5_001, 10**9])
def test_what_an_invoice_asks_for_counts_and_not_what_is_said_of_it(cost):
    chosen = AgentSettings(name="a", grants=(Grant(action=ActionKind.PAY_INVOICE, each=sats(5), day=sats(9)),))
    wish = Proposed(kind=ActionKind.PAY_INVOICE, invoice="lnsb1qqqqqqqqqq", sats=5)
    verdict = judge(wish, chosen, Circumstances(now=0.0, strangers=False, cost=Msat(cost)))
    assert isinstance(verdict, Barred) == (cost > 5_000)
