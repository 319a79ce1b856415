"""The action machine: its table, and what no sequence of inputs may break."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pylon.host import acting as m
from pylon.host.acting import ACTION, Action, ActionEffect, ActionState
from pylon.host.replies import Proposed
from pylon.host.settings import MONEY, OUTWARD, ActionKind
from pylon.money import Msat
from tests.pylon.machines import check_effects_distinct, check_table

S, E = ActionState, ActionEffect

inputs = st.one_of(
    st.builds(m.Admitted),
    st.builds(m.Held, st.just(100.0)),
    st.builds(m.Barred, st.just("no")),
    st.builds(m.Approved),
    st.builds(m.Denied, st.just("no")),
    st.builds(m.Lapsed),
    st.builds(m.Prepared, st.just("lnsb1"), st.just("aa" * 32), st.just(Msat(5_000))),
    st.builds(m.Missed, st.just("gone")),
    st.builds(m.Settled, st.just(Msat(5_000)), st.just(Msat(25)), st.none()),
    st.builds(m.PaymentFailed, st.just("failed")),
)
kinds = st.sampled_from(list(ActionKind))


def action(kind: ActionKind) -> Action:
    return Action(id="t:0", agent="ab" * 32, tick="t", seq=0, created_at=1.0, wish=Proposed(kind=kind, text="sesame"))


def test_table_is_sound():
    check_table(ACTION)
    check_effects_distinct(ACTION)


@given(kinds, st.lists(inputs, max_size=12))
def test_it_is_done_at_most_once_and_only_if_somebody_let_it_pass(kind, messages):
    record, passed, published, paid = action(kind), False, 0, 0
    for message in messages:
        moved = ACTION.step(record, message)
        if moved is None:
            continue
        assert record.state not in ACTION.final, "what has ended stays as it is"
        passed = passed or isinstance(message, m.Admitted | m.Approved)
        record, effects = moved
        published += E.PUBLISH in effects
        paid += E.PAY in effects
        assert not effects or passed, "nothing is done that nobody let pass"
    assert published <= 1
    assert paid <= 1
    assert not (published and kind not in OUTWARD)
    assert not (paid and kind not in MONEY)
    if record.state is S.DONE:
        assert passed
        assert (published == 1) == (kind in OUTWARD - MONEY)
        assert (record.paid > 0) == (kind in MONEY)


@pytest.mark.parametrize("kind", sorted(MONEY))
def test_money_goes_by_an_invoice_an_intent_and_a_wallets_word(kind):
    record, effects = ACTION.step(action(kind), m.Admitted())
    assert (record.state, effects) == (S.PREPARING, (E.PREPARE,))
    record, effects = ACTION.step(record, m.Prepared("lnsb1", "aa" * 32, Msat(5_000)))
    assert (record.state, effects) == (S.PAYING, (E.PAY,))
    assert ACTION.resume_effects(record) == (E.RECONCILE,), "after a crash it asks before it pays"
    assert ACTION.step(record, m.Missed("gone")) is None, "what may have been paid cannot be missed"
    record, _ = ACTION.step(record, m.Settled(Msat(5_000), Msat(25), None))
    assert (record.state, record.paid, record.fee) == (S.DONE, 5_000, 25)


@pytest.mark.parametrize(("message", "state"), [(m.Denied("no"), S.DENIED), (m.Lapsed(), S.EXPIRED)])
def test_what_waits_and_gets_no_yes_is_not_done(message, state):
    waiting, _ = ACTION.step(action(ActionKind.POST), m.Held(50.0))
    assert waiting.at_rest
    after, effects = ACTION.step(waiting, message)
    assert (after.state, effects) == (state, ())


def test_a_yes_is_remembered():
    waiting, _ = ACTION.step(action(ActionKind.ZAP), m.Held(50.0))
    after, effects = ACTION.step(waiting, m.Approved())
    assert (after.state, after.approved, after.lapses_at, effects) == (S.PREPARING, True, None, (E.PREPARE,))


def test_its_words_are_in_no_repr():
    assert "sesame" not in repr(action(ActionKind.POST))
