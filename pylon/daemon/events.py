"""What of a home's life becomes which event, and who hears of it: the log, the metrics, the control socket.

One seam: whatever is committed arrives here from the store, after its commit and in its order; what only happens
(a relay, a part that ends) is published by whoever sees it. Of records only ids, states, counts and amounts are taken.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import trio

from pylon import events
from pylon.clock import Clock
from pylon.compute.purchase import PURCHASE
from pylon.daemon.control import Method, Notify
from pylon.errors import PylonError, UsageError, brief
from pylon.events import EventStream, Gap, Heard, Listener, Told, Wanted, describe
from pylon.host import registry
from pylon.host.acting import ACTION
from pylon.host.lifecycle import LIFECYCLE
from pylon.host.ticking import TICK, TickState
from pylon.provider.sale import SALE
from pylon.store.database import Store
from pylon.store.records import Moved
from pylon.wallets.budgets import TICK as TICK_BUDGET
from pylon.wallets.port import Balance

log = logging.getLogger("pylon.events")

MOST_FOLLOWERS = 16
"""Clients of the control socket that follow at a time."""
MOST_RECENT = 1_000
_ALIVE = (0.2, 60.0)
"""Seconds between two signs of life, at least and at most."""
_BALANCE_AGAIN = 30.0
"""Seconds after which a balance is looked at whether anything was booked or not."""
_BALANCE_REST = 0.5
_BALANCE_WITHIN = 10.0


# --- from records ---------------------------------------------------------------------------------------------


def _lifecycle(moved: Moved) -> events.Event:
    after = moved.after
    return events.AgentState(
        agent=after.id,
        from_state="" if moved.by == "Spawned" else moved.before.state.value,
        to_state=after.state.value,
        balance_msats=after.balance,
    )


def _tick(moved: Moved) -> events.Event:
    after = moved.after
    return events.AgentTick(
        agent=after.agent,
        tick=after.id,
        cause=after.cause,
        from_state=moved.before.state.value,
        to_state=after.state.value,
        done=after.done,
        failed=after.failed,
        open=after.open,
        cost_msats=after.cost,
    )


def _action(moved: Moved) -> events.Event:
    after = moved.after
    return events.AgentAction(
        agent=after.agent,
        tick=after.tick,
        action=after.id,
        does=after.kind.value,
        from_state=moved.before.state.value,
        to_state=after.state.value,
        paid_msats=after.paid,
        fee_msats=after.fee,
    )


def _sale(moved: Moved) -> events.Event:
    after = moved.after
    return events.SaleState(
        sale=after.id,
        customer=after.customer,
        from_state=moved.before.state.value,
        to_state=after.state.value,
        by=moved.by,
        price_msats=after.price,
        paid_msats=after.paid,
        earned_msats=after.earned,
        owed_msats=after.owed,
    )


def _purchase(moved: Moved) -> events.Event:
    after = moved.after
    return events.PurchaseState(
        purchase=after.id,
        agent=after.owner,
        provider=after.provider or "",
        from_state=moved.before.state.value,
        to_state=after.state.value,
        by=moved.by,
        bid_msats=after.bid,
        paid_msats=after.paid,
        fee_msats=after.fee,
    )


_MACHINES: Mapping[str, Callable[[Moved], events.Event]] = {
    LIFECYCLE.name: _lifecycle,
    TICK.name: _tick,
    ACTION.name: _action,
    SALE.name: _sale,
    PURCHASE.name: _purchase,
}
_ENDS = {machine.name: machine.final for machine in (TICK, ACTION, SALE, PURCHASE)}


def of_fact(fact: object) -> tuple[events.Event, int | None] | None:
    """The event that something committed is, and the level of its line in the log; ``None``: it is none.

    A record that is on its way, and a thought that there was nothing to think about, are for whoever debugs.
    """
    if isinstance(fact, events.WalletBalance):
        return fact, logging.DEBUG
    if isinstance(fact, events.BudgetLow) and fact.budget == TICK_BUDGET:
        return fact, logging.INFO
    if isinstance(fact, events.Event):
        return fact, None
    if not isinstance(fact, Moved):
        return None
    told = _MACHINES[fact.machine](fact)
    ends = fact.machine not in _ENDS or (
        fact.after.state in _ENDS[fact.machine] and fact.after.state is not TickState.QUIET
    )
    return told, None if ends else logging.DEBUG


# --- the stream of a home -------------------------------------------------------------------------------------


def open_stream(store: Store, clock: Clock) -> EventStream:
    """The stream of a home, told from now on what its store commits."""

    def name_of(agent: str) -> str:
        row = store.one("SELECT name FROM agents WHERE id = ?", (agent,))
        return "" if row is None else row["name"] or ""

    stream = EventStream(clock.now, name_of=name_of)
    stream.on_event.append(write_to_log)

    def heard(fact: object) -> None:
        try:
            found = of_fact(fact)
        except Exception as error:
            log.error("%s cannot be told: %s", type(fact).__name__, brief(error))
            return
        if found is not None:
            stream.publish(*found)

    store.on_fact = heard
    return stream


def write_to_log(told: Told) -> None:
    """One event, one line: its words, and all of it in the fields of the record."""
    if log.isEnabledFor(told.level):
        log.log(told.level, "%s", describe(told.to_json()), extra={"told": told})


async def watch_balance(stream: EventStream, store: Store, known: Callable[[], Any]) -> None:
    """Tell what the home's own wallet holds whenever that is another amount than before; for ever.

    :param known: ``Wallets.known``: what is known without asking anybody.
    """
    before: Balance | None = None
    with store.listen("ledger") as booked:
        while True:
            held: Balance | None = None
            with trio.move_on_after(_BALANCE_WITHIN):
                held = await known()
            if held is not None and (before is None or _amounts(held) != _amounts(before)):
                before = held
                settled, pending = _amounts(held)
                balance = events.WalletBalance(
                    agent="", spendable_msats=held.spendable, settled_msats=settled, pending_msats=pending
                )
                stream.publish(balance, logging.DEBUG)
            await trio.sleep(_BALANCE_REST)
            with trio.move_on_after(_BALANCE_AGAIN):
                await booked.receive()


def _amounts(held: Balance) -> tuple[int, int]:
    return held.settled, held.pending_out


class Tally:
    """What the events of this run add up to, for ``/metrics``."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.states: Counter[tuple[str, str]] = Counter()
        """(``sale``, ``purchase``, ``agent``, ``tick`` or ``action``; state) -> how often it was entered."""
        self.msats: Counter[tuple[str, str]] = Counter()
        """(``sent``, ``received`` or ``fees``; purpose) -> how much."""

    def __call__(self, told: Told) -> None:
        event = told.event
        self.kinds[event.kind] += 1
        if isinstance(event, events.PaymentSent):
            self.msats["sent", event.purpose] += event.amount_msats
            self.msats["fees", event.purpose] += event.fee_msats
        elif isinstance(event, events.PaymentReceived):
            self.msats["received", event.purpose] += event.amount_msats
        elif (state := getattr(event, "to_state", None)) is not None and state != getattr(event, "from_state", None):
            self.states[event.kind.removesuffix(".state").removeprefix("agent."), state] += 1


