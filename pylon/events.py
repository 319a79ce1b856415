"""What happens in a home, as one stream of typed events, and how one listens to it.

Rules
-----
1. The kinds are a closed set (``KINDS``) with names that stay. What they tell are ids, states, counts and amounts in
   millisatoshi; never a prompt, a reply, a memo, another's words, or a secret.
2. What is committed is told after its commit, once, and in the order of the commits: a transaction tells by
   ``Tx.tell``, and the store hands that on (``pylon.store.database``). What is not committed at all (a relay comes or
   goes) is told as it happens.
3. Events are numbered from 1 within one run of the daemon. A *mark* names the run and the number, so that who comes
   again can say where it was.
4. The stream keeps the youngest events, and so many only. A listener is no more than a place in it: one that stalls
   costs nothing, keeps nobody waiting, and is told how many events it has missed (``Gap``).

Here are the shapes and the stream; ``pylon.daemon.events`` says what of a home's life becomes which event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeAlias

import attrs
import trio

from protocols import entropy
from pylon.errors import UsageError, brief
from pylon.money import Msat, format_msat

log = logging.getLogger(__name__)

KEPT = 4_096
"""Events that the stream keeps for those who come late, or are slow."""
AT_ONCE = 256
"""The most that a listener is handed at a time."""
SAID = logging.DEBUG
"""The level of what the log is told in more words by whoever sees it, with the reason."""
_ID_DIGITS = 16


@attrs.frozen(kw_only=True)
class Event:
    """Base of all kinds. Times stand in ``Told``; amounts are millisatoshi, ids hex; '' as an agent is the home."""

    kind: ClassVar[str]
    level: ClassVar[int] = logging.INFO
    """Of its line in the log, where the publisher does not say another."""


# --- the daemon -----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class DaemonReady(Event):
    """It has started, and answers."""

    kind: ClassVar[str] = "daemon.ready"
    level: ClassVar[int] = SAID
    version: str
    network: str
    mode: str


@attrs.frozen(kw_only=True)
class DaemonStopping(Event):
    """It was asked to end; what is under way is parked."""

    kind: ClassVar[str] = "daemon.stopping"
    level: ClassVar[int] = SAID


@attrs.frozen(kw_only=True)
class DaemonReload(Event):
    """The configuration was read again. ``applied``: keys in force by now; ``restart``: those that want a restart."""

    kind: ClassVar[str] = "daemon.reload"
    level: ClassVar[int] = SAID
    applied: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class DaemonStall(Event):
    """The loop turns again, after so many seconds in which nothing else was done. The log has the place."""

    kind: ClassVar[str] = "daemon.stall"
    level: ClassVar[int] = SAID
    seconds: float


@attrs.frozen(kw_only=True)
class ChildFailed(Event):
    """A part has ended, and is started again. ``agent``: whose part it is."""

    kind: ClassVar[str] = "child.failed"
    level: ClassVar[int] = SAID
    child: str
    agent: str = ""
    starts: int


@attrs.frozen(kw_only=True)
class ChildQuarantined(Event):
    """A part has ended too often, and is left alone; ``pylon status`` has its last error."""

    kind: ClassVar[str] = "child.quarantined"
    level: ClassVar[int] = logging.ERROR
    child: str
    agent: str = ""
    starts: int


def child_ended(child: str, starts: int, state: str, *, agent: str = "") -> Event:
    """What the end of a part means, by the state that its supervisor leaves it in."""
    kind = ChildQuarantined if state == "quarantined" else ChildFailed
    return kind(child=child, agent=agent, starts=starts)


@attrs.frozen(kw_only=True)
class DiskTrouble(Event):
    """Nothing can be written down, or soon nothing: no paid work is taken. ``pylon status`` says why."""

    kind: ClassVar[str] = "disk.trouble"
    level: ClassVar[int] = SAID


@attrs.frozen(kw_only=True)
class DiskWell(Event):
    """Paid work is taken again."""

    kind: ClassVar[str] = "disk.well"
    level: ClassVar[int] = SAID


# --- relays ---------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class RelayConnected(Event):
    """A relay is there."""

    kind: ClassVar[str] = "relay.connected"
    relay: str


@attrs.frozen(kw_only=True)
class RelayLost(Event):
    """A connection that was there is gone; ``pylon status`` has the reason."""

    kind: ClassVar[str] = "relay.lost"
    relay: str


# --- agents ---------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class AgentState(Event):
    """The lifecycle of an agent has moved, by a balance that became known."""

    kind: ClassVar[str] = "agent.state"
    agent: str
    from_state: str
    to_state: str
    balance_msats: int


@attrs.frozen(kw_only=True)
class AgentHeld(Event):
    """An agent does not run, whatever its balance, or runs again (``held`` empty)."""

    kind: ClassVar[str] = "agent.held"
    agent: str
    held: str
    """``paused``, ``stopped``, ``moved``, ``deleted``, or empty."""
    name: str = ""
    """As it was called, where it has its name no longer."""


@attrs.frozen(kw_only=True)
class AgentTick(Event):
    """A tick has begun, thinks, acts, or has ended. Amounts and counts are known at its end."""

    kind: ClassVar[str] = "agent.tick"
    agent: str
    tick: str
    cause: str
    """``heartbeat``, ``trigger`` or ``asked``."""
    from_state: str
    to_state: str
    done: int = 0
    failed: int = 0
    open: int = 0
    cost_msats: int = 0


@attrs.frozen(kw_only=True)
class AgentAction(Event):
    """An action of a tick has moved."""

    kind: ClassVar[str] = "agent.action"
    agent: str
    tick: str
    action: str
    does: str
    """Its kind: ``post``, ``pay`` and so on."""
    from_state: str
    to_state: str
    paid_msats: int = 0
    fee_msats: int = 0


# --- the market -----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class SaleState(Event):
    """A job that this home sells has moved. ``by``: what has moved it."""

    kind: ClassVar[str] = "sale.state"
    sale: str
    customer: str
    from_state: str
    to_state: str
    by: str
    price_msats: int
    paid_msats: int
    earned_msats: int
    owed_msats: int


@attrs.frozen(kw_only=True)
class PurchaseState(Event):
    """An answer that this home, or an agent of it, buys has moved. ``by``: what has moved it."""

    kind: ClassVar[str] = "purchase.state"
    purchase: str
    agent: str
    provider: str
    from_state: str
    to_state: str
    by: str
    bid_msats: int
    paid_msats: int
    fee_msats: int


@attrs.frozen(kw_only=True)
class ProviderOpened(Event):
    """Paid work is taken, and announced."""

    kind: ClassVar[str] = "provider.opened"


@attrs.frozen(kw_only=True)
class ProviderClosed(Event):
    """No work is taken any more, and the announcement is taken back."""

    kind: ClassVar[str] = "provider.closed"


# --- money ----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class PaymentSent(Event):
    """A payment that has left a wallet is in the books. ``fee_msats`` came on top."""

    kind: ClassVar[str] = "payment.sent"
    agent: str
    cause: str
    purpose: str
    """``purchase``, ``zap``, ``invoice``, ``withdrawal`` or ``refund``."""
    payment_hash: str
    """Empty where Pylon did not cause it."""
    amount_msats: int
    fee_msats: int


@attrs.frozen(kw_only=True)
class PaymentReceived(Event):
    """A payment that has come into a wallet is in the books. ``purpose``: ``sale`` or ``deposit``."""

    kind: ClassVar[str] = "payment.received"
    agent: str
    cause: str
    purpose: str
    amount_msats: int


@attrs.frozen(kw_only=True)
class PaymentFailed(Event):
    """A payment was given up: the wallet says that it has failed, or the operator said no. Nothing has left; where that
    turns out to be wrong, `payment.sent` follows.
    """

    kind: ClassVar[str] = "payment.failed"
    agent: str
    cause: str
    purpose: str
    payment_hash: str
    amount_msats: int


@attrs.frozen(kw_only=True)
class WalletBalance(Event):
    """What a wallet holds has become known, and is another amount than before; what is not known is ``None``."""

    kind: ClassVar[str] = "wallet.balance"
    agent: str
    spendable_msats: int
    settled_msats: int | None = None
    pending_msats: int | None = None


@attrs.frozen(kw_only=True)
class BudgetLow(Event):
    """A payment brings a budget over 80 %: told once for each time."""

    kind: ClassVar[str] = "budget.low"
    level: ClassVar[int] = logging.WARNING
    agent: str
    budget: str
    """``day``, ``tick``, a purpose, or ``payee``."""
    used_msats: int
    bound_msats: int


KINDS: Mapping[str, type[Event]] = {each.kind: each for each in Event.__subclasses__()}
"""The closed set, by name."""
GROUPS = frozenset(kind.partition(".")[0] for kind in KINDS)
"""What may be asked for instead of a kind: all of ``sale.*`` by ``sale``."""


# --- what is told ---------------------------------------------------------------------------------------------


@attrs.frozen
class Told:
    """An event with its place in the stream."""

    run: str
    """Of the daemon: random, another one after each start."""
    seq: int
    at: float
    """Unix seconds."""
    event: Event
    name: str = ""
    """Of the agent that it concerns."""
    level: int = logging.INFO

    @property
    def mark(self) -> str:
        return f"{self.run}-{self.seq}"

    def to_json(self) -> dict[str, Any]:
        """``seq``, ``mark``, ``at``, ``kind``, the event's own fields, and an agent's ``name``."""
        told = {"seq": self.seq, "mark": self.mark, "at": self.at, "kind": self.event.kind, **attrs.asdict(self.event)}
        return {**told, "name": self.name} if self.name else told


@attrs.frozen
class Gap:
    """Events that a listener has missed: how many, or ``None`` where the daemon was started anew meanwhile."""

    missed: int | None

    def to_json(self) -> dict[str, Any]:
        return {"missed": self.missed}


Heard: TypeAlias = Told | Gap


@attrs.frozen
class Wanted:
    """Which events somebody wants to hear of; gaps are told to everybody.

    :param kinds: kinds or groups of kinds; empty: all.
    :param agent: public key (hex); ``None``: whoever they concern.
    """

    kinds: frozenset[str] = frozenset()
    agent: str | None = None

    @classmethod
    def of(cls, kinds: Iterable[str], agent: str | None = None) -> Wanted:
        """Raises ``UsageError`` for a kind that there is not."""
        names = frozenset(name.removesuffix(".*") for name in kinds)
        for name in sorted(names - KINDS.keys() - GROUPS):
            import difflib

            close = difflib.get_close_matches(name, [*KINDS, *GROUPS], n=1)
            hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(KINDS)}"
            raise UsageError(f"there is no event {name[:60]!r}", hint)
        return cls(names, agent)

    def takes(self, heard: Heard) -> bool:
        if isinstance(heard, Gap):
            return True
        kind = heard.event.kind
        if self.kinds and kind not in self.kinds and kind.partition(".")[0] not in self.kinds:
            return False
        return self.agent is None or getattr(heard.event, "agent", None) == self.agent


EVERYTHING = Wanted()


class EventStream:
    """See the module. To be used from the loop's thread alone.

    :param now: Unix seconds.
    :param name_of: an agent's name by its key; '' where it has none.
    :param kept: events that are kept.
    """

    def __init__(
        self, now: Callable[[], float], *, name_of: Callable[[str], str] = lambda agent: "", kept: int = KEPT
    ) -> None:
        self.run = entropy.random_bytes(4).hex()
        self.last = 0
        """Number of the youngest event; 0: there is none yet."""
        self.on_event: list[Callable[[Told], None]] = []
        """Told of each event as it happens. They must not wait; what they raise is logged, and hurts nobody."""
        self._now = now
        self._name_of = name_of
        self._kept = kept
        self._ring: list[Told | None] = [None] * kept
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for the next event just now."""
        return bool(self._waiting)

    @property
    def first(self) -> int:
        """Number of the oldest event that is kept."""
        return max(1, self.last - self._kept + 1)

    def publish(self, event: Event, level: int | None = None) -> None:
        """Tell everybody. Never waits, never fails.

        :param level: of its line in the log.
        """
        told = Told(
            self.run, self.last + 1, self._now(), event, self._name(event), event.level if level is None else level
        )
        self._ring[told.seq % self._kept] = told
        self.last = told.seq
        self._waiting.unpark_all()
        for sink in self.on_event:
            try:
                sink(told)
            except Exception as error:
                log.error("%s cannot be told: %s", event.kind, brief(error))

    def _name(self, event: Event) -> str:
        known: str = getattr(event, "name", "")
        agent: str = getattr(event, "agent", "")
        if known or not agent:
            return known
        try:
            return self._name_of(agent)
        except Exception:
            return ""

    def get(self, seq: int) -> Told:
        """One that is kept: ``first <= seq <= last``."""
        told = self._ring[seq % self._kept]
        assert told is not None
        assert told.seq == seq, "only what is kept can be had"
        return told

    def recent(self, most: int, wanted: Wanted = EVERYTHING) -> list[Told]:
        """The youngest that are wanted, oldest of them first."""
        found: list[Told] = []
        for seq in range(self.last, self.first - 1, -1):
            if len(found) >= most:
                break
            told = self.get(seq)
            if wanted.takes(told):
                found.append(told)
        found.reverse()
        return found

    def listen(self, wanted: Wanted = EVERYTHING, *, mark: str = "") -> Listener:
        """From now on; or from behind ``mark``, as far as that is kept. Raises ``UsageError`` for what is no mark."""
        if not mark:
            return Listener(self, wanted, self.last + 1, [])
        run, dash, number = mark.rpartition("-")
        if not (dash and number.isascii() and number.isdecimal() and len(number) < 19):
            raise UsageError(f"{mark[:40]!r} is no mark of an event", "give one that an event came with")
        if run != self.run or int(number) > self.last:
            return Listener(self, wanted, self.first, [Gap(None)])
        return Listener(self, wanted, int(number) + 1, [])

    async def _wait(self) -> None:
        await self._waiting.park()


