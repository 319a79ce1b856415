"""The purchase machine: its table, and what no sequence of inputs may break."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from pylon.compute import purchase as m
from pylon.compute.purchase import PURCHASE, Purchase, PurchaseEffect, PurchaseState
from pylon.money import Msat
from tests.pylon.machines import check_effects_distinct, check_table

BID = Msat(10_000)
PROVIDERS = ["aa" * 32, "bb" * 32]
REQUESTS = ["01" * 32, "02" * 32]


@st.composite
def choices(draw):
    which = draw(st.integers(0, 1))
    return m.Chosen(PROVIDERS[which], Msat(draw(st.sampled_from([4_000, 10_000, 10_001]))), REQUESTS[which], 10.0)


request_ids = st.sampled_from([*REQUESTS, "03" * 32])
inputs = st.one_of(
    st.builds(m.Begun),
    choices(),
    st.builds(m.NoneLeft, st.just("none")),
    st.builds(
        m.Quoted,
        request_ids,
        st.just("lnsb1"),
        st.sampled_from(["aa" * 32, "bb" * 32]),
        st.sampled_from([Msat(0), Msat(4_000), Msat(10_000), Msat(10_001)]),
        st.just(100.0),
    ),
    st.builds(m.TurnedAway, request_ids, st.just("no")),
    st.builds(m.PaymentSettled, st.just(Msat(4_000)), st.just(Msat(20)), st.just("00" * 32)),
    st.builds(m.PaymentFailed, st.just("failed")),
    st.builds(m.PaymentRefused, st.just("no funds")),
    st.builds(m.Answered, request_ids, st.just("ee" * 32), st.sampled_from(["", "words"])),
    st.builds(m.Credited, request_ids, st.just(Msat(4_000)), st.just("sorry")),
    st.builds(m.AnswerOverdue),
    st.builds(m.GivenUp, st.just("enough")),
)


def fresh() -> Purchase:
    return Purchase(id="ff" * 16, created_at=0.0, prompt="think", max_tokens=16, bid=BID)


def walk(*messages: object) -> tuple[Purchase, list[tuple[PurchaseEffect, ...]]]:
    record, done = fresh(), []
    for message in messages:
        moved = PURCHASE.step(record, message)
        assert moved is not None, f"{message} means nothing in {record.state}"
        record, effects = moved
        done.append(effects)
    return record, done


CHOSEN = m.Chosen(PROVIDERS[0], Msat(4_000), REQUESTS[0], 10.0)
QUOTED = m.Quoted(REQUESTS[0], "lnsb1", "aa" * 32, Msat(4_000), 100.0)
SETTLED = m.PaymentSettled(Msat(4_000), Msat(20), "00" * 32)
ANSWERED = m.Answered(REQUESTS[0], "ee" * 32, "words")


def test_table_is_sound():
    check_table(PURCHASE)
    check_effects_distinct(PURCHASE)


def test_the_way_of_a_bought_thought():
    record, done = walk(m.Begun(), CHOSEN, QUOTED, SETTLED, ANSWERED)
    assert (record.state, record.text, record.paid, record.fee) == (PurchaseState.ANSWERED, "words", 4_000, 20)
    assert done == [
        (PurchaseEffect.DISCOVER,),
        (PurchaseEffect.PUBLISH_REQUEST,),
        (PurchaseEffect.PAY,),
        (),
        (),
    ]


def test_a_quote_above_what_was_announced_is_not_taken():
    record, _ = walk(m.Begun(), CHOSEN)
    assert PURCHASE.step(record, m.Quoted(REQUESTS[0], "lnsb1", "aa" * 32, Msat(4_001), 100.0)) is None


def test_unknown_is_not_failed_nobody_else_is_asked_while_a_payment_may_settle():
    record, _ = walk(m.Begun(), CHOSEN, QUOTED)
    for message in (m.AnswerOverdue(), m.TurnedAway(REQUESTS[0], "no"), m.NoneLeft("none"), CHOSEN):
        assert PURCHASE.step(record, message) is None


def test_an_answer_that_overtakes_the_payment_report_is_kept():
    record, _ = walk(m.Begun(), CHOSEN, QUOTED, ANSWERED)
    assert record.state is PurchaseState.PAYING
    moved = PURCHASE.step(record, SETTLED)
    assert moved is not None
    assert moved[0].state is PurchaseState.ANSWERED
    assert moved[0].paid == 4_000


def test_a_lost_purchase_still_takes_a_late_answer():
    record, _ = walk(m.Begun(), CHOSEN, QUOTED, SETTLED, m.AnswerOverdue())
    assert record.state is PurchaseState.LOST
    moved = PURCHASE.step(record, ANSWERED)
    assert moved is not None
    assert moved[0].state is PurchaseState.ANSWERED


def test_the_last_reason_is_told():
    record, _ = walk(m.Begun(), CHOSEN, m.TurnedAway(REQUESTS[0], "too busy"), m.NoneLeft("no provider fits"))
    assert record.reason == "no provider fits; last: too busy"


@settings(max_examples=800)
@given(st.lists(inputs, max_size=30))
def test_no_sequence_of_inputs_pays_twice(messages):
    record, payments, asked = fresh(), 0, []
    in_flight = False
    for message in messages:
        moved = PURCHASE.step(record, message)
        if moved is None:
            continue
        before, (record, effects) = record, moved
        if PurchaseEffect.PAY in effects:
            assert not in_flight, "a second payment while one may settle"
            assert payments == 0, "a second payment after one settled"
            assert record.quoted <= min(record.ceiling, record.bid)
            in_flight = True
        if isinstance(message, m.PaymentSettled):
            payments += 1
            in_flight = False
        if isinstance(message, (m.PaymentFailed, m.PaymentRefused)):
            in_flight = False
        if PurchaseEffect.PUBLISH_REQUEST in effects:
            assert not in_flight
            assert payments == 0
            asked.append(record.provider)
        if record.state is PurchaseState.ANSWERED and before.state is not PurchaseState.ANSWERED:
            assert record.text
        if isinstance(message, m.Answered):
            assert message.request_id == record.request_id, "an answer to another request"
        if record.state in (PurchaseState.PAID, PurchaseState.LOST, PurchaseState.CREDITED):
            assert record.paid > 0
    assert payments <= 1
    assert len(asked) == len(set(asked)), "no provider is asked twice"
    assert "think" not in repr(record)
    assert "words" not in repr(record)


PAID = (m.Begun(), CHOSEN, QUOTED, SETTLED)


def test_a_credit_counts_only_if_it_covers_what_was_paid_and_for_no_more():
    record, _ = walk(*PAID)
    assert PURCHASE.step(record, m.Credited(REQUESTS[0], Msat(3_999), "little")) is None
    record, _ = walk(*PAID, m.Credited(REQUESTS[0], Msat(10**18), "a fortune"))
    assert (record.state, record.credit) == (PurchaseState.CREDITED, 4_000)
    record, _ = walk(m.Begun(), CHOSEN, QUOTED, m.Credited(REQUESTS[0], Msat(10**18), "early"), SETTLED)
    assert (record.state, record.credit, record.reason) == (PurchaseState.CREDITED, 4_000, "early")


def test_a_payment_that_failed_leaves_no_credit_behind():
    early = m.Credited(REQUESTS[0], Msat(4_000), "early")
    record, _ = walk(m.Begun(), CHOSEN, QUOTED, early, m.PaymentFailed("no route"))
    assert record.credit == 0


def test_an_answer_for_nothing_is_kept_when_our_own_wallet_refuses():
    record, _ = walk(m.Begun(), CHOSEN, QUOTED, ANSWERED, m.PaymentRefused("no funds"))
    assert (record.state, record.paid) == (PurchaseState.ANSWERED, 0)


def test_the_time_for_the_answer_runs_from_the_settlement():
    late = m.PaymentSettled(Msat(4_000), Msat(20), None, answer_by=900.0)
    record, _ = walk(m.Begun(), CHOSEN, QUOTED, late)
    assert record.answer_by == 900.0


def test_what_is_given_up_is_not_paid_and_what_is_being_paid_takes_its_course():
    told = (m.PurchaseEffect.PUBLISH_CANCELLATION,)
    for before, effects in (((m.Begun(),), ()), ((m.Begun(), CHOSEN), told)):
        record, done = walk(*before, m.GivenUp("enough"))
        assert (record.state, record.reason, done[-1]) == (PurchaseState.FAILED, "enough", effects)
        for message in (CHOSEN, QUOTED, m.NoneLeft("none"), SETTLED, ANSWERED):
            assert PURCHASE.step(record, message) is None
    for before in ((m.Begun(), CHOSEN, QUOTED), PAID, (*PAID, m.AnswerOverdue())):
        record, _ = walk(*before)
        assert PURCHASE.step(record, m.GivenUp("enough")) is None


def test_ten_providers_are_enough():
    messages: list[object] = [m.Begun()]
    for number in range(m.MAX_PROVIDERS):
        request = f"{number:064x}"
        messages += [m.Chosen(f"{number:02x}" * 32, Msat(4_000), request, 10.0), m.TurnedAway(request, "no")]
    record, done = walk(*messages)
    assert record.state is PurchaseState.FAILED
    assert done[-1] == ()
    assert record.reason == "10 providers were asked; last: no"