# --- the control socket ---------------------------------------------------------------------------------------


class EventVerbs:
    """``events``: the recent ones, and those that come."""

    def __init__(self, stream: EventStream, store: Store) -> None:
        self._stream = stream
        self._store = store
        self._followers = 0

    def table(self) -> dict[str, Method]:
        return {"events": self.events}

    async def events(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Tell events, each by an ``event`` notification, missed ones by ``gap``; the answer has the ``mark`` reached.

        ``kinds``: kinds, or groups of them. ``agent``: name, npub or hex. ``limit``: how many recent ones come first.
        ``mark``: everything behind it comes first instead. ``follow``: go on until the caller leaves; then
        ``alive`` says after how many silent seconds an ``alive`` notification says that we are there.
        """
        limit, alive = params.get("limit", 0), params.get("alive", 15.0)
        if type(limit) is not int or not 0 <= limit <= MOST_RECENT:
            raise UsageError(f"limit must be a whole number up to {MOST_RECENT:,}")
        if isinstance(alive, bool) or not isinstance(alive, int | float) or not _ALIVE[0] <= alive <= _ALIVE[1]:
            raise UsageError(f"alive must be seconds, from {_ALIVE[0]:g} to {_ALIVE[1]:g}")
        wanted = read_wanted(self._store, params.get("kinds"), params.get("agent"))
        mark = params.get("mark") or ""
        # The place is taken before anything is sent: what happens meanwhile comes behind it.
        listener = self._stream.listen(wanted, mark=str(mark))
        for told in [] if mark else self._stream.recent(limit, wanted):
            await notify("event", told.to_json())
        if params.get("follow") is True:
            await self._follow(listener, float(alive), notify)
        elif mark:
            while not listener.caught_up:
                for each in listener.take():
                    await _say(each, notify)
        return {"mark": f"{self._stream.run}-{self._stream.last}"}

    async def _follow(self, listener: Listener, alive: float, notify: Notify) -> None:
        if self._followers >= MOST_FOLLOWERS:
            raise PylonError(f"{MOST_FOLLOWERS} clients follow the events already", "end one of them")
        self._followers += 1
        try:
            listening = await notify("alive", {})
            while listening:
                heard = None
                with trio.move_on_after(alive):
                    heard = await listener.next()
                if heard is None:
                    listening = await notify("alive", {})
                for each in heard or ():
                    listening = listening and await _say(each, notify)
        finally:
            self._followers -= 1


async def _say(heard: Heard, notify: Notify) -> bool:
    return bool(await notify("gap" if isinstance(heard, Gap) else "event", heard.to_json()))


def read_wanted(store: Store, kinds: object, agent: object) -> Wanted:
    """What somebody asks for. Raises ``UsageError``, ``NotFound``."""
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise UsageError("kinds must be a list of names")
    if agent is not None and not isinstance(agent, str):
        raise UsageError("agent must be a name or a key")
    return Wanted.of(kinds or (), None if agent is None else registry.find(store, agent).id)
