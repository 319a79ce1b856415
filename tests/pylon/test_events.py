"""The stream: everybody hears everything once and in order, or how much was missed; and nobody waits for anybody."""

from __future__ import annotations

import logging
import sys

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import events
from pylon.errors import UsageError
from pylon.events import EventStream, Gap, Wanted

ALICE = "aa" * 32

NAMES = [
    "daemon.ready", "daemon.stopping", "daemon.reload", "daemon.stall", "child.failed", "child.quarantined",
    "disk.trouble", "disk.well", "relay.connected", "relay.lost", "agent.state", "agent.held", "agent.tick",
    "agent.action", "sale.state", "purchase.state", "provider.opened", "provider.closed", "payment.sent",
    "payment.received", "payment.failed", "wallet.balance", "budget.low",
]  # fmt: skip
"""Others filter by them: none may be renamed."""


def stream(**options):
    return EventStream(lambda: 5.0, **options)


def stall(number):
    return events.DaemonStall(seconds=float(number))


def numbers(heard):
    return [Gap(each.missed) if isinstance(each, Gap) else each.event.seconds for each in heard]


def test_the_names_stay():
    assert list(events.KINDS) == NAMES


def test_no_event_has_room_for_words():
    """Ids, states, counts, amounts: a field of any other name wants a second look, and its place in this list."""
    known = {
        *("version", "network", "mode", "applied", "restart", "seconds", "child", "starts", "relay"),
        *("agent", "name", "held", "tick", "action", "does", "cause", "purpose", "by", "budget", "payment_hash"),
        *("sale", "purchase", "customer", "provider", "from_state", "to_state", "done", "failed", "open"),
    }
    for kind in events.KINDS.values():
        for field in attrs.fields(kind):
            assert field.name in known or field.name.endswith("_msats"), f"{kind.kind}: {field.name}"
            assert not field.name.endswith("_msats") or field.type in ("int", "int | None")


@settings(max_examples=200, deadline=None)
@given(
    kept=st.integers(1, 9),
    steps=st.lists(st.one_of(st.integers(0, 400), st.sampled_from(["listen", "take 0", "take 1", "take 2"]))),
)
def test_every_listener_hears_each_event_once_and_in_order_or_how_many_it_missed(kept, steps):
    told, published = stream(kept=kept), 0
    listeners = []
    for step in steps:
        if step == "listen" and len(listeners) < 3:
            listeners.append([told.listen(), published, 0, published])
        elif isinstance(step, int):
            for _ in range(step % 30):
                published += 1
                told.publish(stall(published))
        elif isinstance(step, str) and step.startswith("take") and int(step[5:]) < len(listeners):
            _take(listeners[int(step[5:])])
    for each in listeners:
        while not each[0].caught_up:
            _take(each)
        _, begun, heard, _ = each
        assert heard == published - begun
    assert len(told._ring) == kept, "whoever stalls costs nothing"


def _take(each):
    listener, _, _, last = each
    for heard in listener.take():
        if isinstance(heard, Gap):
            assert heard.missed > 0
            each[2] += heard.missed
            last += heard.missed
        else:
            assert heard.event.seconds == heard.seq == last + 1
            each[2] += 1
            last += 1
    each[3] = last


@settings(max_examples=100, deadline=None)
@given(kept=st.integers(1, 8), before=st.integers(0, 20), seen=st.integers(0, 20), after=st.integers(0, 20))
def test_who_comes_again_with_a_mark_goes_on_behind_it(kept, before, seen, after):
    told = stream(kept=kept)
    for number in range(1, before + 1):
        told.publish(stall(number))
    mark = f"{told.run}-{min(seen, before)}"
    for number in range(before + 1, before + after + 1):
        told.publish(stall(number))
    heard, listener = [], told.listen(mark=mark)
    while not listener.caught_up:
        heard += listener.take()
    place = min(seen, before)
    missed = max(0, before + after - kept - place)
    assert numbers(heard) == ([Gap(missed)] if missed else []) + [*range(place + missed + 1, before + after + 1)]


@pytest.mark.parametrize("mark", ["other-3", "{run}-9"])
def test_a_mark_of_another_run_is_a_gap_of_nobody_knows_how_much(mark):
    told = stream(kept=2)
    for number in range(1, 4):
        told.publish(stall(number))
    assert numbers(told.listen(mark=mark.format(run=told.run)).take()) == [Gap(None), 2, 3]


@pytest.mark.parametrize("mark", ["x", "-", "a-", "a-x", "a-1²", "a-" + "9" * 30])
def test_what_is_no_mark_is_refused(mark):
    with pytest.raises(UsageError, match="no mark"):
        stream().listen(mark=mark)


