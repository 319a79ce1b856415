"""Budgets: what bounds a payment, what each bound still leaves, and a word when one is nearly gone.

They are read and held against the ledger in the transaction that reserves (``pylon.wallets.purse``), so that of many
who ask at once no more are let through than they carry. What counts: amount and fee of what has settled, amount and
highest fee of what is pending, whether it is on its way or waits for the operator's yes. Withdrawals, the operator's
own payments, count against none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import attrs

from pylon import events
from pylon.errors import BudgetExceeded
from pylon.money import Msat, format_msat, max_fee
from pylon.store import intents, ledger
from pylon.store.database import Reads, Tx

DAY = 86_400.0
"""What a budget of a day covers: any 24 hours."""
WARN_PERCENT = 80
"""Of a budget, from which on it is nearly gone."""
TICK = "tick"
"""The budget of a scope, as warnings name it."""
_CALM_PERCENT = 70
"""Below which the next crossing is told again: a fee that was reserved and not charged is no news."""


@attrs.frozen
class Spend:
    """What somebody wants to pay."""

    owner: str
    cause: str
    scope: str
    purpose: str
    amount: Msat
    """Without the fee. 0 where it is only asked how much could be paid."""
    max_fee: Msat
    payee: str = ""
    """Node key or address; empty where it is not known."""

    @property
    def most(self) -> Msat:
        """All that it may take from the wallet."""
        return Msat(self.amount + self.max_fee)


@attrs.frozen
class Budget:
    """The bounds of one payment, as they stand. ``None``: no bound; 0: nothing. Raises ``ValueError``."""

    per_scope: Msat | None
    """For everything of its scope, fees included. A payment of no scope is alone in its own."""
    per_day: Msat | None
    """For everything of its owner in any 24 hours, fees included."""
    reserve: Msat = Msat(0)
    """What the owner must still hold when all that is reserved is gone."""
    each: Msat | None = None
    """For the amount of this payment alone, fee not included."""
    purpose_day: Msat | None = None
    """For everything of this purpose in any 24 hours, fees included."""
    payee_day: Msat | None = None
    """For everything of its owner to this payee in any 24 hours, fees included."""
    max_fee: Msat | None = None
    """The highest fee, where that is less than ``pylon.money.max_fee``."""
    scope_day: Msat | None = None
    """For everything of its scope in any 24 hours, fees included."""
    approve_above: Msat | None = None
    """A larger amount waits for the operator's yes. It is reserved like any other."""

    def __attrs_post_init__(self) -> None:
        for bound in attrs.astuple(self):
            if bound is not None and (type(bound) is not int or bound < 0):
                raise ValueError("a budget is a whole number of millisatoshi, 0 or more")
        if self.reserve is None:
            raise ValueError("a reserve is an amount: 0 for none")

    def fee_for(self, amount: Msat) -> Msat:
        """The highest fee that a payment of ``amount`` may cost."""
        most = max_fee(amount)
        return most if self.max_fee is None else min(most, self.max_fee)


UNBOUNDED = Budget(None, None)
"""Nothing bounds it but the wallet."""

Limits = Callable[[Reads, Spend], Budget]
"""The budget of a payment, read in the transaction that reserves it. Whatever it raises refuses the payment."""


@attrs.frozen
class Room:
    """What one bound still leaves. ``bound`` is ``None`` for what is no budget, and never warns."""

    name: str
    key: str
    left: int
    bound: Msat | None


def rooms(source: Reads, spend: Spend, budget: Budget, now: float) -> list[Room]:
    """What each bound leaves, fees included; below zero where more is gone than it allows.

    That of a payee only where ``spend`` names one. Raises ``BudgetExceeded`` where it bounds a payment to nobody.
    """
    found: list[Room] = []
    since = now - DAY

    def add(name: str, key: str, bound: Msat, gone: Msat) -> None:
        found.append(Room(name, key, bound - gone, bound))

    if budget.per_scope is not None:
        if spend.scope:
            add("the budget of this tick", TICK, budget.per_scope, intents.spent_in(source, spend.scope))
        else:
            found.append(Room("its budget", "", budget.per_scope, None))
    if budget.per_day is not None:
        gone = intents.committed(source, spend.owner, since=since)
        add("the budget of 24 hours", "day", budget.per_day, gone)
    if budget.purpose_day is not None:
        gone = intents.committed(source, spend.owner, since=since, purpose=spend.purpose)
        add(f"the budget of 24 hours for {spend.purpose}", spend.purpose, budget.purpose_day, gone)
    if budget.scope_day is not None:
        gone = intents.committed(source, spend.owner, since=since, scope=spend.scope)
        add(f"the budget of 24 hours for {spend.scope}", spend.scope, budget.scope_day, gone)
    if budget.payee_day is not None and spend.payee:
        gone = intents.committed(source, spend.owner, since=since, payee=spend.payee)
        add("the budget of 24 hours for this payee", f"payee {spend.payee[:20]}", budget.payee_day, gone)
    if budget.reserve > 0:
        holds = ledger.held(source, spend.owner) - intents.reserved(source, spend.owner)
        found.append(Room(f"the reserve of {format_msat(budget.reserve)}", "reserve", holds - budget.reserve, None))
    return found


