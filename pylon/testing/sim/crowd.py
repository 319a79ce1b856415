"""Those who speak to the agents of a simulated home, and the relay over which they do."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import trio

from protocols import nip17
from protocols.keys import PublicKey, SecretKey
from protocols.nip01 import sign_event
from pylon.clock import VirtualClock
from pylon.testing.relay import Faults, MemoryRelay
from pylon.testing.sim.steps import Newcomer, Relay, Storm, Who
from pylon.testing.sim.told import Said

POISON = "poison"
"""How the words begin that break whoever handles them."""


class Crowd:
    """Strangers and the operator, who are right about the time.

    :param people: the first is everybody's friend; the others are strangers.
    :param word: a number that was not used before: no two texts are alike, so that no two events are.
    """

    def __init__(
        self,
        relay: MemoryRelay,
        clock: VirtualClock,
        rng: random.Random,
        *,
        operator: SecretKey,
        people: Sequence[SecretKey],
        newcomers: Mapping[str, Newcomer],
        word: Callable[[], int],
    ) -> None:
        self.said: list[Said] = []
        self.storms = 0
        """That go on now."""
        self._relay = relay
        self._clock = clock
        self._rng = rng
        self._operator = operator
        self._people = people
        self._newcomers = newcomers
        self._word = word

    def say(
        self, agent: str, author: SecretKey, text: str, *, private: bool = False, ahead: int = 0, poison: bool = False
    ) -> None:
        now = int(self._clock.now()) + ahead
        if private:
            rumor = nip17.build_message(author.public, [PublicKey.from_hex(agent)], text, created_at=now)
            event = nip17.wrap_message(rumor, author, now=now, random=self._rng, for_self=False)[agent]
            trigger = rumor.id
        else:
            event = sign_event(author, kind=1, content=text, tags=[["p", agent]], created_at=now)
            trigger = event.id
        self._relay.publish(event)
        wanted = self._newcomers[agent].settings.dms if private else self._newcomers[agent].settings.mentions
        self.said.append(Said(agent, trigger, event, trio.current_time(), wanted, poison))

    async def storm(self, agent: str, storm: Storm) -> None:
        self.storms += 1
        for _ in range(storm.count):
            match storm.who:
                case Who.OPERATOR:
                    author = self._operator
                case Who.STRANGER:
                    author = self._people[1]
                case _:
                    author = self._rng.choice([self._operator, *self._people])
            self.say(agent, author, f"hello {self._word()}", private=storm.private, ahead=storm.ahead)
            if storm.seconds:
                await trio.sleep(storm.seconds / storm.count)
        self.storms -= 1

    async def repeat(self) -> None:
        """Once more, twice each, over new connections."""
        faults = self._relay.faults
        faults.duplicate = 1.0
        self._relay.disconnect_all()
        for said in self.said:
            self._relay.publish(said.event)
        await trio.sleep(30.0)
        faults.duplicate = 0.0

    def relay_is(self, state: Relay) -> None:
        if self._relay.faults.silent:
            # What was lost on a connection that stood still is not lost on one that goes on: it breaks.
            self._relay.disconnect_all()
        faults = self._relay.faults = Faults()
        match state:
            case Relay.DOWN:
                faults.refuse_connections = True
                self._relay.disconnect_all()
            case Relay.SILENT:
                faults.silent = True
            case Relay.FLAKY:
                faults.delay, faults.duplicate, faults.reorder, faults.lose_ok = (0.0, 0.3), 0.5, 0.5, 0.3
            case Relay.CUT:
                self._relay.disconnect_all()
            case Relay.CLOSING:
                self._relay.close_subscriptions()
            case Relay.BUSY:
                faults.refuse = "rate-limited: later"
            case _:
                pass