async def test_who_waits_is_woken_and_a_wait_that_is_cut_loses_nothing(autojump_clock):
    told, heard = stream(), []
    listener = told.listen()

    async def hear():
        while len(heard) < 3:
            with trio.move_on_after(1):
                heard.extend(numbers(await listener.next()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        for number in (1, 2, 3):
            await trio.sleep(1)  # just when the wait is cut
            told.publish(stall(number))
    assert heard == [1, 2, 3]


async def test_what_is_not_wanted_wakes_nobody_for_long(autojump_clock):
    told = stream(kept=1_000)
    listener = told.listen(Wanted.of(["relay"]))
    for number in range(900):
        told.publish(stall(number))
    with trio.move_on_after(1):
        await listener.next()
        raise AssertionError("there was nothing")
    told.publish(events.RelayLost(relay="wss://r.example"))
    (one,) = await listener.next()
    assert one.event.kind == "relay.lost"
    assert listener.caught_up


def test_who_comes_late_is_told_the_recent_ones():
    told = stream(kept=4, name_of=lambda agent: "alice")
    told.publish(events.RelayLost(relay="wss://r.example"))
    for number in range(3):
        told.publish(stall(number))
    told.publish(events.AgentHeld(agent=ALICE, held="paused"))
    assert [each.seq for each in told.recent(9)] == [2, 3, 4, 5]
    assert [each.seq for each in told.recent(2)] == [4, 5]
    assert [each.seq for each in told.recent(9, Wanted.of([], ALICE))] == [5]
    assert told.recent(9, Wanted.of(["agent.held"], "bb" * 32)) == []
    assert told.recent(0) == []
    assert told.recent(1)[0].to_json() == {
        "seq": 5, "mark": f"{told.run}-5", "at": 5.0, "kind": "agent.held", "agent": ALICE, "held": "paused",
        "name": "alice",
    }  # fmt: skip


def test_kinds_are_asked_for_by_name_or_by_group():
    assert Wanted.of(["sale.*", "relay.lost"]).kinds == {"sale", "relay.lost"}
    with pytest.raises(UsageError, match="no event 'sail'") as raised:
        Wanted.of(["sail"])
    assert raised.value.hint == "did you mean sale?"


def test_a_sink_or_a_name_that_fails_hurts_nobody(caplog):
    def broken(told):
        raise ValueError("with a secret in it")

    def no_name(agent):
        raise OSError

    told, heard = stream(name_of=no_name), []
    told.on_event += [broken, heard.append]
    told.publish(events.AgentHeld(agent=ALICE, held=""))
    told.publish(events.AgentHeld(agent=ALICE, held="deleted", name="alice"), logging.DEBUG)
    assert [(each.seq, each.name, each.level) for each in heard] == [(1, "", logging.INFO), (2, "alice", logging.DEBUG)]
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_publishing_makes_nothing_that_stays():
    told = stream(kept=16)
    told.listen()
    event = stall(1)
    for _ in range(32):
        told.publish(event)
    before = sys.getallocatedblocks()
    for _ in range(2_000):
        told.publish(event)
    assert sys.getallocatedblocks() - before < 200


@pytest.mark.parametrize(
    ("event", "name", "words"),
    [
        (
            events.PurchaseState(
                purchase="3f" * 16, agent=ALICE, provider="", from_state="paying", to_state="paid", by="Settled",
                bid_msats=25_000, paid_msats=21_500, fee_msats=0,
            ),
            "alice",
            "purchase.state of alice: paying -> paid, purchase 3f3f3f3f3f3f3f3f, by Settled, bid 25 sat,"
            " paid 21.5 sat, fee 0 sat",
        ),
        (events.AgentHeld(agent=ALICE, held=""), "", f"agent.held of {ALICE[:16]}: no longer"),
        (events.DaemonReload(applied=("relays", "log.level")), "", "daemon.reload: applied relays log.level"),
        (
            events.AgentState(agent=ALICE, from_state="", to_state="spawning", balance_msats=0),
            "alice",
            "agent.state of alice: spawning, balance 0 sat",
        ),
        (
            events.BudgetLow(agent="", budget="day", used_msats=850_000, bound_msats=1_000_000),
            "",
            "budget.low: budget day, used 850 sat, bound 1,000 sat, 85 %",
        ),
        (stall(2.5), "", "daemon.stall: seconds 2.5"),
        (events.ProviderOpened(), "", "provider.opened"),
    ],
)  # fmt: skip
def test_an_event_in_words(event, name, words):
    told = stream(name_of=lambda agent: name)
    told.publish(event)
    assert events.describe(told.recent(1)[0].to_json()) == words