def check(spend: Spend, budget: Budget, found: Iterable[Room]) -> None:
    """Raises ``BudgetExceeded`` where a bound does not carry ``spend``."""
    if budget.each is not None and spend.amount > budget.each:
        raise BudgetExceeded(
            f"{format_msat(spend.amount)} are more than the {format_msat(budget.each)}"
            f" that one {spend.purpose} may cost"
        )
    if budget.payee_day is not None and not spend.payee:
        raise BudgetExceeded(f"the payee of {spend.purpose} {spend.cause} cannot be told, and has a budget")
    for room in found:
        if spend.most > room.left:
            raise BudgetExceeded(
                f"{format_msat(spend.most)} with the highest fee are more than {room.name} leaves:"
                f" {format_msat(Msat(max(room.left, 0)))}"
            )


def highest_price(budget: Budget, found: Iterable[Room], spendable: Msat) -> Msat:
    """The highest price that passes together with the highest fee for it; 0 if there is none."""
    room = min([spendable, *(room.left for room in found)])
    least, most = 0, max(room, 0)
    while least < most:
        price = Msat((least + most + 1) // 2)
        if price + budget.fee_for(price) <= room:
            least = price
        else:
            most = price - 1
    return Msat(least if budget.each is None else min(least, budget.each))


# --- a word when one is nearly gone -------------------------------------------------------------------------------


@attrs.frozen
class Warned:
    """A budget that is nearly gone."""

    owner: str
    budget: str
    """``day``, ``tick``, a purpose, or ``payee <its beginning>``."""
    at: float
    used: Msat
    """What was spent and reserved then, fees included."""
    bound: Msat


def warn(tx: Tx, spend: Spend, found: Sequence[Room], at: float) -> list[Warned]:
    """Note and tell the budgets that ``spend``, which they carry, brings over 80 %: each crossing once."""
    bounded = [room for room in found if room.bound]
    if not bounded:
        return []
    told = {row["budget"] for row in tx.all("SELECT budget FROM budget_warnings WHERE owner = ?", (spend.owner,))}
    crossed: list[Warned] = []
    for room in bounded:
        assert room.bound is not None, "just asked"
        before, after = room.bound - room.left, room.bound - room.left + spend.most
        if room.key in told and before * 100 < _CALM_PERCENT * room.bound:
            tx.execute("DELETE FROM budget_warnings WHERE owner = ? AND budget = ?", (spend.owner, room.key))
            told.discard(room.key)
        if room.key in told or after * 100 < WARN_PERCENT * room.bound:
            continue
        tx.execute(
            "INSERT INTO budget_warnings (owner, budget, at, used_msats, bound_msats) VALUES (?, ?, ?, ?, ?)",
            (spend.owner, room.key, at, after, room.bound),
        )
        tx.touch("budget_warnings")
        crossed.append(Warned(spend.owner, room.key, at, Msat(after), room.bound))
        budget = room.key.partition(" ")[0]  # whose budget, and not whom it pays
        tx.tell(events.BudgetLow(agent=spend.owner, budget=budget, used_msats=after, bound_msats=room.bound))
    return crossed


def warnings(source: Reads, now: float, owner: str | None = None) -> dict[str, list[Warned]]:
    """What was nearly gone within the last 24 hours, by owner: of one, or of all who have any."""
    condition, params = ("", ()) if owner is None else (" AND owner = ?", (owner,))
    found: dict[str, list[Warned]] = {}
    for row in source.read(
        f"SELECT owner, budget, at, used_msats, bound_msats FROM budget_warnings WHERE at > ?{condition} ORDER BY at",
        (now - DAY, *params),
    ):
        warned = Warned(row["owner"], row["budget"], row["at"], Msat(row["used_msats"]), Msat(row["bound_msats"]))
        found.setdefault(warned.owner, []).append(warned)
    return found
