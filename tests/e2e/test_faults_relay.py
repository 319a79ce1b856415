"""Relays that misbehave, against real daemons: a host whose agent is spoken to, and the provider it buys from.

Each test is one vice of the relay that both have: afterwards, or in spite of it, a mention is answered, by one thought
that was paid once.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

import attrs
import pytest

from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from tests.e2e.homes import World, until
from tests.e2e.scripted_relay import ScriptedRelay
from tests.e2e.scripted_stage import VISITOR, Play

pytestmark = pytest.mark.e2e

SILENCE = 2.0
"""Seconds after which the two take the relay for dead, for the test's sake; 90 by themselves."""
FORGER = SecretKey(b"\x08" * 32)
FOR_NOBODY = "f" * 64


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    with World(tmp_path_factory.mktemp("relay")) as world:
        scripted = ScriptedRelay()
        try:
            play = Play.on(world, scripted)
            play.open("--silence", str(SILENCE))
            yield play
            play.check()
            play.host.stop()
            play.provider.stop()
        finally:
            scripted.close()


@contextmanager
def mood(play, *, anew=False, **changes):
    """A vice, for the block. ``anew``: both connect again, under it; that costs a wait that grows each time.

    Without, it holds for what is asked and sent from now on: each purchase listens for its replies anew.
    """
    before, made = play.scripted.moods, play.scripted.connections_made
    play.scripted.moods = attrs.evolve(before, **changes)
    if anew:
        play.scripted.disconnect()
        until(lambda: play.scripted.connections_made >= made + 2, 40, "both are here again")
    try:
        yield play.scripted
    finally:
        play.scripted.moods = before


def test_as_it_should_be(play):
    play.hears("good morning")
    play.check()


def test_it_accepts_and_falls_silent(play):
    """Half-open: nobody is told, and each finds out; then they begin anew and catch up."""
    made = play.scripted.connections_made
    play.scripted.moods.silent = True
    missed = play.mention("while you were deaf")
    until(lambda: not play.connected(), 30, "it is noticed")
    until(lambda: not play.connected(play.host) and not play.connected(play.provider), 30, "by both")
    play.scripted.moods.silent = False
    until(lambda: play.answered(missed), 40, "an answer to what was said meanwhile")
    assert play.scripted.connections_made > made
    play.check()


def test_it_closes_every_subscription(play):
    ended = play.scripted.end_subscriptions("error: shutting down idle subscription")
    assert ended >= 2
    play.hears("after CLOSED", within=30)
    play.check()


def test_it_says_notice_before_everything(play):
    with mood(play, notice=True):
        play.hears("through the noise")
    play.check()


def test_it_wants_to_know_who_is_there_first(play):
    play.scripted.authenticated.clear()
    with mood(play, anew=True, auth=True):
        play.hears("after AUTH", within=30)
        assert {play.host.pubkey, play.provider.pubkey} <= play.scripted.authenticated
    play.check()


def test_it_takes_no_long_tags(play):
    """Prompts are long: they travel in the content, encrypted."""
    refused = len(play.scripted.refused)
    with mood(play, tag_bytes=1_024):
        play.hears("long " * 600)
        assert play.scripted.refused[refused:] == []
    play.check()


def test_it_takes_no_long_subscription_ids(play):
    """All that were ever sent are short; a longer one would have ended the connection."""
    assert max(map(len, play.scripted.subscribed)) <= 64


def test_it_tells_the_end_twice(play):
    asked = len(play.scripted.subscribed)
    with mood(play, eoses=2):
        play.hears("EOSE, and once more")
    assert len(play.scripted.subscribed) > asked
    play.check()


def test_what_it_forges_moves_nobody(play):
    """Another's words under a known author's name, under a known signature, under none."""
    ticks = len(play.ticks())
    true = play.mention("true", FORGER, send=False)
    for forged in (
        {**true.to_dict(), "content": "false"},
        {**true.to_dict(), "pubkey": VISITOR.public.hex},
        {**true.to_dict(), "sig": "00" * 64},
        {**true.to_dict(), "id": "11" * 32},
    ):
        for client, name in play.scripted.live():
            play.scripted.say(client, "EVENT", name, forged)
    play.hears("a true word among false ones")
    assert len(play.ticks()) == ticks + 1
    # The very id that was forged before is heard when it is true.
    play.scripted.publish(true)
    until(lambda: play.answered(true), 20, "an answer to the true one")
    play.check()


def test_what_nobody_asked_for_moves_nobody(play):
    """Well signed, and outside of every filter: another kind, for somebody else, for nobody, too old."""
    ticks = len(play.ticks())
    now = int(time.time())
    for kind, tags, at in (
        (1, [["p", FOR_NOBODY]], now),
        (1, [], now),
        (30_023, [["p", play.agent["pubkey"]], ["d", "x"]], now),
        (1, [["p", play.agent["pubkey"]]], now - 90_000),
    ):
        event = sign_event(VISITOR, kind=kind, content="not yours", tags=tags, created_at=at)
        for client, name in play.scripted.live():
            play.scripted.say(client, "EVENT", name, event.to_dict())
    play.hears("yours")
    assert len(play.ticks()) == ticks + 1
    play.check()


def test_senders_whose_clocks_are_off(play):
    """By less than the overlap of 900 s, either way."""
    for at in (-800, 800):
        play.hears(f"dated {at}", at=at)
    play.check()


@pytest.mark.deep
def test_its_own_clock_is_behind(play):
    """It refuses everything as from the future: that is said, nothing is paid for nothing, and it passes."""
    refused = len(play.scripted.refused)
    with mood(play, ahead=-3_600.0):
        unheard = play.mention("to whom it may concern")
        until(lambda: len(play.scripted.refused) > refused, 20, "a refusal")
        time.sleep(1.0)
        assert not play.answered(unheard)
        spent = len([row for row in play.host.purchases() if row["paid_msats"]])
    play.hears("the clock is right again", within=60)
    assert spent <= len([row for row in play.host.purchases() if row["paid_msats"]])
    play.check()
