"""Both ends of a relay session, without a wire."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocols import session as wire
from protocols.keys import SecretKey
from protocols.nip01 import ClientReq, Filter, RelayClosed, RelayEose, RelayEvent, RelayOk, sign_event
from protocols.strategies import broken_frames, client_frames, events, filters, relay_frames

SECRET = SecretKey(b"\x01" * 32)
EVENT = sign_event(SECRET, kind=1, created_at=100)


@given(events(), st.lists(filters(), min_size=1, max_size=2))
def test_what_one_end_asks_the_other_end_delivers(event, wanted):
    client, relay = wire.ClientSession(), wire.RelaySession()
    asked = relay.feed(client.subscribe("s", *wanted))
    assert asked == wire.Subscribe("s", tuple(wanted))
    delivered = list(relay.deliver(event))
    assert bool(delivered) is any(f.matches(event) for f in wanted)
    for frame in delivered:
        assert client.peek(frame) == ("s", event.id)
        assert client.feed(frame) == wire.EventReceived("s", event)
    assert relay.feed(client.publish(event)) == wire.Publish(event)


def test_events_that_nobody_asked_for():
    client = wire.ClientSession()
    client.subscribe("s", Filter(kinds=[2]))
    assert client.feed(RelayEvent("s", EVENT).encode()) == wire.Unasked(EVENT.id)
    assert client.feed(RelayEvent("t", EVENT).encode()) == wire.Unasked(EVENT.id)
    assert client.peek(RelayEvent("t", EVENT).encode()) is None


def test_after_a_reconnect_everything_is_asked_again():
    client = wire.ClientSession()
    client.subscribe("a", Filter(kinds=[1]))
    client.subscribe("b", Filter(kinds=[2], since=50))
    assert client.unsubscribe("c") is None
    assert client.resubscribe({"a": 40, "b": 40}) == [
        ClientReq("a", (Filter(kinds=[1], since=40),)).encode(),
        ClientReq("b", (Filter(kinds=[2], since=50),)).encode(),
    ]


def test_reasons():
    client = wire.ClientSession()
    assert client.feed(RelayClosed("s", "auth-required: who are you?").encode()) == wire.Closed(
        "s", "auth-required", "auth-required: who are you?"
    )
    assert client.feed(RelayOk(EVENT.id, False, "no: way out").encode()).reason == "no"
    assert client.feed(RelayOk(EVENT.id, True, "").encode()).reason == ""
    assert wire.reason_of("a sentence: with a colon") == ""
    assert client.feed(RelayEose("s").encode()) == wire.Stored("s")


@given(st.lists(st.one_of(relay_frames().map(lambda f: f.encode()), broken_frames().map(lambda b: b[1]))))
def test_nothing_that_a_relay_sends_raises(frames):
    client = wire.ClientSession()
    client.subscribe("s", Filter())
    for frame in frames:
        client.peek(frame)
        assert isinstance(client.feed(frame), wire.Happening)


@given(st.lists(st.one_of(client_frames().map(lambda f: f.encode()), broken_frames().map(lambda b: b[1]))))
def test_nothing_that_a_client_sends_raises_and_limits_hold(frames):
    relay = wire.RelaySession(max_subscriptions=3, max_filters=2)
    for frame in frames:
        assert isinstance(relay.feed(frame), wire.Request)
        assert len(relay.subscriptions) <= 3
        assert all(len(wanted) <= 2 for wanted in relay.subscriptions.values())
