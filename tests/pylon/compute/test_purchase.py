"""The purchase machine: its table, and what no sequence of inputs may break."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
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


money = st.sampled_from([Msat(0), Msat(4_000), Msat(10_000), Msat(10_001)])
held_until = st.sampled_from([None, 50.0])
request_ids = st.sampled_from([*REQUESTS, REQUESTS[0], "03" * 32])
inputs = {
    m.Begun: st.builds(m.Begun),
    m.Chosen: choices(),
    m.NoneLeft: st.builds(m.NoneLeft, st.just("none")),
    m.Quoted: st.builds(
        m.Quoted,
        request_ids,
        st.just("lnsb1"),
        st.sampled_from(["aa" * 32, "bb" * 32]),
        money,
        st.just(100.0),
        st.sampled_from([Msat(0), Msat(6_000), Msat(-4_000)]),
        held_until,
    ),
    m.Opened: st.builds(m.Opened, request_ids, st.just(10.0)),
    m.Offered: st.builds(
        m.Offered,
        request_ids,
        st.builds(
            m.Quote,
            st.sampled_from(PROVIDERS),
            st.just("lnsb1"),
            st.sampled_from(["aa" * 32, "bb" * 32]),
            money,
            st.sampled_from([Msat(0), Msat(6_000), Msat(-4_000)]),
            held_until,
        ),
    ),
    m.Picked: st.builds(m.Picked, st.sampled_from([*PROVIDERS, "cc" * 32]), st.just(100.0)),
    m.Served: st.builds(m.Served, request_ids, st.just(100.0), st.just(Msat(4_000))),
    m.HoldOverdue: st.builds(m.HoldOverdue),
    m.TurnedAway: st.builds(m.TurnedAway, request_ids, st.just("no")),
    m.PaymentSettled: st.builds(m.PaymentSettled, st.just(Msat(4_000)), st.just(Msat(20)), st.just("00" * 32)),
    m.PaymentFailed: st.builds(m.PaymentFailed, st.just("failed")),
    m.PaymentRefused: st.builds(m.PaymentRefused, st.just("no funds")),
    m.Answered: st.builds(m.Answered, request_ids, st.just("ee" * 32), st.sampled_from(["", "words"])),
    m.Credited: st.builds(m.Credited, request_ids, st.just(Msat(4_000)), st.just("sorry")),
    m.AnswerOverdue: st.builds(m.AnswerOverdue),
    m.GivenUp: st.builds(m.GivenUp, st.just("enough")),
}


def meant_for(record: Purchase) -> list[type]:
    """The inputs that the table knows in this state: chance alone would hardly ever get past the first ones."""
    return [message for state, message in PURCHASE.table if state is record.state] or list(inputs)


def fresh(**changes) -> Purchase:
    return Purchase(id="ff" * 16, created_at=0.0, prompt="think", max_tokens=16, bid=BID, **changes)


def walk(*messages: object, **changes) -> tuple[Purchase, list[tuple[PurchaseEffect, ...]]]:
    record, done = fresh(**changes), []
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


@pytest.mark.parametrize(("amount", "used"), [(4_000, 1), (1, 4_000), (0, 4_000), (4_000, -1), (5_000, -1_000)])
def test_what_is_taken_off_for_a_debt_counts_as_if_it_were_paid(amount, used):
    record, _ = walk(m.Begun(), CHOSEN)
    assert PURCHASE.step(record, attrs.evolve(QUOTED, amount=Msat(amount), credit_used=Msat(used))) is None
    assert PURCHASE.step(record, attrs.evolve(QUOTED, amount=Msat(1_000), credit_used=Msat(3_000))) is not None
    record, _ = walk(*OPENED, open=True)
    for factor in (1, 2, 3):
        dear = m.Quote(PROVIDERS[0], "lnsb1", "aa" * 32, Msat(amount * factor), Msat(used * factor))
        taken = PURCHASE.step(record, m.Offered(REQUESTS[0], dear)) is not None
        assert taken == (amount > 0 and used > 0 and factor * (amount + used) <= BID)


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


def test_every_input_of_the_table_is_drawn():
    assert {message for _, message in PURCHASE.table} == set(inputs)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans())
def test_no_sequence_of_inputs_pays_twice(data, in_the_open):
    record, payments, asked = fresh(open=in_the_open), 0, []
    in_flight = False
    for _ in range(data.draw(st.integers(5, 25))):
        classes = list(inputs) if data.draw(st.integers(0, 9)) == 0 else meant_for(record)
        message = data.draw(inputs[data.draw(st.sampled_from(classes))])
        moved = PURCHASE.step(record, message)
        if moved is None:
            continue
        before, (record, effects) = record, moved
        if PurchaseEffect.PAY in effects:
            assert not in_flight, "a second payment while one may settle"
            assert payments == 0, "a second payment after one settled"
            assert record.quoted + record.credit_used <= min(record.ceiling, record.bid)
            assert record.quoted > 0 <= record.credit_used
            assert record.provider in record.tried
            in_flight = True
        if isinstance(message, m.PaymentSettled):
            payments += 1
            in_flight = False
        if isinstance(message, (m.PaymentFailed, m.PaymentRefused)):
            in_flight = False
        assert in_flight == (record.state is PurchaseState.PAYING), "what may settle is being paid, and nothing else is"
        if PurchaseEffect.PUBLISH_REQUEST in effects:
            assert not in_flight
            assert payments == 0
            asked.append(record.provider)
        if record.state is PurchaseState.ANSWERED and before.state is not PurchaseState.ANSWERED:
            assert record.text
        if isinstance(message, m.Answered):
            assert message.request_id == record.request_id, "an answer to another request"
            assert before.state is not PurchaseState.COLLECTING, "an answer of a stranger"
        if record.state in (PurchaseState.PAID, PurchaseState.LOST, PurchaseState.CREDITED):
            assert record.paid > 0
        if before.unwanted:
            assert record.state is not PurchaseState.SEEKING, "nobody is asked for what nobody wants"
        if record.state in (PurchaseState.SEEKING, PurchaseState.COLLECTING, PurchaseState.FAILED):
            assert record.credit_used == 0, "what was not bought has used nothing"
        assert (record.state is PurchaseState.COLLECTING) <= in_the_open
        assert (record.state is PurchaseState.REQUESTED) <= (not in_the_open)
        assert len(record.quotes) <= m.MAX_QUOTES
        assert len({quote.provider for quote in record.quotes}) == len(record.quotes)
    assert payments <= 1
    assert len(asked) == len(set(asked)), "no provider is asked twice"
    assert len(record.tried) == len(set(record.tried))
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


# --- pay on delivery, and the open market -----------------------------------------------------------------------------

HELD = m.Quoted(REQUESTS[0], "lnsb1", "aa" * 32, Msat(4_000), 100.0, hold_until=50.0)
HOLDING = (m.Begun(), CHOSEN, HELD)


def test_a_cancelled_hold_has_failed_and_the_next_one_is_asked():
    record, done = walk(*HOLDING, m.HoldOverdue(), m.PaymentFailed("cancelled"))
    assert (record.state, record.paid, record.hold_until, record.hold_overdue) == (
        PurchaseState.SEEKING,
        0,
        None,
        False,
    )
    assert done[-1] == (PurchaseEffect.DISCOVER,)


def test_a_hold_that_is_given_up_ends_with_the_wallets_word():
    record, done = walk(*HOLDING, m.GivenUp("enough"))
    assert (record.state, done[-1]) == (PurchaseState.PAYING, (PurchaseEffect.PUBLISH_CANCELLATION,))
    assert PURCHASE.step(record, m.GivenUp("again")) is None
    assert walk(*HOLDING, m.GivenUp("enough"), m.PaymentFailed("cancelled"))[0].state is PurchaseState.FAILED
    paid, _ = walk(*HOLDING, m.GivenUp("enough"), SETTLED)
    assert paid.state is PurchaseState.PAID, "paid is paid"


def test_only_a_hold_is_overdue_and_once():
    record, _ = walk(m.Begun(), CHOSEN, QUOTED)
    assert PURCHASE.step(record, m.HoldOverdue()) is None
    record, _ = walk(*HOLDING, m.HoldOverdue())
    assert PURCHASE.step(record, m.HoldOverdue()) is None


def quoted_by(provider: str, amount: int, request: str = REQUESTS[0]) -> m.Offered:
    return m.Offered(request, m.Quote(provider, f"lnsb{amount}", provider, Msat(amount)))


OPENED = (m.Begun(), m.Opened(REQUESTS[0], 3.0))


def test_of_quotes_the_picked_one_is_paid_and_the_others_wait():
    offers = [quoted_by(PROVIDERS[0], 5_000), quoted_by(PROVIDERS[1], 4_000)]
    record, done = walk(*OPENED, *offers, m.Picked(PROVIDERS[0], 99.0), open=True)
    assert done[1] == (PurchaseEffect.PUBLISH_REQUEST,)
    assert done[-1] == (PurchaseEffect.PAY,)
    assert (record.quoted, record.provider, [q.provider for q in record.quotes]) == (5_000, PROVIDERS[0], PROVIDERS[1:])
    moved = PURCHASE.step(record, m.PaymentFailed("no way there"))
    assert moved is not None
    assert moved[0].state is PurchaseState.COLLECTING
    assert PURCHASE.step(moved[0], offers[0]) is None, "who was tried is not offered again"
    moved = PURCHASE.step(moved[0], m.Picked(PROVIDERS[1], 99.0))
    assert moved is not None
    moved = PURCHASE.step(moved[0], m.PaymentFailed("no way there"))
    assert moved is not None
    assert moved[0].state is PurchaseState.FAILED


def test_after_the_choice_no_quote_counts_and_before_it_no_answer():
    record, _ = walk(*OPENED, open=True)
    assert PURCHASE.step(record, ANSWERED) is None
    assert PURCHASE.step(record, QUOTED) is None
    assert PURCHASE.step(record, quoted_by(PROVIDERS[0], 5_000, REQUESTS[1])) is None
    record, _ = walk(*OPENED, quoted_by(PROVIDERS[0], 5_000), m.Picked(PROVIDERS[0], 99.0), open=True)
    assert PURCHASE.step(record, quoted_by(PROVIDERS[1], 1_000)) is None
    assert PURCHASE.step(record, m.Picked(PROVIDERS[1], 99.0)) is None


def test_the_cheapest_quotes_are_kept():
    offers = [quoted_by(f"{number:064x}", 9_000 - number) for number in range(20)]
    record, _ = walk(*OPENED, *offers, open=True)
    assert [quote.amount for quote in record.quotes] == [8_981 + number for number in range(m.MAX_QUOTES)]
    assert PURCHASE.step(record, quoted_by("ff" * 32, 8_990)) is None


def test_who_was_told_that_it_is_served_waits_once():
    record, _ = walk(m.Begun(), CHOSEN, m.Served(REQUESTS[0], 200.0, Msat(4_000)))
    assert (record.state, record.quote_by, record.credit_used) == (PurchaseState.REQUESTED, 200.0, 4_000)
    assert PURCHASE.step(record, m.Served(REQUESTS[0], 400.0)) is None
    answered, _ = walk(m.Begun(), CHOSEN, m.Served(REQUESTS[0], 200.0, Msat(4_000)), ANSWERED)
    assert (answered.state, answered.paid, answered.credit_used) == (PurchaseState.ANSWERED, 0, 4_000)