class Listener:
    """A place in the stream. Made by ``EventStream.listen``; needs no end."""

    def __init__(self, stream: EventStream, wanted: Wanted, place: int, before: list[Heard]) -> None:
        self._stream = stream
        self._wanted = wanted
        self._place = place
        self._before = before

    @property
    def caught_up(self) -> bool:
        """Whether it has come to the end of what there is."""
        return not self._before and self._place > self._stream.last

    def take(self) -> list[Heard]:
        """What has come since the last time, in order: the gap before it, and what is wanted of ``AT_ONCE`` events."""
        heard, self._before = self._before, []
        missed = self._stream.first - self._place
        if missed > 0:
            heard.append(Gap(missed))
            self._place = self._stream.first
        end = min(self._stream.last, self._place + AT_ONCE - 1)
        for seq in range(self._place, end + 1):
            told = self._stream.get(seq)
            if self._wanted.takes(told):
                heard.append(told)
        self._place = end + 1
        return heard

    async def next(self) -> list[Heard]:
        """The same, once there is something. Nothing is lost where it is cancelled."""
        while not (heard := self.take()):
            if self.caught_up:
                await self._stream._wait()
            else:
                await trio.lowlevel.checkpoint()
        return heard


# --- for people -----------------------------------------------------------------------------------------------

