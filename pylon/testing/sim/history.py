"""What the rules of a simulated home are held against: its rows, and where a balance carries, worked out anew."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import attrs

from pylon.host.acting import Action
from pylon.host.agents import action_records
from pylon.host.lifecycle import Lifecycle, LifecycleState
from pylon.host.settings import ActionKind
from pylon.host.tick import tick_records
from pylon.host.ticking import TICK, TickRecord
from pylon.money import MSATS_PER_SAT, Msat
from pylon.store.database import Store
from pylon.wallets.port import Direction, PaymentState

if TYPE_CHECKING:
    from pylon.testing.sim.hosting import HostWorld

AWAKE = (LifecycleState.ACTIVE, LifecycleState.LOW_BALANCE)
LADDER = (LifecycleState.DORMANT, LifecycleState.HIBERNATING, *reversed(AWAKE))


@attrs.frozen
class Paid:
    """An intent, and what its wallet's own history says of it."""

    owner: str
    cause: str
    scope: str
    purpose: str
    payment_hash: str
    state: str
    cost: int
    """What has left the wallet, fee included; of what is pending, what may."""
    amount: int
    created_at: float
    updated_at: float


@attrs.frozen
class History:
    """A home's rows, in their order."""

    store: Store
    ticks: dict[str, list[TickRecord]]
    """Of each agent, in the order of their numbers."""
    begun: dict[str, float]
    """Trio's time at which each tick began."""
    actions: dict[str, Action]
    paid: list[Paid]
    """In the order in which they were reserved."""
    scopes: dict[str, list[Paid]]
    """The same by scope, without withdrawals."""

    @classmethod
    def of(cls, world: HostWorld, store: Store) -> History:
        ticks: dict[str, list[TickRecord]] = {agent: [] for agent in world.ids}
        for tick in tick_records(store).where(store, "1 = 1 ORDER BY agent, n"):
            ticks[tick.agent].append(tick)
        sent = {
            (agent, payment.payment_hash): payment
            for agent, payments in world.payments.items()
            for payment in payments
            if payment.direction is Direction.SENT and payment.state is PaymentState.SETTLED
        }
        paid = []
        for row in store.read("SELECT * FROM intents ORDER BY rowid"):
            payment = sent.get((row["owner"], row["payment_hash"]))
            cost = 0 if payment is None else payment.amount + payment.fee
            if payment is None and row["state"] == "pending":
                cost = row["amount_msats"] + row["max_fee_msats"]
            paid.append(
                Paid(
                    **{name: row[name] for name in ("owner", "cause", "scope", "purpose", "payment_hash", "state")},
                    cost=cost,
                    amount=row["amount_msats"],
                    created_at=row["created_at"],
                    updated_at=row["updated_at"],
                )
            )
        begun = {
            passage.subject: passage.at
            for passage in world.chronicle.passages
            if passage.machine == TICK.name and passage.message == "Begun"
        }
        actions = {action.id: action for action in action_records(store).where(store, "1 = 1 ORDER BY id")}
        scopes = defaultdict(list)
        for entry in paid:
            if entry.purpose != "withdrawal":
                scopes[entry.scope].append(entry)
        return cls(store, ticks, begun, actions, paid, scopes)

    def of_owner(self, agent: str) -> list[Paid]:
        """What budgets count of an agent."""
        return [paid for paid in self.paid if paid.owner == agent and paid.purpose != "withdrawal"]

    def heartbeats_set(self, agent: str) -> int:
        """How often an agent has set its own heartbeat."""
        return sum(
            action.agent == agent and action.kind is ActionKind.SET_HEARTBEAT for action in self.actions.values()
        )

    def spent(self, scope: str) -> int:
        return sum(paid.cost for paid in self.scopes.get(scope, ()))


def lines(known: Lifecycle) -> tuple[int, int]:
    """Below which an agent hibernates, and below which it saves."""
    settings = known.settings
    return settings.hibernate_threshold_sats * MSATS_PER_SAT, math.ceil(settings.low_balance_days * known.burn)


def rung(balance: int, hibernate: int, low: int) -> int:
    if balance < MSATS_PER_SAT:
        return 0
    if balance < hibernate:
        return 1
    return 2 if balance < low else 3


def expected_state(state: LifecycleState, known: Lifecycle) -> LifecycleState:
    """Where an agent rests that was in ``state``, with the balance and the burn that are known now."""
    hibernate, low = lines(known)
    falls = rung(known.balance, hibernate, low)
    if state is LifecycleState.SPAWNING:
        return LADDER[falls] if falls else state
    rises = rung(known.balance, math.ceil(hibernate * 11 / 10), math.ceil(low * 11 / 10))
    place = LADDER.index(state)
    return LADDER[max(min(place, falls), rises)]


def carries_active(known: Lifecycle) -> Msat:
    """The balance from which an agent is active in any case."""
    hibernate, low = lines(known)
    return Msat(max(math.ceil(hibernate * 11 / 10), math.ceil(low * 11 / 10), MSATS_PER_SAT))
