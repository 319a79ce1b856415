"""The sale machine: its table, and what no sequence of inputs may break."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
from hypothesis import given, settings

from pylon.money import Msat
from pylon.provider import sale as m
from pylon.provider.sale import MAX_ATTEMPTS, SALE, Sale, SaleEffect, SaleState
from tests.pylon.machines import check_effects_distinct, check_table

PRICE = Msat(5_000)

inputs = st.one_of(
    st.builds(m.Refused, st.just("no")),
    st.builds(m.Priced, st.just(PRICE)),
    st.builds(m.Free),
    st.builds(m.Minted, st.just("lnsb1"), st.just("aa" * 32), st.just(100.0)),
    st.builds(m.MintFailed, st.just("no")),
    st.builds(m.Paid, st.sampled_from([Msat(1), Msat(4_999), PRICE, Msat(5_001)])),
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
        if record.state in SALE.final:
            assert record.unearned == 0, "what has ended holds nobody's money"
        if record.state in (SaleState.SERVED, SaleState.DELIVERED):
            assert record.result
            assert record.result.strip()
        if SaleEffect.INFER in effects:
            assert record.paid >= record.price
        if before.earned and record.earned < before.earned:
            assert isinstance(message, m.Undeliverable)
        assert record == attrs.evolve(record), "records are values"
        assert record.attempts <= MAX_ATTEMPTS
    assert "think" not in repr(record)


def test_what_is_overpaid_is_owed_and_told():
    record, done = walk(m.Priced(PRICE), MINTED, m.Paid(Msat(5_001)), m.Answered("words"))
    assert (record.state, record.earned, record.owed) == (SaleState.SERVED, PRICE, 1)
    assert done[-1] == (SaleEffect.PUBLISH_RESULT, SaleEffect.PUBLISH_DEBT)