_PLACE = ("seq", "mark", "at", "kind", "name", "agent", "from_state", "to_state")


def describe(told: Mapping[str, Any]) -> str:
    """An event's JSON in one line, without its time: ``sale.state quoted -> working, sale 3f2a…, paid 21 sat``."""
    words: list[str] = []
    if told.get("held") == "":
        words.append("no longer")
    if "to_state" in told:
        words.append(" -> ".join(str(state) for state in (told.get("from_state"), told["to_state"]) if state))
    for name, value in told.items():
        if name not in _PLACE and value not in (None, "", (), []):
            words.append(_field(name, value))
    used, bound = told.get("used_msats"), told.get("bound_msats")
    if isinstance(used, int) and isinstance(bound, int) and bound > 0:
        words.append(f"{used * 100 // bound} %")
    who = told.get("name") or str(told.get("agent") or "")[:_ID_DIGITS]
    return f"{told.get('kind')}{f' of {who}' if who else ''}{': ' if words else ''}{', '.join(words)}"


def _field(name: str, value: Any) -> str:
    if name.endswith("_msats") and isinstance(value, int):
        return f"{name.removesuffix('_msats')} {format_msat(Msat(value))}"
    if isinstance(value, (list, tuple)):
        return f"{name} {' '.join(map(str, value))}"
    if isinstance(value, float):
        return f"{name} {value:g}"
    text = str(value)
    if len(text) > _ID_DIGITS and not text.strip("0123456789abcdef"):
        text = text[:_ID_DIGITS]
    return f"{name} {text}"
