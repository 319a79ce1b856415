"""The sale machine: its table, and what no sequence of inputs may break."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from pylon.money import Msat
from pylon.provider import sale as m
from pylon.provider.sale import MAX_ATTEMPTS, SALE, Sale, SaleEffect, SaleState
from tests.pylon.machines import check_effects_distinct, check_table

PRICE = Msat(5_000)

inputs = st.one_of(
    st.builds(m.Refused, st.just("no")),
    st.builds(
        m.Priced, st.just(PRICE), st.sampled_from([Msat(0), Msat(2_000), PRICE]), st.sampled_from([None, "5a" * 32])
    ),
    st.builds(m.OnTrust, st.just(PRICE), st.sampled_from([Msat(0), Msat(2_000)])),
    st.builds(m.Free),
    st.builds(m.Minted, st.just("lnsb1"), st.just("aa" * 32), st.just(100.0)),
    st.builds(m.MintFailed, st.just("no")),
    st.builds(
        m.Paid,
        st.sampled_from([Msat(1), Msat(3_000), Msat(4_999), PRICE, Msat(5_001)]),
        st.sampled_from([Msat(0), Msat(2_000)]),
        st.booleans(),
    ),
    st.builds(m.Held, st.sampled_from([Msat(1), Msat(3_000), PRICE]), st.sampled_from([Msat(0), Msat(2_000)])),
    st.builds(m.HoldGone),
    st.builds(m.HoldOverdue),
    st.builds(m.Cancelled),
    st.builds(m.InvoiceExpired),
    st.builds(m.Answered, st.sampled_from(["", "  \n", "words"])),
    st.builds(m.AttemptFailed, st.just("broken")),
    st.builds(m.Delivered),
    st.builds(m.Undeliverable),
)


def fresh() -> Sale:
    return Sale(id="ab" * 32, customer="cd" * 32, kind=5050, created_at=0.0, prompt="think")


def walk(*messages: object) -> tuple[Sale, list[tuple[SaleEffect, ...]]]:
    record, done = fresh(), []
    for message in messages:
        moved = SALE.step(record, message)
        assert moved is not None, f"{message} means nothing in {record.state}"
        record, effects = moved
        done.append(effects)
    return record, done


MINTED = m.Minted("lnsb1", "aa" * 32, 100.0)


def test_table_is_sound():
    check_table(SALE)
    check_effects_distinct(SALE)


def test_paid_is_legal_in_every_stored_state():
    for state in set(SALE.states()) - {SaleState.RECEIVED}:
        assert (state, m.Paid) in SALE.table, state


def test_the_five_steps():
    record, done = walk(m.Priced(PRICE), MINTED, m.Paid(PRICE), m.Answered("words"), m.Delivered())
    assert record.state is SaleState.DELIVERED
    assert (record.paid, record.earned, record.owed) == (PRICE, PRICE, 0)
    assert done == [
        (SaleEffect.MINT_INVOICE,),
        (SaleEffect.PUBLISH_QUOTE,),
        (SaleEffect.PUBLISH_PROCESSING, SaleEffect.INFER),
        (SaleEffect.PUBLISH_RESULT,),
        (),
    ]


def test_nothing_is_worked_on_before_it_is_paid():
    record, done = walk(m.Priced(PRICE), MINTED)
    assert SaleEffect.INFER not in [effect for effects in done for effect in effects]
    assert SALE.step(record, m.Answered("words")) is None


def test_an_expired_invoice_that_is_paid_late_is_still_served():
    record, done = walk(m.Priced(PRICE), MINTED, m.InvoiceExpired(), m.Paid(PRICE))
    assert record.state is SaleState.WORKING
    assert done[-1] == (SaleEffect.PUBLISH_PROCESSING, SaleEffect.INFER)


def test_too_little_is_owed_not_worked_for():
    record, _ = walk(m.Priced(PRICE), MINTED, m.Paid(Msat(4_999)))
    assert (record.state, record.owed) == (SaleState.OWED, 4_999)


def test_empty_answers_are_owed_after_the_last_attempt():
    record, done = walk(m.Priced(PRICE), MINTED, m.Paid(PRICE), *[m.Answered("  ")] * MAX_ATTEMPTS)
    assert (record.state, record.earned, record.owed) == (SaleState.OWED, 0, PRICE)
    assert done[-1] == (SaleEffect.PUBLISH_DEBT,)
    assert record.attempts == MAX_ATTEMPTS


def test_a_free_job_that_fails_owes_nothing():
    record, done = walk(m.Free(), *[m.AttemptFailed("broken")] * MAX_ATTEMPTS)
    assert (record.state, record.owed) == (SaleState.FAILED, 0)
    assert done[-1] == (SaleEffect.PUBLISH_REFUSAL,)


def test_a_result_that_no_relay_takes_is_owed():
    record, _ = walk(m.Priced(PRICE), MINTED, m.Paid(PRICE), m.Answered("words"), m.Undeliverable())
    assert (record.state, record.earned, record.owed) == (SaleState.OWED, 0, PRICE)


@settings(max_examples=600)
@example([m.OnTrust(PRICE), m.Answered("words"), m.Paid(Msat(1)), m.Paid(PRICE), m.MintFailed("no")])
@given(st.lists(inputs, max_size=25))
def test_no_sequence_of_inputs_loses_or_invents_money(messages):
    record, paid = fresh(), 0
    for message in messages:
        moved = SALE.step(record, message)
        if moved is None:
            continue
        before, (record, effects) = record, moved
        if isinstance(message, m.Paid):
            paid += message.amount
        assert record.paid == paid, "every payment is remembered, once"
        assert record.unearned >= 0
        assert min(record.earned, record.owed) >= 0
        assert record.earned <= record.price
        assert 0 <= record.credit_used <= record.price
        if record.state in (SaleState.SERVED, SaleState.DELIVERED):
            assert record.earned == min(record.paid + record.credit_used, record.price)
        elif record.earned == 0 and record.state in SALE.final:
            assert record.credit_used == 0, "credit is given back by what comes to nothing"
        if record.state in SALE.final | {SaleState.SERVED}:
            assert record.unearned == 0, "what has ended holds nobody's money"
            assert record.held == 0
        if record.state in (SaleState.EXPIRED, SaleState.CANCELLED, SaleState.REFUSED, SaleState.FAILED):
            assert record.paid == 0
        if SaleEffect.SETTLE_HOLD in effects:
            assert record.result, "nothing is taken before the result is stored"
        if record.owed > before.owed:
            assert SaleEffect.PUBLISH_DEBT in effects, "the customer is told"
        if record.state in (SaleState.SERVED, SaleState.DELIVERED):
            assert record.result
            assert record.result.strip()
        if SaleEffect.INFER in effects:
            assert record.on_trust or record.paid + record.held + record.credit_used >= record.price
        if before.earned and record.earned < before.earned:
            assert isinstance(message, m.Undeliverable)
        assert record == attrs.evolve(record), "records are values"
        assert record.attempts <= MAX_ATTEMPTS
    assert "think" not in repr(record)


def test_what_is_overpaid_is_owed_and_told():
    record, done = walk(m.Priced(PRICE), MINTED, m.Paid(Msat(5_001)), m.Answered("words"))
    assert (record.state, record.earned, record.owed) == (SaleState.SERVED, PRICE, 1)
    assert done[-1] == (SaleEffect.PUBLISH_RESULT, SaleEffect.PUBLISH_DEBT)


# --- pay on delivery ------------------------------------------------------------------------------------------------

HOLD = m.Priced(PRICE, Msat(0), "5a" * 32)
HOLD_MINTED = m.Minted("lnsb1", "aa" * 32, 100.0, 1_900.0)
HELD = m.Held(PRICE)


def test_what_is_held_is_paid_once_the_result_is_stored():
    record, done = walk(HOLD, HOLD_MINTED, HELD)
    assert (record.state, record.held, record.paid) == (SaleState.HELD, PRICE, 0)
    record, done = walk(HOLD, HOLD_MINTED, HELD, m.Answered("words"))
    assert (record.state, record.result, record.paid, record.earned) == (SaleState.SETTLING, "words", 0, 0)
    record, done = walk(HOLD, HOLD_MINTED, HELD, m.Answered("words"), m.Paid(PRICE, by_hold=True))
    assert (record.state, record.held, record.paid, record.earned) == (SaleState.SERVED, 0, PRICE, PRICE)
    assert done == [
        (SaleEffect.MINT_INVOICE,),
        (SaleEffect.PUBLISH_QUOTE,),
        (SaleEffect.PUBLISH_PROCESSING, SaleEffect.INFER),
        (SaleEffect.SETTLE_HOLD,),
        (SaleEffect.PUBLISH_RESULT,),
    ]


@pytest.mark.parametrize(
    "messages",
    [
        [HELD, *[m.Answered(" ")] * MAX_ATTEMPTS],
        [HELD, *[m.AttemptFailed("broken")] * MAX_ATTEMPTS],
        [HELD, m.HoldOverdue()],
        [m.Held(Msat(4_999))],
    ],
    ids=["empty", "broken", "too late", "too little"],
)
def test_what_fails_gives_the_hold_back_and_nothing_was_paid(messages):
    record, done = walk(HOLD, HOLD_MINTED, *messages)
    assert (record.state, done[-1]) == (SaleState.CANCELLING, (SaleEffect.CANCEL_HOLD,))
    record, done = walk(HOLD, HOLD_MINTED, *messages, m.HoldGone())
    assert (record.state, record.paid, record.owed, record.held) == (SaleState.FAILED, 0, 0, 0)
    assert done[-1] == (SaleEffect.PUBLISH_REFUSAL,)


@pytest.mark.parametrize("messages", [[], [HELD]], ids=["quoted", "held"])
def test_a_hold_that_its_customer_cancels_is_given_back(messages):
    record, done = walk(HOLD, HOLD_MINTED, *messages, m.Cancelled(), m.HoldGone())
    assert (record.state, record.paid, record.owed) == (SaleState.CANCELLED, 0, 0)
    assert done[-2] == (SaleEffect.CANCEL_HOLD,)


def test_a_hold_that_was_taken_while_it_was_given_back_is_owed():
    record, done = walk(HOLD, HOLD_MINTED, HELD, m.HoldOverdue(), m.Paid(PRICE, by_hold=True))
    assert (record.state, record.owed) == (SaleState.OWED, PRICE)
    assert done[-1] == (SaleEffect.PUBLISH_DEBT,)


def test_a_hold_that_lapses_before_it_is_settled_pays_nothing_and_nothing_is_delivered():
    record, done = walk(HOLD, HOLD_MINTED, HELD, m.Answered("words"), m.HoldGone())
    assert (record.state, record.earned, record.owed) == (SaleState.FAILED, 0, 0)
    assert done[-1] == (SaleEffect.PUBLISH_REFUSAL,)


def test_who_pays_otherwise_while_a_hold_lapses_is_served():
    record, _ = walk(HOLD, HOLD_MINTED, HELD, m.Paid(PRICE), m.HoldGone(), m.Answered("words"))
    assert (record.state, record.earned, record.owed) == (SaleState.SERVED, PRICE, 0)
    record, _ = walk(HOLD, HOLD_MINTED, HELD, m.Paid(PRICE), m.Answered("words"), m.HoldGone())
    assert (record.state, record.earned, record.owed) == (SaleState.SERVED, PRICE, 0)


# --- credit ---------------------------------------------------------------------------------------------------------


def test_credit_that_carries_the_price_is_worked_for_at_once():
    record, done = walk(m.Priced(PRICE, PRICE), m.Answered("words"))
    assert done[0] == (SaleEffect.PUBLISH_PROCESSING, SaleEffect.INFER)
    assert (record.state, record.credit_used, record.earned, record.owed) == (SaleState.SERVED, PRICE, PRICE, 0)


def test_a_part_of_the_price_is_asked_for():
    record, _ = walk(m.Priced(PRICE, Msat(2_000)), MINTED)
    assert record.asked == 3_000
    record, _ = walk(m.Priced(PRICE, Msat(2_000)), MINTED, m.Paid(Msat(3_000)), m.Answered("words"))
    assert (record.state, record.earned, record.owed) == (SaleState.SERVED, PRICE, 0)


def test_credit_is_given_back_with_a_failure_and_only_what_was_paid_is_owed():
    failed = [m.AttemptFailed("broken")] * MAX_ATTEMPTS
    record, _ = walk(m.Priced(PRICE, Msat(2_000)), MINTED, m.Paid(Msat(3_000)), *failed)
    assert (record.state, record.credit_used, record.owed) == (SaleState.OWED, 0, 3_000)
    record, done = walk(m.Priced(PRICE, PRICE), *failed)
    assert (record.state, record.credit_used, record.owed) == (SaleState.FAILED, 0, 0)
    assert done[-1] == (SaleEffect.PUBLISH_REFUSAL,)


@pytest.mark.parametrize("end", [m.InvoiceExpired(), m.Cancelled()])
def test_a_late_payment_uses_the_credit_that_is_still_there(end):
    asked = [m.Priced(PRICE, Msat(2_000)), MINTED, end]
    record, _ = walk(*asked)
    assert record.credit_used == 0
    record, _ = walk(*asked, m.Paid(Msat(3_000), credit=Msat(9_000)), m.Answered("words"))
    assert (record.state, record.credit_used, record.earned, record.owed) == (SaleState.SERVED, 2_000, PRICE, 0)
    record, _ = walk(*asked, m.Paid(Msat(3_000), credit=Msat(1_999)))
    assert (record.state, record.credit_used, record.owed) == (SaleState.OWED, 0, 3_000)


def test_credit_that_was_not_needed_is_given_back():
    record, done = walk(m.Priced(PRICE, Msat(2_000)), MINTED, m.Paid(Msat(4_000)), m.Answered("words"))
    assert (record.credit_used, record.earned, record.owed) == (1_000, PRICE, 0)
    assert done[-1] == (SaleEffect.PUBLISH_RESULT,)


# --- on trust -------------------------------------------------------------------------------------------------------


def test_on_trust_the_result_carries_the_invoice_and_what_comes_is_earned():
    served = [m.OnTrust(PRICE), m.Answered("words"), MINTED, m.Delivered()]
    record, done = walk(*served)
    assert (record.state, record.bolt11, record.earned, record.owed) == (SaleState.DELIVERED, "lnsb1", 0, 0)
    assert done == [
        (SaleEffect.PUBLISH_PROCESSING, SaleEffect.INFER),
        (SaleEffect.MINT_INVOICE,),
        (SaleEffect.PUBLISH_RESULT,),
        (),
    ]
    record, done = walk(*served, m.Paid(PRICE))
    assert (record.state, record.earned, record.owed, done[-1]) == (SaleState.DELIVERED, PRICE, 0, ())
    record, done = walk(*served, m.Paid(PRICE), m.Paid(PRICE))
    assert (record.earned, record.owed, done[-1]) == (PRICE, PRICE, (SaleEffect.PUBLISH_DEBT,))


def test_on_trust_a_failure_is_nobodys_debt():
    record, done = walk(m.OnTrust(PRICE), *[m.AttemptFailed("broken")] * MAX_ATTEMPTS)
    assert (record.state, record.owed) == (SaleState.FAILED, 0)
    record, done = walk(m.OnTrust(PRICE), m.Answered("words"), m.MintFailed("no"))
    assert (record.state, done[-1]) == (SaleState.SERVED, (SaleEffect.PUBLISH_RESULT,))


# --- cancellation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [[m.Priced(PRICE), MINTED], [m.Free()], [m.OnTrust(PRICE)]])
def test_what_nothing_was_paid_for_ends_when_its_customer_says_so(messages):
    record, done = walk(*messages, m.Cancelled())
    assert (record.state, done[-1]) == (SaleState.CANCELLED, ())


def test_what_is_paid_takes_its_course():
    record, _ = walk(m.Priced(PRICE), MINTED, m.Paid(PRICE))
    assert SALE.step(record, m.Cancelled()) is None
    record, _ = walk(m.Priced(PRICE, PRICE))
    assert SALE.step(record, m.Cancelled()) is None
    record, _ = walk(HOLD, HOLD_MINTED, HELD, m.Answered("words"))
    assert SALE.step(record, m.Cancelled()) is None


def test_what_is_paid_after_its_cancellation_is_done():
    record, done = walk(m.Priced(PRICE), MINTED, m.Cancelled(), m.Paid(PRICE))
    assert (record.state, done[-1]) == (SaleState.WORKING, (SaleEffect.PUBLISH_PROCESSING, SaleEffect.INFER))
    record, done = walk(m.Free(), m.Cancelled(), m.Paid(Msat(1)))
    assert (record.state, record.owed) == (SaleState.OWED, 1)
