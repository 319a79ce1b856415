"""What a soak holds against each other at its end, and that it would say so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.host.lifecycle import BalanceKnown, Lifecycle, LifecycleSettings, follow
from pylon.money import Msat
from pylon.testing.soak.looks import allowed_states, grown, lost_purchases, wrong_states

SETTINGS = {"hibernate_sats": 30, "low_days": 1.0}


@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=20), st.integers(0, 200_000))
def test_the_states_are_those_of_the_lifecycle(balances, burn):
    """Said twice, by code that shares nothing: wherever a walk of balances leads, its state is allowed."""
    settings = LifecycleSettings(hibernate_threshold_sats=30, low_balance_days=1.0)
    agent = Lifecycle("a" * 64, 0.0, settings=settings)
    for balance in balances:
        path, _ = follow(agent, BalanceKnown(Msat(balance), Msat(burn)))
        agent = path[-1] if path else agent
        assert agent.state.value in allowed_states(balance, burn, **SETTINGS)


@pytest.mark.parametrize(
    ("balance", "state", "wrong"),
    [
        (0, "dormant", False), (0, "spawning", False), (0, "active", True), (29_000, "active", True),
        (29_000, "hibernating", False), (31_000, "low_balance", False), (31_000, "hibernating", False),
        (40_000, "hibernating", True), (99_000, "active", True), (105_000, "low_balance", False),
        (111_000, "low_balance", True), (111_000, "active", False), (50_000, "spawning", True), (None, "active", True),
    ],
)  # fmt: skip
def test_a_wrong_state_is_said(balance, state, wrong):
    agent = {"name": "a", "balance_msats": balance, "burn_msats": 100_000, "state": state}
    assert bool(wrong_states([agent], **SETTINGS)) is wrong


def test_a_purchase_that_is_neither_answered_nor_owed_is_said():
    def row(state, paid=10_000, request="r"):
        return {"id": "p" * 32, "state": state, "paid_msats": paid, "request_id": request}

    assert lost_purchases([row("answered"), row("credited"), row("failed", 0)], {}) == []
    assert lost_purchases([row("lost")], {"r": "owed"}) == []
    assert lost_purchases([row("lost")], {"r": "delivered"}) == []
    for state, sales in (("lost", {"r": "working"}), ("lost", {}), ("failed", {"r": "delivered x"}), ("paid", {})):
        assert len(lost_purchases([row(state)], sales)) == 1


@pytest.mark.parametrize(
    ("slope", "spike", "said"), [(0.0, 0.0, False), (0.0, 500.0, False), (0.01, 0.0, False), (0.1, 0.0, True)]
)
def test_memory_that_grows_is_said(slope, spike, said):
    samples = [(at, 100.0 + slope * at + (spike if at == 1_700 else 0.0)) for at in map(float, range(0, 1_800, 2))]
    assert bool(grown(samples, "it")) is said
    assert grown([], "it")
